"""The process that tries inputs, one after the other; watch.py starts it, and ends it where one takes too long.

It writes a line before each input, its number, and one after it, the outcome as JSON.
"""
import dataclasses
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

from . import attempt

WARM_UP = 3  # inputs before the first that is measured: what they load stays


def import_comfyui(folder: Path) -> None:
    """ComfyUI on the CPU, which writes below `folder` alone. The pack's root must not be on sys.path."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args
    args.cpu = True
    args.disable_dynamic_vram = True
    import folder_paths
    for set_directory in (folder_paths.set_user_directory, folder_paths.set_temp_directory,
                          folder_paths.set_output_directory, folder_paths.set_input_directory):
        place = folder / set_directory.__name__
        place.mkdir()
        set_directory(str(place))


def work(module: str, name: str, seed: int, first: int, count: int, answers) -> None:
    """answers: the file to write to."""
    def say(line: object) -> None:
        print(line, file=answers, flush=True)

    with tempfile.TemporaryDirectory(prefix="qwen-image-2-attack-") as folder:
        import_comfyui(Path(folder))
        kind = importlib.import_module(module).KINDS[name](Path(folder))
        for number in range(WARM_UP):
            attempt.attempt(f"warm-up {name}", kind, seed, number)
        before = attempt.resident()
        for number in range(first, first + count):
            say(number)
            attempt.forget_peak()
            outcome = attempt.attempt(name, kind, seed, number)
            say(json.dumps(dataclasses.asdict(outcome) | {"growth": max(0, attempt.peak() - before)}))


def main() -> None:
    module, name, *numbers = sys.argv[1:]
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed is no answer
    work(module, name, *map(int, numbers), answers)
