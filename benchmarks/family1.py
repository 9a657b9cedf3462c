"""Qwen-Image 1.x: a step beside diffusers, loading a file of fp8, bytes on the device, and where ComfyUI's own differs.

    python tools/dev.py bench family1 [--small] [--only SECTION] [--layers N] [--folder DIR] [--save]

step: seconds of a step at a small width, interleaved with diffusers'; with a ratio below 1 the pack needs less. core:
ComfyUI's own network, schedule and guidance beside the pack's, and how far each is from diffusers. bytes: counted at
the published size, without computing. load: a plain cast to fp8 of the published width, in a process of its own; with
--layers 60 it has the published 20.4 GB.
"""
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import core_process
import load
import report
import steps_1
import synthetic
import torch
from timing import Budget, Comparison

from qwen_image_2.model.qwen_image_1.modulation import PARTS
from qwen_image_2.model.qwen_image_1.spec import TransformerSpec
from qwen_image_2.model.qwen_image_1.transformer import Transformer

LAYERS = 11  # of the file to load, at the published width: 3.8 GB
SMALL = TransformerSpec(layers=2, dim=512, heads=4, mlp_dim=2048, context_dim=512)
BUDGET, QUICK = Budget(rounds=31, seconds=40, least=15), Budget(rounds=3, seconds=6, least=1)
BYTES = {"bf16": 2, "fp8, plain cast": 1}


class Size(NamedTuple):
    """small: whether everything that can be is tiny. layers: of the file to load. folder: for that file."""

    small: bool
    layers: int
    folder: Path | None


# ---------------------------------------------------------------- step

def step(size: Size) -> report.Found:
    """Text to image, and an edit whose reference is modulated at t = 0."""
    cases = {"text to image": steps_1.SPEC, "edit with one reference": steps_1.EDIT_SPEC}
    cases = {name: replace(spec, layers=1 if size.small else spec.layers) for name, spec in cases.items()}
    comparisons = [one for name, spec in cases.items()
                   for one in steps_1.compared(f"step, {name}", spec, QUICK if size.small else BUDGET)]
    return report.Found([asdict(one) | measures(one) for one in comparisons],
                 f"{report.listing({name: steps_1.setting(spec) for name, spec in cases.items()})}\n\n"
                 f"{report.table(comparisons)}")


def measures(one: Comparison) -> dict:
    return {"ratio": one.ratio, "cpu_ratio": one.cpu_ratio, "met": one.met}


# ---------------------------------------------------------------- core

def core(size: Size) -> report.Found:
    command = [sys.executable, core_process.__file__, str(torch.get_num_threads()), *["--small"][:size.small]]
    rows = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    table = [("what", "ComfyUI's setting", "the pack", "ComfyUI"),
             *((row["what"], row["core_setting"], f"{row['ours']:.0e}", f"{row['core']:.1e}") for row in rows)]
    about = ("Differences from diffusers, in fp32 but where another dtype is named: of sigmas the largest one, of "
             "everything else as a fraction of the largest value. The weights are random, 2 blocks of width 256; the "
             f"numbers of tokens are {'small' if size.small else 'the real ones'}.")
    return report.Found(rows, f"{about}\n\n{report.aligned(table)}")


# ---------------------------------------------------------------- bytes

def on_device(size: Size) -> report.Found:
    """At the published size, whatever else is small."""
    network, spec = Transformer(TransformerSpec(), device="meta"), TransformerSpec()
    whole = sum(value.numel() for value in network.state_dict().values())
    moving = sum(parameter.numel() for parameter in network.parameters())
    rows = {name: (each * whole, each * moving) for name, each in BYTES.items()}
    table = 2 * spec.layers * 2 * PARTS * spec.dim  # in bf16
    text = report.aligned([
        ("weights", "with modulation", "on the device, modulation apart"),
        *((name, *(f"{count / 1e9:.2f} GB" for count in counts)) for name, counts in rows.items())])
    return report.Found({"bytes": rows, "parameters": (whole, moving), "table": table},
                 f"{text}\n\nModulation of one sigma, for all blocks, in bf16: {table / 1e6:.2f} MB.")


# ---------------------------------------------------------------- load

def loading(size: Size) -> report.Found:
    load.require_linux()
    spec = SMALL if size.small else TransformerSpec(layers=size.layers)
    with tempfile.TemporaryDirectory(prefix="qwen-image-2-bench-", dir=size.folder) as place:
        path = Path(place) / "synthetic.safetensors"
        synthetic.write_fp8_1(path, spec)
        found = load.in_process("as stored", path, "--cold") | {"file": path.stat().st_size}
    whole = sum(value.numel() for value in Transformer(TransformerSpec(), device="meta").state_dict().values())
    text = report.aligned([("read from disk", *load.COLUMNS), (f"{found['read'] / 1e9:.2f} GB",
                                                               *load.row("fp8, plain cast", found))])
    return report.Found(found | {"layers": spec.layers}, text + scaled(found, whole) * (not size.small))


def scaled(found: dict, whole: int) -> str:
    """What the published file would take, by its bytes."""
    times = whole / found["file"]
    return (f"\n\nScaled by bytes to the {whole / 1e9:.1f} GB of the published file (not measured): "
            f"{found['seconds'] * times:.0f} s, of them {found['cpu'] * times:.0f} s of CPU time.")


SECTIONS: dict[str, Callable[[Size], report.Found]] = {
    "step": step, "core": core, "bytes": on_device, "load": loading}


@torch.no_grad()
def main() -> None:
    parser = report.parser("family1", __doc__, "the whole run")
    parser.add_argument("--small", action="store_true", help="a miniature size, in seconds: does it run")
    parser.add_argument("--only", choices=SECTIONS, help="one section")
    parser.add_argument("--layers", type=int, default=LAYERS, help="blocks of the file to load (%(default)s)")
    parser.add_argument("--folder", type=Path, help="for the file to load (a temporary folder)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: %(default)s)")
    chosen = parser.parse_args()
    if chosen.save and (chosen.small or chosen.only or chosen.layers != LAYERS):
        parser.error("--save keeps whole runs, without --small, --only and --layers.")
    if chosen.folder and not chosen.folder.is_dir():
        parser.error(f"--folder {chosen.folder} is no folder.")
    if "COMFYUI_PATH" not in os.environ:
        raise SystemExit("COMFYUI_PATH must name a ComfyUI tree; `python tools/dev.py bench` sets it.")
    torch.set_num_threads(chosen.threads)
    size = Size(chosen.small, chosen.layers, chosen.folder)
    report.run("family1", {name: partial(measure, size) for name, measure in SECTIONS.items()}, chosen)


if __name__ == "__main__":
    main()
