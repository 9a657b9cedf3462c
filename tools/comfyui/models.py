"""Which model files a command works with: a given folder, ComfyUI's own, or none, which means the miniature."""

from __future__ import annotations

from pathlib import Path

from ..cli.errors import UserError
from .server import MODEL_FOLDERS
from .workflow import MODEL_FILES


def given(folder: Path) -> Path:
    """The folder of --models, after checking that it is laid out as ComfyUI expects."""
    if not any((folder / name).is_dir() for name in MODEL_FOLDERS):
        raise UserError(f"{folder} has none of the folders {', '.join(MODEL_FOLDERS)}.")
    return folder.absolute()


def of_comfyui(comfyui: Path) -> Path | None:
    """ComfyUI's own models folder if a model lies in it."""
    files = (file for name in MODEL_FOLDERS for file in (comfyui / "models" / name).rglob("*"))
    return comfyui / "models" if any(file.suffix.lower() in MODEL_FILES for file in files) else None
