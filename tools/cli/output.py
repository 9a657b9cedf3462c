"""Writes files whole or not at all, and finds out early when that will not be possible."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

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
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".part", dir=file.parent)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}.") from error
    try:
        with open(descriptor, "wb") as stream:
            stream.write(content)
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's file is for its owner only
        os.replace(name, file)
    except OSError as error:
        full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
        raise UserError(f"{file} cannot be written: {error.strerror}{full}.") from error
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def unused_name(folder: Path, filename: str) -> Path:
    """A path in `folder` that does not exist yet: `filename`, or with -2, -3, ... before its suffix."""
    wanted = folder / Path(filename).name
    path, number = wanted, 2
    while path.exists():
        path = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        number += 1
    return path
