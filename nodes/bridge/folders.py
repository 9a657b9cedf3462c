"""Which checkpoints the loaders offer: files and diffusers folders below ComfyUI's model folders."""
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import folder_paths

from ...model.files import INDEX, SHARD

DIFFUSERS = "diffusers"  # ComfyUI's folder for whole pipelines


class Part(NamedTuple):
    """One kind of checkpoint: the ComfyUI folder it lives in, and its subfolder in a diffusers pipeline."""

    folder: str
    subfolder: str


TRANSFORMER = Part("diffusion_models", "transformer")  # ComfyUI's diffusion_models includes the old unet folder
TEXT_ENCODER = Part("text_encoders", "text_encoder")
VAE = Part("vae", "vae")

# Names of the other parts' folders: a pipeline below diffusion_models holds all three.
_SUBFOLDERS = {part.subfolder for part in (TRANSFORMER, TEXT_ENCODER, VAE)}


def choices(part: Part) -> list[str]:
    """Names for the loader's menu: files first, then folders, which end in a slash."""
    files = [name for name in folder_paths.get_filename_list(part.folder)
             if name.lower().endswith(".safetensors") and not SHARD.match(Path(name).name)]
    folders = sorted({f"{folder.relative_to(root).as_posix()}/" for root, folder in _folders(part)})
    inside = tuple(folders)
    return [name for name in files if not Path(name).as_posix().startswith(inside)] + folders


def resolve(part: Part, name: str) -> Path:
    """The path behind a name from `choices`. Raises FileNotFoundError with ComfyUI's own words for files."""
    if not name.endswith("/"):
        return Path(folder_paths.get_full_path_or_raise(part.folder, name))
    for root, folder in _folders(part):
        if f"{folder.relative_to(root).as_posix()}/" == name:
            return folder
    raise FileNotFoundError(f"The model folder {name} is no longer there.")


def _folders(part: Part) -> Iterator[tuple[Path, Path]]:
    """(model folder, checkpoint folder) of every diffusers folder that may hold this part."""
    for kind in dict.fromkeys((part.folder, DIFFUSERS)):
        known = kind in folder_paths.folder_names_and_paths
        for root in map(Path, folder_paths.get_folder_paths(kind) if known else ()):
            for folder in sorted({marker.parent for marker in (*root.rglob("config.json"), *root.rglob("*" + INDEX))}):
                other_part = folder.name in _SUBFOLDERS - {part.subfolder}
                elsewhere = kind == DIFFUSERS and folder.name != part.subfolder
                if folder != root and not other_part and not elsewhere and any(folder.glob("*.safetensors")):
                    yield root, folder
