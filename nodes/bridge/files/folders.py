"""Which checkpoints the loaders offer: files and diffusers folders below ComfyUI's model folders, and the miniature."""
from pathlib import Path, PurePath
from typing import NamedTuple

import folder_paths

from ....messages import Refusal
from ....model.checkpoints.files import INDEX, SHARD, regular_files
from ....model.language import llama_cpp
from . import miniature

DIFFUSERS = "diffusers"  # ComfyUI's folder for whole pipelines


class Part(NamedTuple):
    """One kind of checkpoint: the ComfyUI folder it lives in, and its subfolder in a diffusers pipeline."""

    folder: str
    subfolder: str


TRANSFORMER = Part("diffusion_models", "transformer")  # ComfyUI's diffusion_models includes the old unet folder
TEXT_ENCODER = Part("text_encoders", "text_encoder")
VAE = Part("vae", "vae")
CHECKPOINTS = "checkpoints"  # ComfyUI's folder for files that hold all three

# A pipeline below one of the model folders holds all three.
_PARTS = (TRANSFORMER, TEXT_ENCODER, VAE)
_SUBFOLDERS = {part.subfolder for part in _PARTS}


# ComfyUI lists no .gguf files; entries of our own list them in the same folders. Their set of endings is not shared.
GGUF = "qwen_image_2_gguf_"
GGUF_PARTS = (TRANSFORMER, TEXT_ENCODER)


def file_names(folder: str) -> list[str]:
    """ComfyUI's list of a model folder, without pipes, sockets and devices: to open one of those may wait for ever."""
    return [name for name in folder_paths.get_filename_list(folder)
            if folder_paths.get_full_path(folder, name) is not None]  # None for all but regular files


def _gguf_names(part: Part) -> list[str]:
    folder_paths.folder_names_and_paths[GGUF + part.folder] = (
        folder_paths.folder_names_and_paths[part.folder][0], {".gguf"})
    return file_names(GGUF + part.folder)


def choices(part: Part) -> list[str]:
    """Names for the loader's menu: files, then folders, which end in a slash and stand for their files, then the
    files of ComfyUI's checkpoints folders, which may hold all three parts, and at the end the built-in miniature."""
    folders = checkpoint_folders(part)
    # Files of the other parts of a pipeline are no choices, nor are those that a folder stands for: all but GGUF files.
    others = tuple(name for other in _PARTS if other != part
                   for name in checkpoint_folders(Part(part.folder, other.subfolder))
                   if name.endswith(f"/{other.subfolder}/"))
    files = [name for name in file_names(part.folder)
             if name.lower().endswith(".safetensors") and not SHARD.match(PurePath(name).name)]
    gguf = [name for name in _gguf_names(part) if not llama_cpp.is_projector_name(name)] if part in GGUF_PARTS else []
    whole = [name for name in _whole_checkpoints() if name not in files]
    return [*_outside((*folders, *others), files), *_outside(others, gguf), *sorted(folders), *whole, miniature.NAME]


def _outside(folders: tuple[str, ...], names: list[str]) -> list[str]:
    return [name for name in names if not PurePath(name).as_posix().startswith(folders)]


def _whole_checkpoints() -> list[str]:
    """Names of what lies in ComfyUI's checkpoints folders: files such as Rapid-AIO's and what core's CheckpointSave has
    written, beside those of other models. Which is which stands inside them, and to open all of them for a menu would
    take too long."""
    if CHECKPOINTS not in folder_paths.folder_names_and_paths:
        return []
    return [f"{CHECKPOINTS}/{PurePath(name).as_posix()}" for name in file_names(CHECKPOINTS)
            if name.lower().endswith(".safetensors")]


def projectors() -> list[str]:
    """Names of the vision projectors of GGUF text encoders."""
    return [name for name in _gguf_names(TEXT_ENCODER) if llama_cpp.is_projector_name(name)]


class FolderGone(Refusal):
    """A model folder that was there when the choices were listed."""


def resolve(part: Part, name: str) -> Path:
    """The path behind a name from `choices`. Raises FolderGone or FileNotFoundError for what is no longer there."""
    if name == miniature.NAME:
        return miniature.path(part.folder)
    if name.lower().endswith(".gguf"):
        _gguf_names(part)
        return Path(folder_paths.get_full_path_or_raise(GGUF + part.folder, name))
    if not name.endswith("/"):
        if name.startswith(f"{CHECKPOINTS}/") and folder_paths.get_full_path(part.folder, name) is None:
            return Path(folder_paths.get_full_path_or_raise(CHECKPOINTS, name.removeprefix(f"{CHECKPOINTS}/")))
        return Path(folder_paths.get_full_path_or_raise(part.folder, name))
    folders = checkpoint_folders(part)
    if name not in folders:
        raise FolderGone("folder_gone", "The model folder {folder} no longer exists.", folder=name)
    return folders[name]


def stamp(part: Part, name: str | None) -> list[tuple[str, int, int]]:
    """Name, size and time of the files behind a choice: other ones under the same name are to be loaded anew.

    Empty for what is linked (None) or gone, and for the miniature, which does not change.
    """
    if name in (None, miniature.NAME):
        return []
    try:
        path = resolve(part, name)
        files = sorted(regular_files(path, "*.safetensors")) if path.is_dir() else [path]
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except (FolderGone, FileNotFoundError):  # the run itself will say so
        return []


def checkpoint_folders(part: Part) -> dict[str, Path]:
    """Name with a slash -> path of every folder that is one checkpoint of this part.

    Below the part's own model folder ComfyUI's (cached) file list tells where to look; in a pipeline that lies
    there whole, the other parts' subfolders are left out.
    """
    found = {}
    # One file of each folder is enough to find the folder.
    for parent, name in {PurePath(name).parent: name for name in file_names(part.folder)}.items():
        if parent.name and parent.name not in _SUBFOLDERS - {part.subfolder}:
            path = folder_paths.get_full_path(part.folder, name)
            if path is not None and is_checkpoint(Path(path).parent):
                found[f"{parent.as_posix()}/"] = Path(path).parent
    for root in map(Path, folder_paths.folder_names_and_paths.get(DIFFUSERS, ((), ()))[0]):
        for path in root.glob(f"*/{part.subfolder}"):
            if is_checkpoint(path):
                found.setdefault(f"{path.relative_to(root).as_posix()}/", path)
    return found


def is_checkpoint(folder: Path) -> bool:
    """A folder as diffusers and transformers write it: one checkpoint, described by a config.json or an index."""
    if any(regular_files(folder, "*" + INDEX)):
        return True
    files = [path.name for path in regular_files(folder, "*.safetensors")]
    one = len(files) == 1 or (files and all(SHARD.match(name) for name in files))
    return bool(one) and (folder / "config.json").is_file()
