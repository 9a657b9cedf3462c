"""Thousands of inputs of one kind, in a process that is ended where an input takes too long, and started again."""
import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..pack import ROOT
from .attempt import FAILED, REFUSED, TAKEN, Limits, Outcome

KINDS = "qwen_image_2.tools.attacks.kinds"
START_SECONDS = 300  # in which ComfyUI is imported and the kind is made ready, on a slow machine
GRACE = 2            # seconds that a slow input has more, so that it can be told how long it takes
MAX_FAULTS = 20     # of one kind that are listed; the rest is counted
CHILD = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from pack import load_pack
sys.path.pop(0)
load_pack()
from qwen_image_2.tools.attacks.worker import main
main()
"""


@dataclass
class Record:
    """What became of the inputs of a kind. faults: number of an input -> what is wrong with it."""

    name: str
    tried: int = 0
    results: dict[str, int] = field(default_factory=lambda: {TAKEN: 0, REFUSED: 0, FAILED: 0})
    worst: float = 0.0
    growth: int = 0
    longest: int = 0
    faults: dict[int, list[str]] = field(default_factory=dict)

    def add(self, outcome: Outcome, limits: Limits) -> None:
        self.tried += 1
        faults = outcome.faults(limits)
        self.results[FAILED if faults else outcome.result] += 1
        self.worst = max(self.worst, outcome.seconds)
        self.longest = max(self.longest, outcome.longest)
        self.growth = max(self.growth, outcome.growth or 0)
        if faults:
            self.faults[outcome.number] = faults


def attacked(name: str, seed: int, numbers: range, limits: Limits, module: str = KINDS) -> Record:
    """Inputs of these numbers; one that was slow is tried again."""
    record, next_one = Record(name), numbers.start
    while next_one < numbers.stop:
        for outcome in _outcomes(module, name, seed, range(next_one, numbers.stop), limits):
            if outcome.seconds > limits.seconds:
                # With other work on the machine one slow try says little, and so does one that was ended.
                again = next(_outcomes(module, name, seed, range(outcome.number, outcome.number + 1), limits))
                outcome = min(outcome, again, key=lambda found: found.seconds)
            record.add(outcome, limits)
            next_one = outcome.number + 1
            if (outcome.growth or 0) > limits.growth:
                break  # what has stayed would be held against all that follow: they get a process of their own
    return record


def _outcomes(module: str, name: str, seed: int, numbers: range, limits: Limits) -> Iterator[Outcome]:
    """Up to the first input that ends the process, or for which it has to be ended."""
    with tempfile.TemporaryDirectory(prefix="qwen-image-2-attack-") as folder:  # the process may not come to its end
        command = [sys.executable, "-I", "-c", CHILD, str(ROOT / "tools"), module, folder, name, str(seed),
                   str(numbers.start), str(len(numbers))]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(child, lines), daemon=True).start()
        try:
            for number in numbers:
                if _next(lines, START_SECONDS) is None:
                    raise RuntimeError(f"The process that attacks {name} did not start, or was lost before input "
                                       f"{number}.")
                answer = _next(lines, limits.seconds + GRACE)
                if answer is None:
                    yield _lost(child, number, limits)
                    return
                yield Outcome(**json.loads(answer))
        finally:
            child.kill()
            child.wait()


def _read(child: subprocess.Popen, lines: queue.Queue) -> None:
    for line in child.stdout:
        lines.put(line)
    lines.put(None)


def _next(lines: queue.Queue, seconds: float) -> str | None:
    """The next line; None where there is none in time, or no more."""
    try:
        return lines.get(timeout=seconds)
    except queue.Empty:
        return None


def _lost(child: subprocess.Popen, number: int, limits: Limits) -> Outcome:
    """An input after which nothing came: it still runs, or has taken the process with it."""
    try:
        code = child.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return Outcome(number, FAILED, limits.seconds + GRACE, why="It had to be ended.")
    return Outcome(number, FAILED, why=f"It ended the whole process (exit code {code}).")
