"""What the pack adds to ComfyUI's start: importing it and asking it for its nodes, in processes of their own.

    python tools/dev.py bench startup [--rounds N] [--save]

ComfyUI's own modules are there already, as when it loads its custom nodes. The first start after an installation also
compiles the pack's files to bytecode: both are measured on a copy that has none at first.
"""
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import report
from bootstrap import ROOT

GOAL = 0.5  # seconds
IN_PROCESS = """
import asyncio, importlib.util, sys, time
comfyui, root = sys.argv.pop(), sys.argv.pop()
sys.path.insert(0, comfyui)
from comfy.cli_args import args
args.cpu = True
import nodes, server, execution
from comfy_api.latest import io
clock, processor = time.perf_counter(), time.process_time()
spec = importlib.util.spec_from_file_location("the_pack", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["the_pack"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)

async def found():
    return await (await pack.comfy_entrypoint()).get_node_list()

for node in asyncio.run(found()):
    node.GET_SCHEMA()
print("SECONDS", time.perf_counter() - clock, time.process_time() - processor)
"""
COLUMNS = ("start", "seconds", "of the processor", "goal", "met")


def start(root: Path) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    comfyui = os.environ["COMFYUI_PATH"]
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", IN_PROCESS, str(root), comfyui], cwd=comfyui, env=settings,
                          stdout=subprocess.PIPE, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("SECONDS "))
    return tuple(map(float, line.split()[1:]))


def two_starts() -> tuple[tuple[float, float], tuple[float, float]]:
    """The first one compiles, the second one finds what it has compiled."""
    with tempfile.TemporaryDirectory(prefix="qwen-image-2-bench-") as folder:
        root = Path(folder) / "qwen_image_2"
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("__pycache__", ".git", "assets", "tests"))
        return start(root), start(root)


def main() -> None:
    parser = report.parser("startup", __doc__)
    parser.add_argument("--rounds", type=int, default=7, help="processes of each kind (%(default)s)")
    chosen = parser.parse_args()
    host = report.host()
    found = dict(zip(("first after an installation", "every other"),
                     zip(*(two_starts() for _ in range(chosen.rounds))), strict=True))
    text = report.aligned([COLUMNS, *(row(name, values) for name, values in found.items())])
    print(text)
    if chosen.save:
        report.keep("startup", host, {"rounds": chosen.rounds, "starts": found}, text)


def row(name: str, values: Sequence[tuple[float, float]]) -> tuple[str, ...]:
    clock, processor = (statistics.median(column) for column in zip(*values))
    return name, f"{clock:.2f}", f"{processor:.2f}", f"at most {GOAL}", "yes" if clock <= GOAL else "NO"


if __name__ == "__main__":
    main()
