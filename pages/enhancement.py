"""A prompt enhancer: what a language model is asked, and what of its answer is used.

Settings, messages and the form of the answer are those of the official enhancers (QwenLM/Qwen-Image-2.1,
prompt_rewrite): thinking first, then {"rewritten_prompt", "wh_ratio"}, for edits with "ratio_follow". Nothing that the
user has quoted may change, and what cannot be read leaves the prompt as it was written.
"""
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..messages import Message, Refusal
from ..model.images.sizes import reference_size
from .enhancement_answer import Generated, parse, proposed_canvas
from .quotation_repair import MAX_PUT_BACK, lost, restored

# The official settings of both models.
TEMPERATURE, TOP_P, TOP_K = 1.0, 0.95, 20
# Pixels of a picture that a language model looks at. Below the smallest, its own preparation would enlarge it.
MIN_SIDE, MAX_SIDE = 256, 1024

MAX_INSTRUCTION_BYTES = 256 * 1024  # the official ones have a few thousand words
MAX_SHOWN = 2000  # characters of an answer that could not be used


@dataclass(frozen=True)
class Task:
    """What differs between the two official models."""

    name: Message
    presence_penalty: float
    most_tokens: int  # thinking included


TEXT_TO_IMAGE = Task(Message("task_text_to_image", "text-to-image"), 1.5, 16256)
EDIT = Task(Message("task_edit", "edit"), 0.0, 24000)


@dataclass(frozen=True)
class Enhanced:
    """The prompt to draw, its canvas in pixels, and what there is to say."""

    prompt: str
    canvas: tuple[int, int]
    notes: tuple[str, ...]


# ---------------------------------------------------------------- asking

# For any instructed language model; the official ones were trained with their own system_prompt.txt.
BUILT_IN = """You turn a short request for a picture into the long prompt that an image model needs.
{task}
Rules:
- Everything the request asks for stays, and nothing contradicts it.
- Every text in quotation marks is lettering in the picture. Copy it letter by letter, in its own language and script, \
inside double quotation marks; say where it stands, how large it is and what the letters look like. Add no other \
lettering unless the request asks for it.
- One paragraph of plain prose, no headings and no lists, in the language of the request.
Answer with a single JSON object and nothing else, quotation marks inside it escaped:
{form}"""
BUILT_IN_TASKS = {
    TEXT_TO_IMAGE: (
        "Describe the finished picture: subject, surroundings, composition, light, colours, materials and style. "
        "Choose the shape that suits it: 1:1, 4:3, 3:4, 3:2, 2:3, 16:9 or 9:16.",
        '{"rewritten_prompt": "...", "wh_ratio": "3:2"}'),
    EDIT: (
        "Look at the pictures, which are called <image1>, <image2> and so on in their order. Say precisely what is to "
        "be changed, where and into what, and what stays as it is; name the pictures where there are several. "
        "ratio_follow is the picture that is edited, and wh_ratio then stays empty; for a new composition it is the "
        "other way round.",
        '{"rewritten_prompt": "...", "wh_ratio": "", "ratio_follow": "<image1>"}'),
}


def built_in_instruction(task: Task) -> str:
    about, form = BUILT_IN_TASKS[task]
    return BUILT_IN.format(task=about, form=form)


def read_instruction(path: Path, label: str) -> str:
    """A system prompt from the user's file. Raises ValueError for one that is none."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_INSTRUCTION_BYTES + 1)
        text = content.decode("utf-8-sig").strip()
    except OSError as error:
        raise Refusal("system_prompt_unreadable", "The system prompt {name} could not be read: {reason}.", name=label,
                      reason=str(error.strerror)) from error
    except UnicodeDecodeError as error:
        if len(content) <= MAX_INSTRUCTION_BYTES:  # else a character may only have been cut in two
            raise Refusal("system_prompt_encoding", "The system prompt {name} is not a UTF-8 text file. Choose the "
                          "system_prompt.txt that comes with the enhancer.", name=label) from error
    if len(content) > MAX_INSTRUCTION_BYTES:
        raise Refusal("system_prompt_large", "The system prompt {name} is larger than {max} KiB. Choose the "
                      "system_prompt.txt that comes with the enhancer.", name=label, max=MAX_INSTRUCTION_BYTES // 1024)
    if not text:
        raise Refusal("system_prompt_empty", "The system prompt {name} is empty. Choose the system_prompt.txt that "
                      "comes with the enhancer.", name=label)
    return text


def check_text(text: str, what: str) -> None:
    """Refuse what would end the user's turn of the conversation, or claim a picture's place in it."""
    if not text.strip():
        raise Refusal("text_empty", "{field} is empty. Describe what the image should show.", field=what)
    token = re.search(r"<\|\w+\|>", text)
    if token:
        raise Refusal("text_token", "{field} contains {token}, which is reserved by the language model. Remove it.",
                      field=what, token=token[0])


def chat(instruction: str, prompt: str, images: int, image_slot: str, opening: str) -> str:
    """The conversation for models of the Qwen family. image_slot: the tokens that hold an image's place; opening: what
    their own template lets the answer begin with."""
    return (f"<|im_start|>system\n{instruction}<|im_end|>\n"
            f"<|im_start|>user\n{image_slot * images}{prompt}<|im_end|>\n"
            f"<|im_start|>assistant\n{opening}")


def seen_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) at which a reference is shown to the language model: at most 1024^2 pixels, at least 256^2."""
    side = (width * height) ** 0.5
    inside = min(max(side, MIN_SIDE), MAX_SIDE)
    return reference_size(width, height, None if inside == side else int(inside))


# ---------------------------------------------------------------- what of the answer is used

def enhanced(prompt: str, generated: Generated, canvas: tuple[int, int], size_class: int | None,
             references: Sequence[tuple[int, int]] = ()) -> Enhanced:
    """What is drawn instead of `prompt`. canvas: where the answer proposes none, or without a size class none is
    wanted; references: their sizes, pixels."""
    answer = parse(generated)
    if answer is None:
        return Enhanced(prompt, canvas, (_why_not(generated), Message(
            "enhancer_answer", "Answer: {text}", text=_shortened(generated.text))))
    if len(missing := lost(prompt, answer.prompt)) > MAX_PUT_BACK:
        return Enhanced(prompt, canvas, (Message(
            "enhancer_lost_texts", "The original prompt is used: the language model dropped {count} of its quoted "
            "texts. Try another seed.", count=len(missing)),))
    text, *notes = restored(prompt, answer.prompt)
    if answer.mended:
        notes.insert(0, Message("enhancer_mended", "The language model's answer was not valid JSON and was repaired: "
                                "{faults}. Check the prompt before you use it.", faults=list(answer.mended)))
    if size_class is None:
        return Enhanced(text, canvas, tuple(notes))
    proposed, note = proposed_canvas(answer, size_class, references)
    return Enhanced(text, proposed or canvas, (*notes, note))


def _why_not(generated: Generated) -> str:
    if generated.truncated:
        return Message("enhancer_stopped", "The original prompt is used: the language model was stopped after {tokens} "
                       "tokens without an answer. Raise Max tokens.", tokens=generated.tokens)
    return Message("enhancer_no_json", "The original prompt is used: the language model's answer holds no JSON object "
                   "with a rewritten_prompt. Try another seed, or check that model and system prompt belong together.")


def _shortened(text: str) -> str:
    text = text.strip()
    if len(text) <= MAX_SHOWN:
        return text
    return Message("answer_shortened", "{beginning}... ({count} characters)", beginning=text[:MAX_SHOWN],
                   count=len(text))
