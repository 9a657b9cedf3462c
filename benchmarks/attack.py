"""Is every input from outside taken, or refused in the pack's own words? Thousands of each kind, in a process apart.

    python tools/dev.py bench attack [--count N] [--seed N] [--kind NAME ...] [--first N] [--save]

A traceback, a wait above 5 s, a message above 400 characters or memory that has grown by more than 200 MB is a fault:
it is listed with the command that repeats it, and the benchmark fails.
"""
import argparse
import importlib
import os
import sys
import time

import report

from qwen_image_2.tools.attacks import watch
from qwen_image_2.tools.attacks.attempt import FAILED, REFUSED, TAKEN, Limits
from qwen_image_2.tools.attacks.watch import Record

COUNT = 1000
COLUMNS = ("kind", "tried", "taken", "refused", "failed", "worst wait (s)", "growth (MB)", "longest message", "seconds")
LISTED = 10  # faults of a kind


def parse() -> argparse.Namespace:
    parser = report.parser("attack", __doc__)
    parser.add_argument("--count", type=int, default=COUNT, help="inputs of each kind (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10**6, help="by default another one each time")
    parser.add_argument("--kind", action="append", metavar="NAME", help="only this one; may be given again")
    parser.add_argument("--seconds", type=float, default=Limits.seconds, help="that an input may take (%(default)g)")
    parser.add_argument("--module", default=watch.KINDS, help="where the kinds are; tests have some with faults")
    return parser.parse_args()


def main() -> int:
    chosen = parse()
    if "COMFYUI_PATH" not in os.environ:
        raise SystemExit("COMFYUI_PATH must name a ComfyUI tree; `python tools/dev.py bench` sets it.")
    there = importlib.import_module(chosen.module).KINDS
    names = chosen.kind or list(there)
    if unknown := [name for name in names if name not in there]:
        raise SystemExit(f"There is no kind {unknown[0]!r}; there are: {', '.join(there)}.")
    limits, host = Limits(seconds=chosen.seconds), report.host()
    print(f"Seed {chosen.seed}", flush=True)
    records, seconds = [], {}
    for name in names:
        begin = time.perf_counter()
        records.append(watch.attacked(name, chosen.seed, range(chosen.first, chosen.first + chosen.count), limits,
                                      chosen.module))
        seconds[name] = time.perf_counter() - begin
        tell(records[-1], chosen)
    text = report.aligned([COLUMNS, *(row(record, seconds[record.name]) for record in records)])
    print(text)
    if chosen.save:
        report.keep("attack", host, {"seed": chosen.seed, "count": chosen.count, "kinds": [vars(r) for r in records]},
                    f"Seed {chosen.seed}.\n\n{text}")
    return 1 if any(record.faults for record in records) else 0


def row(record: Record, seconds: float) -> tuple[str, ...]:
    return (record.name, str(record.tried), *(str(record.results[result]) for result in (TAKEN, REFUSED, FAILED)),
            f"{record.worst:.2f}", f"{record.growth / 1e6:.0f}", str(record.longest), f"{seconds:.0f}")


def tell(record: Record, chosen: argparse.Namespace) -> None:
    """How the kind has fared, with every fault and how to repeat it."""
    print(f"{record.name}: {record.tried} tried, {record.results[FAILED]} failed", flush=True)
    for number, faults in list(record.faults.items())[:LISTED]:
        print(f"  python tools/dev.py bench attack --kind {record.name} --seed {chosen.seed} --first {number} "
              "--count 1")
        print("\n".join(f"    {line}" for fault in faults for line in fault.splitlines()), flush=True)
    if len(record.faults) > LISTED:
        print(f"  and {len(record.faults) - LISTED} more", flush=True)


if __name__ == "__main__":
    sys.exit(main())
