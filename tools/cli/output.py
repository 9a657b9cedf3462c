"""Writes files whole or not at all, and finds out early when that will not be possible."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path

from qwen_image_2 import atomic

from .errors import UserError

NEEDED_BYTES = 64 * 1024**2  # a 2048 x 2048 RGBA picture is at most 16 MB


def require_writable(folder: Path) -> None:
    """Make `folder` if need be, and refuse one where a picture cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"Nothing can be written into {folder}: {error.strerror}.") from error
    if free < NEEDED_BYTES:
        raise UserError(f"The disk of {folder} is full ({free / 1e6:.0f} MB free).")


def write_whole(file: Path, content: bytes) -> None:
    """Write under a temporary name, then rename: an old file stays until the new one is complete."""
    try:
        atomic.write_bytes(file, content)
    except atomic.WriteError as error:
        cause = error.__cause__
        full = " (the disk is full)" if cause.errno == errno.ENOSPC else ""
        raise UserError(f"{file} cannot be written: {cause.strerror or cause}{full}.") from error


def unused_name(folder: Path, filename: str) -> Path:
    """A path in `folder` that does not exist yet: `filename`, or with -2, -3, ... before its suffix."""
    wanted = folder / Path(filename).name
    path, number = wanted, 2
    while path.exists():
        path = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        number += 1
    return path
