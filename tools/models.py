"""Which model files a command works with: a given folder, ComfyUI's own, the trained miniature, or random weights."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from . import process
from .environment import ROOT, Say, cache_folder
from .errors import UserError
from .server import MODEL_FOLDERS
from .workflow import MODEL_FILES

MINIATURE = ROOT / "assets" / "miniature"
TINY = ROOT / "tools" / "tiny.py"


def given(folder: Path) -> Path:
    """The folder of --models, after checking that it is laid out as ComfyUI expects."""
    if not any((folder / name).is_dir() for name in MODEL_FOLDERS):
        raise UserError(f"{folder} has none of the folders {', '.join(MODEL_FOLDERS)}.")
    return folder.absolute()


def of_comfyui(comfyui: Path) -> Path | None:
    """ComfyUI's own models folder if a model lies in it."""
    files = (file for name in MODEL_FOLDERS for file in (comfyui / "models" / name).rglob("*"))
    return comfyui / "models" if any(file.suffix.lower() in MODEL_FILES for file in files) else None


def shipped(say: Say) -> Path:
    """The trained miniature; while there is none, a tiny checkpoint with random weights, which draws noise."""
    if MINIATURE.is_dir():
        return MINIATURE
    say("No trained checkpoint is at hand: a tiny one with random weights is used, so the picture will be noise.")
    return tiny_checkpoint(say)


def tiny_checkpoint(say: Say) -> Path:
    """Folder of the tiny random checkpoint, written once per version of the code; there whole or not at all."""
    if not TINY.exists():
        raise UserError(f"{TINY} is missing, which writes the tiny checkpoint; choose model files with --models.")
    sources = [TINY, *sorted((ROOT / "model").glob("*.py"))]  # the networks decide the names and shapes in it
    folder = cache_folder() / "tiny" / hashlib.sha256(b"".join(map(Path.read_bytes, sources))).hexdigest()[:16]
    if not folder.exists():
        say("Writing the tiny checkpoint (once).")
        folder.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(folder)
    return folder


def _write_whole(folder: Path) -> None:
    unfinished = Path(tempfile.mkdtemp(prefix=folder.name + ".part-", dir=folder.parent))
    try:
        _write_tiny(unfinished)
        if not folder.exists():  # another process may have been faster
            os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_tiny(folder: Path) -> None:
    """Run tools/tiny.py in a process of its own: it imports torch, which this one has no use for."""
    code, printed = process.run_captured([sys.executable, "-m", "tools.tiny", folder], cwd=ROOT)
    if code != 0:
        reason = (printed.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"The tiny checkpoint could not be written: {reason}", printed)
