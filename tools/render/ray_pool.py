"""Workers as actors of Ray: each owns a card, or its share of the CPUs, and one ComfyUI server there."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import socket
import subprocess
import sys
import time

from ..cli.errors import UserError
from ..comfyui.server import ServerError
from ..pack import ROOT
from .plan import Job
from .pools import WorkerKind
from .worker import LOST, Outcome

PATIENCE = 8.0  # seconds that a machine has to accept a connection
CHECK = 60.0  # seconds that Ray itself has to say whether what listens there is one; it takes some to be imported
WITHOUT_WORKERS = 120.0  # seconds without any worker, after which the driver stops
OBJECTS = 2 ** 28  # bytes of Ray's store on this machine: a row's files at a time for each worker go through it
QUIET = {"RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
         "RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def require_ray() -> None:
    """Raises UserError with the install command where Ray is not there."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(f'--workers and --ray need Ray, which is not installed: {sys.executable} -m pip install '
                        '"ray[default]". Without them one worker draws on this machine.')


def require_answer(address: str) -> None:
    """Raises UserError where no Ray cluster answers at HOST:PORT, or ray://HOST:PORT: where nobody listens within
    PATIENCE seconds, or what does is something else."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--ray {address}: expected HOST:PORT of the cluster's head, as `ray start --head` says it.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise _nobody(address, str(getattr(error, "strerror", None) or error)) from error
    if not address.startswith("ray://") and not _is_healthy(address):
        raise _nobody(address, "something listens, but it is no Ray cluster")


def _nobody(address: str, reason: str) -> UserError:
    return UserError(f"--ray {address}: no Ray cluster answers there ({reason}). Start it with `ray start --head`, and "
                     "look at the address that this prints.")


def _is_healthy(address: str) -> bool:
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        return subprocess.run(command, capture_output=True, timeout=CHECK, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _actor_class():
    import ray
    import ray.cloudpickle

    from . import actor
    ray.cloudpickle.register_pickle_by_value(actor)
    return ray.remote(actor.Actor)


class RayPool:
    """Actors on this machine (address None) or on a cluster. workers None: one for each card, or each machine."""

    def __init__(self, kind: WorkerKind, workers: int | None, address: str | None) -> None:
        self.kind, self.workers, self.address = kind, workers, address
        self.actors: dict[str, object] = {}  # by the worker's name
        self.ready: list[str] = []  # workers without a job
        self.starting: dict[object, str] = {}  # start calls -> worker
        self.running: dict[object, tuple[str, Job]] = {}  # draw calls -> worker and its job
        self.failed: dict[str, str] = {}  # workers that did not start again -> why
        self.seen = time.monotonic()  # when there was a worker

    def open(self) -> dict[str, dict[str, str]]:
        import ray
        self._connect()
        names, share = self._names_and_share()
        made = _actor_class().options(max_restarts=-1, max_task_retries=0, scheduling_strategy="SPREAD", **share)
        arguments = str(ROOT), self.kind.target, self.kind.settings
        self.actors = {name: made.remote(*arguments) for name in names}
        return dict(zip(names, ray.get([each.facts.remote() for each in self.actors.values()])))

    def start(self) -> None:
        import ray
        sentences = ray.get([each.start.remote() for each in self.actors.values()])
        for name, sentence in zip(self.actors, sentences):
            if sentence:
                raise ServerError(f"{name}: {sentence}")
        self.ready = list(self.actors)

    def idle(self) -> int:
        return len(self.ready)

    def give(self, job: Job) -> None:
        """To a worker that has not lost this job before, where there is one."""
        before = {name for name, _ in job.lost}
        name = next((name for name in self.ready if name not in before), self.ready[0])
        self.ready.remove(name)
        self.running[self.actors[name].draw.remote(job)] = name, job

    def next(self) -> list[tuple[Job, Outcome, str]]:
        import ray
        waited = [*self.running, *self.starting]
        ended = []
        for reference in ray.wait(waited, num_returns=1, timeout=0.5)[0] if waited else ():
            if reference in self.starting:
                self._started(reference)
            else:
                name, job = self.running.pop(reference)
                ended.append((job, self._outcome(reference, name), name))
        if not ended:
            self._require_some()
        return ended

    def close(self, at_once: bool) -> None:
        import ray
        if not ray.is_initialized():
            return
        stops = [] if at_once else [each.stop.remote() for each in self.actors.values()]
        if stops:
            ray.wait(stops, num_returns=len(stops), timeout=20)
        for each in self.actors.values():
            ray.kill(each)
        ray.shutdown()

    def _connect(self) -> None:
        import ray
        os.environ.update(QUIET)
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if self.address is None:
                ray.init(address="local", include_dashboard=False, object_store_memory=OBJECTS, **quiet)
            else:
                require_answer(self.address)
                ray.init(address=self.address, **quiet)
        except UserError:
            raise
        except Exception as error:  # Ray raises nothing narrower for a node that takes too long to start
            raise UserError(f"Ray did not start: {error}") from error

    def _names_and_share(self) -> tuple[list[str], dict[str, float]]:
        """The workers' names, and what each owns: a card where there are any, else its share of the CPUs."""
        import ray
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cards, cores = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("GPU", "CPU"))
        count = self.workers or cards or len(nodes)
        there, what = (cards, "graphics cards") if cards else (cores, "CPU cores and no graphics card")
        if count > there:
            raise UserError(f"--workers {count}: Ray finds {there} {what}, and each worker owns one; ask for "
                            f"{there} or fewer.")
        beside = math.ceil(count / len(nodes))  # workers on a machine without cards
        # Ray tells an actor's programs, by OMP_NUM_THREADS, to compute on so many cores.
        each = min(node.get("CPU", 1) // (node.get("GPU", 0) if cards else beside)
                   for node in nodes if node.get("GPU", 0) or not cards)
        return [f"worker {number}" for number in range(1, count + 1)], {"num_cpus": max(1, int(each)),
                                                                        "num_gpus": int(cards > 0)}

    def _started(self, reference: object) -> None:
        """A worker that was lost is back, or has failed to come back and is given up."""
        import ray
        name = self.starting.pop(reference)
        try:
            sentence = ray.get(reference)
        except ray.exceptions.RayError:
            self._start_again(name)  # it was lost once more
            return
        if sentence:
            self.failed[name] = sentence
        else:
            self.ready.append(name)

    def _start_again(self, name: str) -> None:
        """Ray makes the actor anew where there is room; the call waits for it."""
        self.starting[self.actors[name].start.remote()] = name

    def _outcome(self, reference: object, name: str) -> Outcome:
        import ray
        try:
            outcome = ray.get(reference)
        except ray.exceptions.RayTaskError as error:  # ComfyUI did not start again, or a mistake of this pack's
            self.failed[name] = str(error.cause)
            return Outcome(LOST, str(error.cause))
        except ray.exceptions.RayError as error:  # the actor, or its machine, has died
            self._start_again(name)
            return Outcome(LOST, f"the worker ended ({type(error).__name__})")
        self.ready.append(name)
        return outcome

    def _require_some(self) -> None:
        """Raises UserError where no worker is left, or none has come back for long."""
        now = time.monotonic()
        if self.ready or self.running:
            self.seen = now
        elif not self.starting:
            raise UserError(f"No worker is left: {next(iter(self.failed.values()), 'all have ended')}")
        elif now - self.seen > WITHOUT_WORKERS:
            raise UserError(f"No worker has come back for {WITHOUT_WORKERS:.0f} s; the cluster has no room for one.")
