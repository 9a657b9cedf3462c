"""Speed and memory of the model code beside diffusers: same process, same threads, same random weights.

    python tools/dev.py bench [--quick] [--only NAME] [--save] [--threads N]

Ratios are medians over interleaved rounds, with their quartiles; below 1 the first way needs less. Each comparison
first makes sure that both ways compute the same thing, and ends the run where they do not.
"""
import argparse
from collections.abc import Callable
from typing import NamedTuple

import autoencoder
import load
import report
import steps
import torch
from timing import Budget, Comparison


class Case(NamedTuple):
    run: Callable[[Budget], list[Comparison]]
    setting: str
    budget: Budget


CASES = {
    "step": Case(steps.cached_step, steps.setting(steps.SPEC), Budget(rounds=31, seconds=20, least=15)),
    "first-step": Case(steps.first_step, steps.setting(steps.SPEC), Budget(rounds=31, seconds=20, least=15)),
    "batch": Case(steps.batch, steps.setting(steps.BATCH_SPEC), Budget(rounds=7, seconds=40)),
    "edit-batch": Case(steps.edit_batch, steps.setting(steps.BATCH_SPEC, reference=True), Budget(rounds=7, seconds=40)),
    "load": Case(load.beside_safetensors, load.SETTING, Budget(rounds=4, seconds=40)),
    "decode": Case(autoencoder.decode, autoencoder.SETTING, Budget(rounds=15, seconds=40, least=2)),
    "encode": Case(autoencoder.encode, autoencoder.SETTING, Budget(rounds=15, seconds=15)),
}
QUICK = Budget(rounds=3, seconds=6, least=1)


def arguments() -> argparse.Namespace:
    parser = report.parser("", __doc__, "the whole run")
    parser.add_argument("--quick", action="store_true", help="few rounds: does it run, roughly how fast")
    parser.add_argument("--only", choices=CASES, help="one case")
    # With several threads each waits for the others, and other work on the machine then decides the ratios.
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: %(default)s)")
    chosen = parser.parse_args()
    if chosen.save and (chosen.quick or chosen.only):
        parser.error("--save keeps whole runs, without --quick and --only.")
    return chosen


@torch.no_grad()
def main() -> None:
    chosen = arguments()
    torch.set_num_threads(chosen.threads)
    cases = {name: case for name, case in CASES.items() if chosen.only in (None, name)}
    host, settings = report.host(), {name: case.setting for name, case in cases.items()}
    print(f"{report.listing(host)}\n\n{report.listing(settings)}\n", flush=True)
    comparisons = []
    for name, case in cases.items():
        print(f"Measuring {name} ...", flush=True)
        comparisons += case.run(QUICK if chosen.quick else case.budget)
    host["load average after"] = report.load_average()
    print(f"\nLoad average after: {host['load average after']}\n\n{report.table(comparisons)}")
    if chosen.save:
        report.save("foundation", host, settings, comparisons)


if __name__ == "__main__":
    main()
