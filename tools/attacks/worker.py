"""The process that tries inputs, one after the other; watch.py starts it, and ends it where one takes too long.

It writes a line before each input, its number, and one after it, the outcome as JSON.
"""
import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path

from . import attempt

WARM_UP = 3  # first inputs, after which what has stayed is taken for libraries and tables: growth begins there


def work(module: str, folder: Path, name: str, seed: int, first: int, count: int, answers) -> None:
    """module: of the kinds, with what they need before any is made. folder: for their files. answers: the file to write
    to."""
    def say(line: object) -> None:
        print(line, file=answers, flush=True)

    kinds = importlib.import_module(module)
    kinds.prepare(folder)
    kind = kinds.KINDS[name](folder)
    before = 0
    for number in range(first, first + count):
        say(number)
        attempt.forget_peak()
        outcome = attempt.attempt(name, kind, seed, number)
        if number < first + WARM_UP:
            before = attempt.resident()
        say(json.dumps(dataclasses.asdict(outcome) | {"growth": max(0, attempt.peak() - before)}))


def main() -> None:
    module, folder, name, *numbers = sys.argv[1:]
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed is no answer
    work(module, Path(folder), name, *map(int, numbers), answers)
