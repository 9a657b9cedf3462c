"""Rows of a table: how fast one and two workers draw them, what Ray costs, and what is lost when a machine dies.

    python tools/dev.py bench render [--rows N] [--only PART ...] [--save]

speed: the miniature's poster by one worker without Ray, by one and by two with it, each on one core; the time of
starting is not counted. cluster: three local nodes of Ray, one of which is killed in the middle. driver: ten thousand
rows by a worker that draws nothing, for what the driver itself takes.
"""
import collections
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil
import report
from bootstrap import ROOT

from qwen_image_2.pages import table
from qwen_image_2.tools.comfyui import workflow
from qwen_image_2.tools.render import driver, journal, plan, pools, ray_pool

POSTER = ROOT / "workflows" / "api" / "poster.json"
PROMPT = 'A white poster: a large {{colour}} {{shape}} at the top and the word "{{word}}" in red in the centre.'
COMFY = "qwen_image_2.tools.render.worker:ComfyWorker"
STAND_IN = "qwen_image_2.tests.tools.render.stand_in:StandIn"
STAND_IN_GRAPH = {"1": {"class_type": "Text", "inputs": {"text": "{{word}}"}},
                  "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "page"}}}
WORDS, COLOURS, SHAPES = ("SALE", "OPEN", "TEA", "NEW"), ("red", "blue", "green"), ("triangle", "circle", "square")
MANY = 10_000
PARTS = ("speed", "cluster", "driver")
TWO_WORKERS, OVERHEAD = 1.8, 1.05  # the goals: pages of two workers to those of one, time with Ray to time without
COLUMNS = ("part", "found", "goal", "met")


def rows_of(count: int, folder: Path) -> table.Table:
    file = folder / "rows.csv"
    lines = [f"{WORDS[n % 4]},{COLOURS[n % 3]},{SHAPES[n // 3 % 3]},{n}" for n in range(count)]
    file.write_text("\n".join(["word,colour,shape,seed", *lines]))
    return table.read(file)


def poster(count: int, folder: Path) -> plan.Plan:
    sets = [f"QwenImage2TextEncode.prompt={PROMPT}", "QwenImage2Sampler.seed={{seed}}"]
    return plan.make(workflow.with_miniature(workflow.load(POSTER)), sets, rows_of(count, folder))


def draw(made: plan.Plan, pool: pools.Pool, folder: Path, show=lambda counts: None) -> float:
    """Seconds from the first row to the last."""
    folder.mkdir()
    with journal.opened(folder) as book, contextlib.ExitStack() as stack:
        stack.callback(pool.close, at_once=False)
        run = driver.Driver(made, pool, book, driver.Stop(print), show)
        counts = run.run()
        return time.monotonic() - counts.begin


def comfy() -> pools.WorkerKind:
    return pools.WorkerKind(COMFY, {"comfyui": Path(os.environ["COMFYUI_PATH"])})


def speed(count: int, folder: Path) -> tuple[dict, list[tuple[str, ...]]]:
    made = poster(count, folder)
    ways = {"plain": pools.Plain(comfy()), "Ray, one worker": ray_pool.RayPool(comfy(), 1, None),
            "Ray, two workers": ray_pool.RayPool(comfy(), 2, None)}
    seconds = {name: draw(made, pool, folder / name) for name, pool in ways.items()}
    plain, one, two = seconds.values()
    pages = {way: contents(folder / way) for way in ways}
    same = len({tuple(sorted(found.items())) for found in pages.values()}) == 1
    return {"seconds": seconds, "same pictures": same}, [
        ("one worker, with Ray to without", f"{one / plain:.3f}", f"at most {OVERHEAD}", yes(one / plain <= OVERHEAD)),
        ("pages of two workers to those of one", f"{one / two:.2f}", f"at least {TWO_WORKERS}",
         yes(one / two >= TWO_WORKERS)),
        ("the same files whatever the way", yes(same), "yes", yes(same))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def cluster(count: int, folder: Path) -> tuple[dict, list[tuple[str, ...]]]:
    """A node is killed once a third of the rows is done."""
    import ray
    from ray.cluster_utils import Cluster
    os.environ.update(ray_pool.QUIET)
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [machines.add_node(num_cpus=1) for _ in range(3)]

    def kill_one(counts: driver.Counts) -> None:
        if counts.drawn >= count // 3 and len(nodes) == 3:
            machines.remove_node(nodes.pop(), allow_graceful=False)

    try:
        draw(poster(count, folder), ray_pool.RayPool(comfy(), 3, machines.address), folder / "cluster", kill_one)
    finally:
        ray.shutdown()
        machines.shutdown()
    lines = [json.loads(line) for line in (folder / "cluster" / journal.NAME).read_text().splitlines()]
    times = collections.Counter(line["row"] for line in lines if line["state"] == journal.DONE)
    again = sum(line.get("tries", 1) > 1 for line in lines)
    good = len(times) == count == len(contents(folder / "cluster")) and set(times.values()) == {1}
    return {"rows": len(times), "tried again": again}, [
        ("three nodes, one killed", f"{len(times)} of {count} rows, {again} tried again", "all, none twice", yes(good))]


def of_driver(count: int, folder: Path) -> tuple[dict, list[tuple[str, ...]]]:
    made = plan.make(STAND_IN_GRAPH, [], rows_of(count, folder))
    pool = pools.Plain(pools.WorkerKind(STAND_IN, {"drawn": folder / "drawn"}))
    memory = {}

    def look(counts: driver.Counts) -> None:
        if counts.drawn in (count // 10, count):
            memory[counts.drawn] = psutil.Process().memory_info().rss

    seconds = draw(made, pool, folder / "driver", look)
    first, last = memory.values()
    grown = (last - first) / 2 ** 20
    return {"seconds": seconds, "resident bytes": memory}, [
        ("rows a second by the driver alone", f"{count / seconds:.0f}", "", ""),
        (f"memory from row {count // 10} to row {count}", f"{grown:+.1f} MiB of {last / 2 ** 20:.0f}", "at most +20",
         yes(grown <= 20))]


def yes(good: bool) -> str:
    return "yes" if good else "NO"


def main() -> None:
    parser = report.parser("render", __doc__)
    parser.add_argument("--rows", type=int, default=60, help="of speed and cluster (%(default)s)")
    parser.add_argument("--many", type=int, default=MANY, help="of driver (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some of the parts")
    chosen = parser.parse_args()
    ray_pool.require_ray()
    host, found, lines = report.host(), {}, [COLUMNS]
    calls = {"speed": (speed, chosen.rows), "cluster": (cluster, chosen.rows), "driver": (of_driver, chosen.many)}
    for name in chosen.only:
        part, count = calls[name]
        with tempfile.TemporaryDirectory(prefix="qwen-image-2-bench-") as folder:
            found[name], more = part(count, Path(folder))
        lines += more
    text = report.aligned(lines)
    print(text)
    if chosen.save:
        report.keep("render", host, {"rows": chosen.rows, **found}, text)
    if any(line[-1] == "NO" for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
