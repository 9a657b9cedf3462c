"""The user's system prompts: text files below ComfyUI's text_encoders folders, where the enhancers are.

The official ones come with the official models as system_prompt.txt. A client only ever names one of the listed files.
"""
from pathlib import Path, PurePath

import folder_paths

from ....messages import Message, Refusal
from ....pages import enhancement
from ....pages.enhancement import Task
from .folders import TEXT_ENCODER, file_names

BUILT_IN = "built-in"
# Where they lie when an official folder is downloaded as it is; offered even before they are there.
OFFICIAL = ("Qwen-Image-2.1-PE-T2I/system_prompt.txt", "Qwen-Image-2.1-PE-I2I/system_prompt.txt")

# ComfyUI lists only weights there; an entry of our own lists .txt in the same folders.
KEY = "qwen_image_2_system_prompts"
NO_PROMPTS = ("merges.txt",)  # of tokenizers, which lie beside the weights


def choices() -> list[str]:
    found = [PurePath(name).as_posix() for name in _names()]
    return [BUILT_IN, *found, *(name for name in OFFICIAL if name not in found)]


def _names() -> list[str]:
    folder_paths.folder_names_and_paths[KEY] = (folder_paths.folder_names_and_paths[TEXT_ENCODER.folder][0], {".txt"})
    return [name for name in file_names(KEY) if PurePath(name).name not in NO_PROMPTS]


def resolve(name: str) -> Path:
    """The file behind a name from `choices`. Raises ValueError for one that is not there."""
    listed = {PurePath(each).as_posix(): each for each in _names()}
    path = folder_paths.get_full_path(KEY, listed[name]) if name in listed else None
    if path is None:
        raise Refusal("system_prompt_gone", "The system prompt {name} is not below models/text_encoders. Put the "
                      "system_prompt.txt of your enhancer (Qwen/Qwen-Image-2.1-PE-T2I, or -PE-I2I for edits) there and "
                      "press R, or choose {built_in}.", name=str(name), built_in=BUILT_IN)
    return Path(path)


def read(name: str, task: Task) -> str:
    """The instruction behind a name from `choices`."""
    if name == BUILT_IN:
        return enhancement.built_in_instruction(task)
    text = enhancement.read_instruction(resolve(name), name)
    enhancement.check_text(text, Message("the_system_prompt", "The system prompt {name}", name=name))
    return text
