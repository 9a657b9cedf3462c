"""Host time of a step: what Python and PyTorch's dispatcher take for the published number of blocks.

    python tools/dev.py bench host [--rounds N] [--save]     # on a CPU, in a minute

The step goes through ComfyUI's MODEL, as a sampler calls it. Its tensors are so small that nothing but calling kernels
takes time: on a card that is the time below which no step can fall, however fast its kernels are. It is given as
processor time, and the least of all rounds counts: other work on the machine takes the caches away. A CPU's kernels
compute a little too, and ComfyUI's plain kernels are more than those of a card: the figure is an upper bound. Launches
are the operations that are no views; calls are those of Python functions and of what is built into it.
"""
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import gpu
import load_process
import report
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qwen_image_2.model.qwen_image_2.spec import TransformerSpec

# One head of the published size, few tokens: depth decides.
SPEC = replace(TransformerSpec(), dim=128, heads=1, mlp_dim=384, context_dim=64)
SETUP = gpu.Setup(SPEC, None, (64,), 16, 0, ())
GOAL = 8.0  # milliseconds of the published depth
WITHOUT_KERNEL = {"empty", "empty_like", "new_empty", "empty_strided", "_local_scalar_dense"}
COLUMNS = ("a step", "launches", "of them a block", "calls", "calls a block", "ms, least", "median", "ms a block",
           "goal (ms)", "met")


class Launches(TorchDispatchMode):
    """Counts the operations that start a kernel, by name."""

    def __init__(self):
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if not function.is_view and name not in WITHOUT_KERNEL:
            self.count[name] += 1
        return function(*arguments, **(options or {}))


class Host(NamedTuple):
    launches: int
    calls: int
    milliseconds: tuple[float, ...]  # of each round


def measure(layers: int, references: int, rounds: int) -> Host:
    """A step whose prefix is known, of a model of so many blocks."""
    # A CPU computes in fp32. As bf16 on a card, what is stored so is not cast as it is used.
    patcher = gpu.random_model(replace(SPEC, layers=layers), "as stored", torch.device("cpu"), "F32")
    loaded = gpu.load_with_budget(patcher, float("inf"))
    step = gpu.our_step(loaded, gpu.given(SETUP, SETUP.sides[0], references, torch.device("cpu")))
    for _ in range(3):  # the first one computes the prefix
        step()
    with Launches() as launches:
        step()
    return Host(launches.count.total(), calls_of(step), tuple(milliseconds(step) for _ in range(rounds)))


def calls_of(step: Callable[[], Tensor]) -> int:
    count: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, argument: count.update([event]))
    try:
        step()
    finally:
        sys.setprofile(None)
    return count["call"] + count["c_call"]


def milliseconds(step: Callable[[], Tensor]) -> float:
    begin = time.process_time()
    step()
    return 1000 * (time.process_time() - begin)


def row(what: str, whole: Host, half: Host, blocks: int) -> tuple[str, ...]:
    """blocks: by how many the two differ."""
    least = min(whole.milliseconds)
    return (what, str(whole.launches), f"{(whole.launches - half.launches) / blocks:g}", f"{whole.calls:,}",
            f"{(whole.calls - half.calls) / blocks:g}", f"{least:.2f}",
            f"{statistics.median(whole.milliseconds):.2f}", f"{(least - min(half.milliseconds)) / blocks:.3f}",
            f"at most {GOAL:g}", "yes" if least <= GOAL else "NO")


@torch.inference_mode()
def main() -> None:
    parser = report.parser("host", __doc__)
    parser.add_argument("--rounds", type=int, default=101, help="(default: %(default)s)")
    chosen = parser.parse_args()
    load_process.import_comfyui()
    from comfy.cli_args import args
    args.use_pytorch_cross_attention = True  # ComfyUI's choice on a card
    torch.set_num_threads(1)
    host, layers, rows = report.host(), SPEC.layers, []
    for what, references in (("text to image", 0), ("edit with one reference", 1)):
        whole, half = (measure(depth, references, chosen.rounds) for depth in (layers, layers // 2))
        rows.append((what, whole, half))
    text = report.aligned([COLUMNS, *(row(*one, layers - layers // 2) for one in rows)])
    print(f"\n{text}")
    if chosen.save:
        report.keep("host", host, {what: {"whole": whole._asdict(), "half": half._asdict()}
                                   for what, whole, half in rows}, text)


if __name__ == "__main__":
    main()
