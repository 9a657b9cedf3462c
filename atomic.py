"""Writes a file completely or not at all: beside its place under another name, which is renamed when all is written.

Only the standard library is used, because tools/environment.py runs before anything is installed.
"""
import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .messages import Message, Refusal


class WriteError(Refusal):
    """The file could not be written; the message says why, and nothing is left of it. The system's own error is its
    __cause__."""


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path`, open for writing and reading, that takes its place when the block ends well.

    When the block raises, the file goes and what was at `path` stays. Missing folders are made.
    Raises WriteError where the system refuses, and whatever the block raises.
    """
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    try:
        with open(descriptor, "w+b") as file:
            yield file
            with write_errors(path):
                file.flush()
                os.fsync(file.fileno())
        with write_errors(path):
            os.chmod(name, 0o666 & ~_umask())  # mkstemp's file is for its owner only
            os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Inside, an OSError becomes a WriteError about `path`: only for what writes, since reading can fail as well."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = Message("disk_full", "the disk is full") if full else str(error.strerror or error)
        raise WriteError("write_failed", "{file} could not be written: {reason}. Nothing is left of it.",
                         file=path.name, reason=why) from error


def write_by(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Whatever `save` writes into the open file, which it may also read. Raises WriteError and what `save` raises."""
    with unfinished(path) as file, write_errors(path):
        save(file)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content`. Raises WriteError."""
    write_by(path, lambda file: file.write(content))


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
