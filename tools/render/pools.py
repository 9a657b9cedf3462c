"""Who draws next: what the driver asks of its workers, and the one worker that needs no Ray."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Protocol

from .plan import Job
from .worker import Outcome


@dataclass(frozen=True)
class WorkerKind:
    """How a worker is made, on whatever machine: a class of this pack and its arguments."""

    target: str  # "package.module:Class"
    settings: dict = field(default_factory=dict)

    def make(self):
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)(**self.settings)


class Pool(Protocol):
    """Workers that take one job at a time."""

    def open(self) -> dict[str, dict[str, str]]:
        """Make the workers, and say what the machine of each has, by their names."""

    def start(self) -> None:
        """Start what they draw with. Raises ServerError."""

    def idle(self) -> int:
        """How many would take a job now."""

    def give(self, job: Job) -> None:
        """Hand a job to an idle worker."""

    def next(self) -> list[tuple[Job, Outcome, str]]:
        """Wait a moment for jobs that end: each with its outcome and the name of the worker. May be none."""

    def close(self, at_once: bool) -> None:
        """End all workers."""


class Plain:
    """One worker in this process, without Ray."""

    name = "this machine"

    def __init__(self, kind: WorkerKind) -> None:
        self.worker = kind.make()
        self.job: Job | None = None

    def open(self) -> dict[str, dict[str, str]]:
        return {self.name: self.worker.facts()}

    def start(self) -> None:
        self.worker.start()

    def idle(self) -> int:
        return int(self.job is None)

    def give(self, job: Job) -> None:
        self.job = job

    def next(self) -> list[tuple[Job, Outcome, str]]:
        job, self.job = self.job, None
        return [(job, self.worker.draw(job), self.name)] if job else []

    def close(self, at_once: bool) -> None:
        self.worker.stop()
