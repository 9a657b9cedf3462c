"""Loading: seconds and peak memory, each measured in a process of its own.

    python tools/dev.py bench load [--small] [--only FORMAT] [--folder DIR] [--save]

Writes a transformer file of the published names and shapes (14 GB in bf16, then 4 GB as GGUF), drops it from the
system's cache, loads it through the pack's loader in ComfyUI and removes it. The peak of all memory counts pages that
are mapped from the file, which the system may drop; the peak of private memory does not.
"""
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import load_process
import report
import synthetic
import torch
from timing import Budget, Comparison, Cost, of_costs

from qwen_image_2.model.qwen_image_2.spec import TransformerSpec

GOAL = 1.1  # peak memory to the weights that are kept


def in_process(way: str, path: Path, *options: str) -> dict:
    command = [sys.executable, load_process.__file__, way, str(path), str(torch.get_num_threads()), *options]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def require_linux() -> None:
    if not Path("/proc/self/io").exists():
        raise SystemExit("The loading benchmark reads peak memory from /proc and runs on Linux only.")


# ---------------------------------------------------------------- the pack's loader at the published size

class Format(NamedTuple):
    write: Callable[[Path, TransformerSpec], None]
    file: str
    weight_format: str


FORMATS = {
    "bf16": Format(synthetic.write_bf16, "synthetic.safetensors", "as stored"),
    "int8 while loading": Format(synthetic.write_bf16, "synthetic.safetensors", "int8 (ConvRot)"),
    f"GGUF {synthetic.GGUF_KIND}": Format(synthetic.write_gguf, "synthetic.gguf", "as stored"),
}
SMALL = TransformerSpec(layers=2, dim=1024, heads=8, mlp_dim=3072, context_dim=1024)
COLUMNS = ("format", "file", "kept", "seconds (CPU)", "peak", "peak of private memory", "first reading", "peak then",
           "that to kept")


def measure_formats(names: list[str], spec: TransformerSpec, folder: Path) -> dict[str, dict]:
    """Formats that share a file stand together; it goes before the next one is written."""
    found, written = {}, None
    for name in names:
        path = folder / FORMATS[name].file
        if written != path:
            if written:
                written.unlink()
            print(f"Writing {path} ...", flush=True)
            FORMATS[name].write(path, spec)
            written = path
        print(f"Loading {name} ...", flush=True)
        found[name] = in_process(FORMATS[name].weight_format, path, "--cold") | {"file": path.stat().st_size}
        print("  " + ", ".join(row(name, found[name])[1:]), flush=True)
    return found


def row(name: str, one: dict) -> tuple[str, ...]:
    sizes = {key: f"{one[key] / 1e9:.2f} GB" for key in ("file", "kept", "peak", "peak_private", "peak_touched")}
    return (name, sizes["file"], sizes["kept"], f"{one['seconds']:.1f} ({one['cpu']:.1f})", sizes["peak"],
            sizes["peak_private"], f"{one['touch_seconds']:.1f} s", sizes["peak_touched"], f"{ratio(one):.2f}")


def ratio(one: dict) -> float:
    return one["peak_touched"] / one["kept"]


def verdict(found: dict[str, dict]) -> str:
    missed = [name for name, one in found.items() if ratio(one) > GOAL]
    return f"Goal of the last column, at most {GOAL}: {'missed by ' + ', '.join(missed) if missed else 'met'}."


def main() -> None:
    parser = report.parser("load", __doc__)
    parser.add_argument("--small", action="store_true", help="a miniature size, in seconds: does it run")
    parser.add_argument("--layers", type=int, default=TransformerSpec.layers, help="blocks of full width (%(default)s)")
    parser.add_argument("--only", choices=FORMATS, help="one format")
    parser.add_argument("--folder", type=Path, help="for the file (a temporary folder)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    chosen = parser.parse_args()
    if chosen.save and (chosen.small or chosen.only or chosen.layers != TransformerSpec.layers):
        parser.error("--save keeps whole runs, without --small, --only and --layers.")
    if chosen.folder and not chosen.folder.is_dir():
        parser.error(f"--folder {chosen.folder} is no folder.")
    require_linux()
    torch.set_num_threads(chosen.threads)
    host, spec = report.host(), SMALL if chosen.small else TransformerSpec(layers=chosen.layers)
    with tempfile.TemporaryDirectory(prefix="qwen-image-2-bench-", dir=chosen.folder) as folder:
        found = measure_formats([chosen.only] if chosen.only else list(FORMATS), spec, Path(folder))
    text = report.aligned([COLUMNS, *(row(name, one) for name, one in found.items())])
    if spec.layers == TransformerSpec.layers:  # what stands around the blocks is small beside this many
        text += f"\n\n{verdict(found)}"
    print(f"\n{text}")
    if chosen.save:
        report.keep("load", host, {"layers": spec.layers, "formats": found}, text)


# ---------------------------------------------------------------- beside safetensors, for foundation.py

SPEC = TransformerSpec(layers=9)  # of the published width: 4.2 GB in bf16
SETTING = f"synthetic checkpoint, dim {SPEC.dim}, {SPEC.layers} layers, bf16, gate and projection fused; a process each"
# One round. How fast a system refills its cache depends on what ran before (up to twofold, measured on a virtual
# machine), so the same run stands before each cold one; of runs named twice the later one counts.
ORDER = ("ours, warm", "ours, cold", "ours, warm", "safetensors_read, cold", "safetensors_read, warm",
         "safetensors, warm")


def beside_safetensors(budget: Budget) -> list[Comparison]:
    require_linux()
    with tempfile.TemporaryDirectory(prefix="qwen-image-2-bench-") as folder:
        path = Path(folder) / "synthetic.safetensors"
        synthetic.write_bf16(path, SPEC)
        return _comparisons(_rounds(path, budget), path.stat().st_size)


def _rounds(path: Path, budget: Budget) -> list[dict[str, dict]]:
    """Results of each round by "way, state of the cache"."""
    rounds, begin = [], time.perf_counter()
    while budget.allows(len(rounds), time.perf_counter() - begin):
        rounds.append({name: _one_of_round(name, path) for name in ORDER})
    if len({result["digest"] for results in rounds for result in results.values()}) != 1:
        raise SystemExit("load: the ways loaded different values, so comparing their times would mean nothing.")
    return rounds


def _one_of_round(name: str, path: Path) -> dict:
    way, state = name.split(", ")
    return in_process(way, path, "--digest", *["--cold"][:state == "cold"])


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
        time_of("load, cold", "ours, cold", "safetensors_read, cold", once),
        time_of("load, warm", "ours, warm", "safetensors_read, warm", once),
        time_of("load, warm", "ours, warm", "safetensors, warm", never),
        share_of_file("load, peak memory", "ours, cold", "ours", "peak", goal=1.15),
        share_of_file("load, peak memory", "safetensors_read, cold", once, "peak"),
        share_of_file("load, private memory after", "ours, cold", "ours", "private"),
        share_of_file("load, read from disk when cold", "ours, cold", "ours", "read"),
    ]


if __name__ == "__main__":
    main()
