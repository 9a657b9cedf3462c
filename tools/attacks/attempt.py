"""One input of one kind, tried: what became of it, how long it took, what was said and what memory it cost."""
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import psutil

from ...messages import MAX_LENGTH, Refusal
from ..cli.errors import UserError

TAKEN, REFUSED, FAILED = "taken", "refused", "failed"
LINES_SHOWN = 12  # of a traceback: its end says where


class TurnedAway(Exception):
    """A refusal that comes as an answer, of a request or of a node's own check. It says what the answer says."""


# What counts as refused. Any other exception is a fault.
REFUSALS = (Refusal, UserError, TurnedAway)


class Kind(NamedTuple):
    """A way into the pack. attack: draws an input. try_it: hands it to the pack as a user would, returns the messages
    that were said, or raises a refusal."""

    attack: Callable[[Random], Any]
    try_it: Callable[[Any], Iterable[str]]


@dataclass(frozen=True)
class Limits:
    """What an input may cost."""

    seconds: float = 5.0
    characters: int = MAX_LENGTH  # of a message
    growth: int = 200_000_000  # bytes of resident memory above those before the first input


@dataclass(frozen=True)
class Outcome:
    """Of the input with this number. why: of a failure, the traceback's end. growth: bytes, None where nothing was
    measured."""

    number: int
    result: str
    seconds: float = 0.0
    longest: int = 0
    growth: int | None = None
    why: str = ""

    def faults(self, limits: Limits) -> list[str]:
        """What is wrong, in sentences; empty for an input that was taken or refused as it should be."""
        found = [self.why] if self.result == FAILED else []
        if self.seconds > limits.seconds:
            found.append(f"It took {self.seconds:.1f} s, more than {limits.seconds:g}.")
        if self.longest > limits.characters:
            found.append(f"A message has {self.longest} characters, more than {limits.characters}.")
        if self.growth is not None and self.growth > limits.growth:
            found.append(f"The memory had grown by {self.growth / 1e6:.0f} MB, more than {limits.growth / 1e6:.0f}.")
        return found


def draw(name: str, kind: Kind, seed: int, number: int):
    """The input of this number: the same whichever inputs were drawn before."""
    return kind.attack(Random(f"{name} {seed} {number}"))


def attempt(name: str, kind: Kind, seed: int, number: int) -> Outcome:
    given = draw(name, kind, seed, number)
    begin = time.perf_counter()
    result, why = TAKEN, ""
    try:
        said = list(kind.try_it(given))
    except REFUSALS as refusal:
        result, said = REFUSED, [str(refusal)]
    except KeyboardInterrupt:
        raise
    except BaseException:  # a panic of a library that is written in Rust is no Exception
        result, said, why = FAILED, [], "\n".join(traceback.format_exc().strip().splitlines()[-LINES_SHOWN:])
    return Outcome(number, result, time.perf_counter() - begin, max(map(len, said), default=0), why=why)


# ---------------------------------------------------------------- memory

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return psutil.Process().memory_info().rss


def forget_peak() -> None:
    if CLEAR.exists():
        CLEAR.write_text("5")


def peak() -> int:
    """The most bytes since forget_peak, where the system keeps them (Linux); elsewhere those of now."""
    if not CLEAR.exists():
        return resident()
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
