"""Gives out jobs, stores what comes back, tries again what a worker has lost, and stops in order."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from qwen_image_2 import atomic

from ..cli import output
from ..cli.errors import UserError
from . import machines
from .journal import DONE, FAILED, Journal
from .plan import Job, Plan
from .pools import Pool
from .summary import thumbnail
from .worker import DRAWN, LOST, Outcome

TRIES = 3  # of a row whose worker has ended
COUNTER = re.compile(r"_\d{5,}_?(?=\.[^.]+$)")  # what ComfyUI's savers add to a name


@dataclass
class Counts:
    """Rows of the table: drawn before this run, in this run, failed in it."""

    total: int
    before: int = 0
    drawn: int = 0
    failed: int = 0
    begin: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> int:
        return self.total - self.before - self.drawn - self.failed

    @property
    def per_minute(self) -> float:
        """Rows that have ended in this run."""
        return 60 * (self.drawn + self.failed) / max(1e-9, time.monotonic() - self.begin)


class Stop:
    """The first Ctrl-C lets the rows in hand end, the second one ends everything at once."""

    def __init__(self, say) -> None:
        self.asked, self.say = False, say

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        earlier = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, earlier)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.say("Stopping after the rows in hand; Ctrl-C once more stops at once.")


class Driver:
    """One run over a table."""

    def __init__(self, plan: Plan, pool: Pool, journal: Journal, stop: Stop, show) -> None:
        self.plan, self.pool, self.journal, self.stop, self.show = plan, pool, journal, stop, show
        self.counts = Counts(len(plan.rows.rows))
        self.again: deque[Job] = deque()  # lost by a worker, to be tried elsewhere
        self.in_hand = 0
        self.keys: list[str] = []  # of the rows that have come up, in their order
        self.machines: dict[str, dict[str, str]] = {}  # what each worker's machine has

    @property
    def entries(self) -> list[dict]:
        """What the journal says of the rows that have come up."""
        return [entry for key in self.keys if (entry := self.journal.entries.get(key))]

    def run(self) -> Counts:
        """Draw what is not drawn yet. Raises WriteError where the disk is full, and UserError where machines differ or
        no worker is left; what was done until then is on disk."""
        jobs = self._jobs()
        following = next(jobs, None)
        if following:  # or all is done, and nobody has to start
            self.machines = self.pool.open()
            machines.compare(self.machines)
            self.pool.start()
            self.counts.begin = time.monotonic()
        while self.in_hand or ((self.again or following) and not self.stop.asked):
            while self.pool.idle() and not self.stop.asked and (self.again or following):
                if self.again:
                    job = self.again.popleft()
                else:
                    job, following = following, next(jobs, None)
                self.pool.give(job)
                self.in_hand += 1
            for job, outcome, worker in self.pool.next():
                self.in_hand -= 1
                self._take(job, outcome, worker)
            self.show(self.counts)
        return self.counts

    def _jobs(self) -> Iterator[Job]:
        """What is to be drawn; the graph of a row is made when its turn comes."""
        for row in self.plan.rows.rows:
            try:
                job = self.plan.job(row)
            except UserError as error:
                self.keys.append(f"row {row.number}")
                self._fail(self.keys[-1], row.number, str(error))
                continue
            self.keys.append(job.key)
            if self.journal.done(job.key):
                self.counts.before += 1
            else:
                yield job

    def _take(self, job: Job, outcome: Outcome, worker: str) -> None:
        if outcome.kind == DRAWN:
            self._store(job, outcome, worker)
        elif outcome.kind == LOST:
            job = replace(job, lost=(*job.lost, (worker, outcome.sentence)))
            if len(job.lost) < TRIES:
                self.again.append(job)
            else:
                self._fail(job.key, job.number, f"{TRIES} workers ended while they drew this row: {outcome.sentence}")
        else:
            self._fail(job.key, job.number, outcome.sentence)

    def _fail(self, key: str, number: int, sentence: str) -> None:
        self.journal.add(key, {"row": number, "state": FAILED, "message": sentence})
        self.counts.failed += 1

    def _store(self, job: Job, outcome: Outcome, worker: str) -> None:
        """The row's files and its line: first all files under other names, then the line, then their own names."""
        if not outcome.files:
            raise UserError(f"Row {job.number}: the workflow has saved no files, so no row would be kept.")
        entry = {"row": job.number, "state": DONE, "files": [], "seconds": round(outcome.seconds, 3), "worker": worker,
                 "tries": len(job.lost) + 1}
        entry |= {name: list(value) for name in ("notes", "lines") if (value := getattr(outcome, name))}
        with contextlib.ExitStack() as unfinished:
            for name, content in self._named(job, outcome):
                path = self._unused(name, entry["files"])
                entry["files"].append(path.name)
                file = unfinished.enter_context(atomic.unfinished(path))
                with atomic.write_errors(path):
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            self.journal.add(job.key, entry)
        self.counts.drawn += 1
        for name in entry["files"]:
            thumbnail(self.journal.folder, name)

    def _named(self, job: Job, outcome: Outcome) -> Iterator[tuple[str, bytes]]:
        for file in outcome.files:
            name = Path(COUNTER.sub("", Path(file.name).name))
            number = f"_{job.number:05}" if self.plan.named_by_row(file.node) else ""
            yield f"{name.stem}{number}{name.suffix}", file.content

    def _unused(self, name: str, taken: list[str]) -> Path:
        """Nothing that is in the folder is overwritten, and no other file of the row."""
        wanted, number = Path(name), 2
        path = output.unused_name(self.journal.folder, name)
        while path.name in taken:
            path = output.unused_name(self.journal.folder, f"{wanted.stem}-{number}{wanted.suffix}")
            number += 1
        return path
