"""Loading a checkpoint of 4 GB: seconds and peak memory, each measured in a process of its own.

    python benchmarks/loading.py WAY cold|warm FILE THREADS     # one such process; prints JSON
"""
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from bootstrap import ROOT  # noqa: F401  first, it makes the pack importable
from safetensors.torch import load_file
from timing import Budget, Comparison, Cost, cost_of, of_costs

from qwen_image_2.model import checkpoint, layouts
from qwen_image_2.model.files import open_checkpoint
from qwen_image_2.model.spec import TransformerSpec
from qwen_image_2.model.transformer import Transformer
from qwen_image_2.tools import tiny

SPEC = TransformerSpec(layers=9)  # of the published width: 4.2 GB in bf16
SETTING = f"synthetic checkpoint, dim {SPEC.dim}, {SPEC.layers} layers, bf16, gate and projection fused; a process each"
# One round. How fast a system refills its cache depends on what ran before (up to twofold, measured on a virtual
# machine), so the same run stands before each cold one; of runs named twice the later one counts.
ORDER = ("ours, warm", "ours, cold", "ours, warm", "plain_and_read, cold", "plain_and_read, warm", "plain, warm")
NOISE_VALUES = 2**25  # written over and over: the values have no influence on the time


# ---------------------------------------------------------------- the ways to load

def ours(path: Path) -> Transformer:
    """Detection, strict matching, and the check of every value for NaN and infinity."""
    files = open_checkpoint(path)
    detected = checkpoint.detect_transformer(files.tensors, files.config, files.label)
    model = Transformer(detected.spec, device="meta")
    checkpoint.load(model, detected, files, torch.bfloat16)
    return model


def plain(path: Path) -> Transformer:
    """What safetensors and PyTorch do on their own; the values stay on the disk until somebody reads them."""
    state = load_file(path)
    for name in [name for name in state if layouts.FUSED_MLP in name]:
        halves = state.pop(name).chunk(2)
        state.update({name.replace(layouts.FUSED_MLP, split): rows for split, rows in zip(layouts.SPLIT_MLP, halves)})
    model = Transformer(SPEC, device="meta")
    model.load_state_dict(state, assign=True)
    return model


def plain_and_read(path: Path) -> Transformer:
    """The same, and every value read once in the same manner as ours, as the first step would."""
    model = plain(path)
    for value in model.parameters():
        value.aminmax()
    return model


WAYS: dict[str, Callable[[Path], Transformer]] = {way.__name__: way for way in (ours, plain, plain_and_read)}


# ---------------------------------------------------------------- one measured process

@torch.no_grad()
def measure(way: str, state: str, path: Path) -> dict[str, float | str]:
    """state: "cold" drops the file from the system's cache, here and not earlier: a virtual machine gives memory
    that stays free for seconds back to its host, and getting it again would be measured as loading.
    """
    if state == "cold":
        _forget(path)
    resident, private, read = _memory("VmRSS"), _memory("RssAnon"), _read_from_disk()
    models = []
    cost = cost_of(lambda: models.append(WAYS[way](path)))
    return {
        **cost._asdict(),
        "peak": _memory("VmHWM") - resident,
        "private": _memory("RssAnon") - private,  # what the system cannot drop and read from the file again
        "read": _read_from_disk() - read,
        "digest": digest(models[0]),
    }


def _memory(field: str) -> int:
    """Bytes, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _read_from_disk() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def digest(model: Transformer) -> str:
    """Exact sums of the bits of a part of each parameter: equal for equal values in the right places."""
    return ",".join(f"{name}={value.flatten()[::97].view(torch.int16).sum(dtype=torch.int64)}"
                    for name, value in sorted(model.named_parameters()))


# ---------------------------------------------------------------- the file

def write_checkpoint(path: Path) -> None:
    """Comfy-Org's layout, written piece by piece: the file is never whole in memory."""
    shapes = {name: list(value.shape)
              for name, value in tiny.to_comfy_transformer(Transformer(SPEC, device="meta").state_dict()).items()}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = torch.randn(NOISE_VALUES, generator=torch.Generator().manual_seed(0)) * 0.02
    noise = memoryview(noise.bfloat16().view(torch.uint8).numpy())
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, shape in enumerate(shapes.values()):
            for piece in _pieces(noise, start=2 * 7919 * number, length=2 * math.prod(shape)):
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())  # pages not yet on the disk cannot be dropped from the cache


def _pieces(noise: memoryview, start: int, length: int) -> Iterator[memoryview]:
    """`length` bytes of the endless repetition of the noise, from byte `start`, so that no two tensors are equal."""
    while length:
        start %= len(noise)
        piece = noise[start:start + length]
        yield piece
        start, length = start + len(piece), length - len(piece)


def _forget(path: Path) -> None:
    """Drop the file from the system's page cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ---------------------------------------------------------------- the benchmark

def load(budget: Budget) -> list[Comparison]:
    if not Path("/proc/self/io").exists():
        raise SystemExit("The loading benchmark reads peak memory from /proc and runs on Linux only.")
    with tempfile.TemporaryDirectory(prefix="qwen-image-2-bench-") as folder:
        needed, free = 5e9, shutil.disk_usage(folder).free
        if free < needed:
            raise SystemExit(f"The loading benchmark needs {needed / 1e9:.0f} GB in {folder}, which has "
                             f"{free / 1e9:.1f} GB: set TMPDIR to a folder with more room.")
        path = Path(folder) / "synthetic.safetensors"
        write_checkpoint(path)
        return _comparisons(_rounds(path, budget), path.stat().st_size)


def _rounds(path: Path, budget: Budget) -> list[dict[str, dict]]:
    """Results of each round by "way, state of the cache"."""
    rounds, begin = [], time.perf_counter()
    while budget.allows(len(rounds), time.perf_counter() - begin):
        rounds.append({name: _in_process(name, path) for name in ORDER})
    if len({result["digest"] for results in rounds for result in results.values()}) != 1:
        raise SystemExit("load: the ways loaded different values, so comparing their times would mean nothing.")
    return rounds


def _in_process(name: str, path: Path) -> dict:
    command = [sys.executable, __file__, *name.split(", "), str(path), str(torch.get_num_threads())]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _comparisons(rounds: list[dict[str, dict]], size: int) -> list[Comparison]:
    def time_of(what: str, name: str, other: str, words: str) -> Comparison:
        costs, others = ([Cost(results[key]["seconds"], results[key]["cpu"]) for results in rounds]
                         for key in (name, other))
        return of_costs(what, ("ours", costs), (words, others), error=0.0)

    def share_of_file(what: str, name: str, words: str, field: str, goal: float | None = None) -> Comparison:
        values = tuple((results[name][field], size) for results in rounds)
        return Comparison(what, words, "size of the file", values, unit="B", goal=goal)

    once, never = "safetensors, values read once", "safetensors, no value read"
    return [
        time_of("load, cold", "ours, cold", "plain_and_read, cold", once),
        time_of("load, warm", "ours, warm", "plain_and_read, warm", once),
        time_of("load, warm", "ours, warm", "plain, warm", never),
        share_of_file("load, peak memory", "ours, cold", "ours", "peak", goal=1.15),
        share_of_file("load, peak memory", "plain_and_read, cold", once, "peak"),
        share_of_file("load, private memory after", "ours, cold", "ours", "private"),
        share_of_file("load, read from disk when cold", "ours, cold", "ours", "read"),
    ]


if __name__ == "__main__":
    way, state, file, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps(measure(way, state, Path(file))))
