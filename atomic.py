"""Writes a file completely or not at all: beside its place under another name, which is renamed when all is written.

While it is written, its process holds a lock on it. A killed process leaves the file and loses the lock, by which the
next writer of that name knows that it may remove it. Where a file system has no locks, it stays.

Only the standard library is used, because tools/environment.py runs before anything is installed.
"""
import contextlib
import errno
import itertools
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from .messages import Message, Refusal

try:
    import fcntl
except ModuleNotFoundError:  # Windows, which lets nobody remove an open file
    fcntl = None  # type: ignore[assignment]  # asked for with `is None` before each use

log = logging.getLogger(__name__)

# What mkstemp adds to a name, and what it is between.
PART = r"\.[a-z0-9_]{8}\.part"


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
        _remove_abandoned(path.parent, re.escape(path.name) + PART)
        descriptor, name = _new_part(path)
    try:
        with open(descriptor, "w+b") as file:
            yield file
            with write_errors(path):
                file.flush()
                os.fsync(file.fileno())
                os.chmod(name, 0o666 & ~_umask())  # mkstemp's file is for its owner only
                if fcntl is not None:  # as long as the lock is held
                    os.replace(name, path)
        if fcntl is None:
            with write_errors(path):
                os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def numbered(folder: Path, name: str, first: int, suffixes: Sequence[str]) -> Iterator[list[Path]]:
    """Paths `<name>_<number>_<suffix>`, all with the first unused number from `first` on. Until the block ends no
    other process gets that number. What killed processes have left of that name goes.

    Raises WriteError where the system refuses.
    """
    ending = "|".join(re.escape(suffix) + PART for suffix in suffixes)
    with write_errors(folder / name):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder, rf"{re.escape(name)}_\d{{5,}}_(\.part|{ending})")
    for number in itertools.count(first):
        paths = [folder / f"{name}_{number:05}_{suffix}" for suffix in suffixes]
        with _held(folder / f"{name}_{number:05}_.part") as mine:
            # Another process may have ended with this number before it was held here.
            if mine and not any(map(os.path.lexists, paths)):
                yield paths
                return


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


def _new_part(path: Path) -> tuple[int, str]:
    """An open file beside `path`, locked, and its name."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
        if _lock(descriptor, name):
            return descriptor, name
        os.close(descriptor)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[bool]:
    """An empty file as long as the block lasts, and whether it is this block's: another one may hold it."""
    try:
        with write_errors(path.with_suffix("")):
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    except WriteError as error:
        if not isinstance(error.__cause__, FileExistsError):
            raise
        yield False
        return
    mine = False
    try:
        mine = _lock(descriptor, path)
        yield mine
    finally:
        if fcntl is None:
            os.close(descriptor)
        if mine:
            path.unlink(missing_ok=True)
        if fcntl is not None:
            os.close(descriptor)


def _lock(descriptor: int, name: str | Path) -> bool:
    """Lock an open file until it is closed. False where another process has taken it for an abandoned one, and
    removed it, before it was locked."""
    if fcntl is None:
        return True
    with contextlib.suppress(OSError):  # a file system without locks: then nobody takes it for an abandoned one
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return os.fstat(descriptor).st_nlink > 0


def _remove_abandoned(folder: Path, form: str) -> None:
    """Remove the files whose names have this form and that no process has open for writing."""
    names = re.compile(form)
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if names.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)]
    for path in map(Path, found):
        if _remove_unlocked(path):
            log.info("Removed %s, which a killed process had left.", path.name)


def _remove_unlocked(path: Path) -> bool:
    """Whether the file could be removed: not where it is locked, gone already, or another user's."""
    try:
        if fcntl is None:
            path.unlink()
            return True
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return True
    except OSError:  # whatever the reason: the file is left as it is, and is in nobody's way
        return False


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
