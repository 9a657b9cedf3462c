"""Names of files that nodes write below ComfyUI's output folder."""
from pathlib import Path, PureWindowsPath

import folder_paths

from ...messages import Refusal


def check_name(prefix: str | None) -> None:
    """Raises ValueError for a name that is none, or that would leave ComfyUI's output folder on any system."""
    if prefix is None:
        return
    path = PureWindowsPath(prefix)  # knows both kinds of slashes
    if path.anchor or ".." in path.parts:
        raise Refusal("name_outside", "The name {name} leaves ComfyUI's output folder: choose a name, or folders below "
                      "it and a name.", name=repr(prefix[:80]))
    if not path.name.strip(". ") or prefix.endswith(("/", "\\")) or not prefix.isprintable():
        raise Refusal("name_invalid", "{name} is not a name for files: choose one such as talk, or talks/harbour.",
                      name=repr(prefix[:80]))


def new_path(prefix: str, suffix: str) -> Path:
    """An unused name below the output folder, as core's savers choose it. Raises where it would be outside."""
    place, name, number, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    return Path(place) / f"{name}_{number:05}_{suffix}"
