"""One process that loads a checkpoint and says what it took, as JSON.

    python benchmarks/load_process.py WAY FILE THREADS [--cold] [--digest]

A process of its own for each measurement: memory that an earlier one has used and given back would hide a peak.
"""
import argparse
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from bootstrap import ROOT
from safetensors.torch import load_file
from timing import cost_of
from torch import Tensor

from qwen_image_2.model.checkpoints import loading
from qwen_image_2.model.checkpoints.files import open_checkpoint
from qwen_image_2.model.qwen_image_2.detect import detect_transformer
from qwen_image_2.model.qwen_image_2.transformer import Transformer

SAMPLE_SECONDS = 0.02

Loaded = dict[str, Tensor]  # a state dict, in which packed values and their scales are apart


# ---------------------------------------------------------------- the ways to load

def ours(path: Path) -> Loaded:
    """Detection, strict matching, and the check of every value for NaN and infinity; without ComfyUI."""
    checkpoint = open_checkpoint(path)
    detected = detect_transformer(checkpoint)
    model = Transformer(detected.spec, device="meta")
    loading.load(model, detected, checkpoint, torch.bfloat16)
    return dict(model.named_parameters())


def safetensors(path: Path) -> Loaded:
    """What safetensors does on its own; the values stay on the disk until somebody reads them."""
    return load_file(path)


def safetensors_read(path: Path) -> Loaded:
    """The same, and every value read once in the same manner as ours, as the first step would."""
    state = safetensors(path)
    for value in state.values():
        value.aminmax()
    return state


def by_loader(weight_format: str) -> Callable[[Path], Loaded]:
    """The pack's loader in ComfyUI, with this choice of its weight_format."""
    import_comfyui()
    from qwen_image_2.nodes.bridge.loading import load_model
    return lambda path: load_model(path, path.name, "base", weight_format).model.diffusion_model.state_dict()


def import_comfyui() -> None:
    if "COMFYUI_PATH" not in os.environ:
        raise SystemExit("COMFYUI_PATH must name a ComfyUI tree; `python tools/dev.py bench` sets it.")
    sys.path.remove(str(ROOT))  # its `nodes` would hide ComfyUI's
    sys.path.append(os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args
    args.cpu = not torch.cuda.is_available()
    args.disable_dynamic_vram = True


PLAIN_WAYS = {way.__name__: way for way in (ours, safetensors, safetensors_read)}


# ---------------------------------------------------------------- what it costs

class PrivateMemory(threading.Thread):
    """Looks again and again how much memory is this process's own. The kernel keeps a peak of all memory alone, in
    which pages of mapped files count that it may drop at any time."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.ended = memory("RssAnon"), threading.Event()

    def run(self) -> None:
        while not self.ended.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, memory("RssAnon"))

    def __enter__(self) -> "PrivateMemory":
        self.start()
        return self

    def __exit__(self, *error) -> None:
        self.ended.set()
        self.join()
        self.peak = max(self.peak, memory("RssAnon"))


@torch.no_grad()
def measure(load: Callable[[Path], Loaded], path: Path, cold: bool, compare: bool) -> dict[str, float | str]:
    """Seconds and bytes of loading, then of reading every kept byte once, which some loaders leave to the first step.

    cold: drop the file from the system's cache, here and not earlier: a virtual machine gives memory that stays free
    for seconds back to its host, and getting it again would be measured as loading. compare: add a digest.
    """
    if cold:
        forget(path)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of what was imported is not the loader's
    before, private, read = memory("VmRSS"), memory("RssAnon"), read_from_disk()
    state = {}
    with PrivateMemory() as own:
        cost = cost_of(lambda: state.update(load(path)))
    found = {
        **cost._asdict(),
        "peak": memory("VmHWM") - before,
        "peak_private": own.peak - private,
        "private": memory("RssAnon") - private,
        "read": read_from_disk() - read,
    }
    found |= {
        "touch_seconds": cost_of(lambda: [touch(value) for value in state.values()]).seconds,
        "kept": sum(value.nbytes for value in state.values()),
        "peak_touched": memory("VmHWM") - before,
    }
    return found | ({"digest": digest(state)} if compare else {})


def memory(field: str) -> int:
    """Bytes, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def read_from_disk() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def forget(path: Path) -> None:
    """Drop the file from the system's page cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def touch(value: Tensor) -> None:
    """Read a byte of every page."""
    value.contiguous().view(-1).view(torch.uint8)[::4096].sum()


def digest(state: Loaded) -> str:
    """Exact sums of the bits of a part of each parameter: equal for equal values in the right places."""
    return ",".join(f"{name}={value.flatten().view(torch.uint8)[::97].sum(dtype=torch.int64)}"
                    for name, value in sorted(state.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("way", help=f"{', '.join(PLAIN_WAYS)}, or a weight_format of the loader")
    parser.add_argument("file", type=Path)
    parser.add_argument("threads", type=int)
    parser.add_argument("--cold", action="store_true", help="drop the file from the system's cache first")
    parser.add_argument("--digest", action="store_true", help="add sums of the values, which must be equal")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    load = PLAIN_WAYS.get(chosen.way) or by_loader(chosen.way)
    print(json.dumps(measure(load, chosen.file, chosen.cold, chosen.digest)))


if __name__ == "__main__":
    main()
