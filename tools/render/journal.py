"""Which rows are done: one line of JSON for each, written before its files take their names.

A crash between the two leaves a line without its files: that row counts as not drawn, and no file is there twice. A
line that a crash has cut short counts as none.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from qwen_image_2 import atomic

from ..cli.environment import try_lock
from ..cli.errors import UserError

NAME = "render.jsonl"
DONE, FAILED = "done", "failed"


class Journal:
    """The journal of one folder; `opened` below makes one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NAME
        self.entries: dict[str, dict] = {}  # key of a job -> the last that was written of it
        self._read()

    def done(self, key: str) -> bool:
        """Whether the row is drawn and all its files are still there."""
        entry = self.entries.get(key)
        return bool(entry) and entry["state"] == DONE and all((self.folder / name).is_file() for name in entry["files"])

    def add(self, key: str, entry: dict) -> None:
        """On disk when this returns. Raises WriteError."""
        line = json.dumps({"key": key, **entry}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with atomic.write_errors(self.path), open(self.path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.entries[key] = entry

    def _read(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        for line in content.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # cut short, or somebody's edit
                entry = json.loads(line)
                if entry["state"] == FAILED or isinstance(entry["files"], list):
                    self.entries[entry.pop("key")] = entry
        if content and not content.endswith(b"\n"):
            with atomic.write_errors(self.path), open(self.path, "ab") as file:
                file.write(b"\n")  # or the next line would be a part of the one that was cut


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Journal]:
    """The journal of a folder, which no other process may write into until the block ends. Raises UserError."""
    with open(folder / f".{NAME}.lock", "a+b") as lock:
        if not try_lock(lock.fileno()):
            raise UserError(f"Another render writes into {folder} now: wait for it, or choose another --out.")
        yield Journal(folder)
