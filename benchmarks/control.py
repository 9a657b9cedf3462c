"""The control network of 2.1: a step whose prefix is known beside one that computes all rows anew, and bytes.

    python tools/dev.py bench control [--small] [--only SECTION] [--save]

step: seconds of a controlled step, interleaved with the same step without the KV cache, as every other implementation
takes it; with a ratio below 1 the cache saves time. The same beside a step without control. bytes: of the second KV
cache and of the weights, counted on meta tensors of the published size.
"""
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import report
import torch
from steps import SIDE, SPEC, TEXT_TOKENS
from timing import Budget, Comparison, compare, iter_blocks, of_costs

from qwen_image_2.model.qwen_image_2.control import Control, Controlling, prefix_controls
from qwen_image_2.model.qwen_image_2.prefix_cache import Condition
from qwen_image_2.model.qwen_image_2.spec import ControlSpec, TransformerSpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.tools import tiny

REFERENCES = (0, 1, 3)
BUDGET, QUICK = Budget(rounds=15, seconds=40, least=7), Budget(rounds=1, seconds=1, least=1)
PUBLISHED_SIDE = 64  # latents: pictures of 1024 x 1024
META = {"device": "meta", "dtype": torch.bfloat16}


# ---------------------------------------------------------------- step

def step(small: bool) -> report.Found:
    spec = replace(SPEC, layers=2 if small else SPEC.layers)
    side = SIDE // 4 if small else SIDE
    comparisons = [one for count in REFERENCES for one in compared(spec, side, count, QUICK if small else BUDGET)]
    return report.Found([asdict(one) | {"ratio": one.ratio, "cpu_ratio": one.cpu_ratio} for one in comparisons],
                 f"{setting(spec, side)}\n\n{report.table(comparisons)}")


def setting(spec: TransformerSpec, side: int) -> str:
    return (f"dim {spec.dim}, {spec.heads} heads of {spec.head_dim}, {spec.layers} blocks and {spec.layers // 2} of "
            f"control, prefix of {TEXT_TOKENS} text tokens and references of {side * side}, {side * side} target "
            "tokens, fp32")


def compared(spec: TransformerSpec, side: int, references: int, budget: Budget) -> list[Comparison]:
    base, network = (made.eval() for made in (Transformer(spec), Control(ControlSpec(spec, spec.layers // 2))))
    for seed, each in enumerate((base, network)):
        each.load_state_dict(tiny.randomise(each.state_dict(), seed))
    condition, x, channels = inputs(spec, side, references)
    controls, sigma = [Controlling(network, channels)], torch.tensor([0.73])
    along = prefix_controls(controls)
    known, without = base.encode_prefix(condition, controls=along), base.encode_prefix(condition)
    what = f"controlled step, references: {references}"
    anew = compare(what, {
        "prefix known": lambda: base(x, sigma, known, controls=controls),
        "all rows anew": lambda: base(x, sigma, base.encode_prefix(condition, controls=along), controls=controls),
    }, budget)
    # Two different results: their times alone are compared.
    ways = {"with control": lambda: base(x, sigma, known, controls=controls),
            "without": lambda: base(x, sigma, without)}
    _, costs = iter_blocks(ways, budget)
    return [*anew, of_costs(what, *costs.items())]


def inputs(spec: TransformerSpec, side: int, references: int, device: str = "cpu", dtype: torch.dtype = torch.float32):
    """One prompt with references before it, noise and control channels."""
    generator = torch.Generator().manual_seed(1) if device == "cpu" else None

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)
    latents = tuple(drawn(1, spec.channels, side, side) for _ in range(references))
    condition = Condition(drawn(1, TEXT_TOKENS, spec.context_dim), (0,) * references, latents)
    return condition, drawn(1, spec.channels, side, side), drawn(1, ControlSpec(spec).channels, side, side)


# ---------------------------------------------------------------- bytes

def on_device(small: bool) -> report.Found:
    """At the published size, whatever else is small."""
    spec = TransformerSpec()
    base, network = Transformer(spec, **META), Control(ControlSpec(spec), **META)
    kept = {count: kept_bytes(base, network, count) for count in REFERENCES}
    weights = {name: sum(value.nbytes for value in each.state_dict().values())
               for name, each in (("transformer", base), ("control network", network))}
    rows = [("prefix", "tokens", "KV cache", "of it the control's"),
            *((f"{TEXT_TOKENS} text tokens, {count} references", f"{tokens:,}", f"{whole / 2**30:.2f} GiB",
               f"{(whole - alone) / 2**30:.2f} GiB") for count, (tokens, whole, alone) in kept.items())]
    told = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in weights.items())
    return report.Found({"kept": kept, "weights": weights},
                 f"bf16, references of 1024 x 1024\n\n{report.aligned(rows)}\n\nWeights: {told}.")


def kept_bytes(base: Transformer, network: Control, references: int) -> tuple[int, int, int]:
    """Tokens of the prefix, and bytes of its keys and values with and without control."""
    condition, _, channels = inputs(base.spec, PUBLISHED_SIDE, references, **META)
    controls = prefix_controls([Controlling(network, channels)])
    caches = [base.encode_prefix(condition, controls=used) for used in (controls, ())]
    whole, alone = (sum(part.nbytes for pair in cache.layers for part in pair) for cache in caches)
    return caches[0].layers[0][0].shape[1], whole, alone


SECTIONS: dict[str, Callable[[bool], report.Found]] = {"step": step, "bytes": on_device}


@torch.no_grad()
def main() -> None:
    parser = report.parser("control", __doc__, "the whole run")
    parser.add_argument("--small", action="store_true", help="a miniature size, in seconds: does it run")
    parser.add_argument("--only", choices=SECTIONS, help="one section")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: %(default)s)")
    chosen = parser.parse_args()
    if chosen.save and (chosen.small or chosen.only):
        parser.error("--save keeps whole runs, without --small and --only.")
    torch.set_num_threads(chosen.threads)
    report.run("control", {name: partial(measure, chosen.small) for name, measure in SECTIONS.items()}, chosen)


if __name__ == "__main__":
    main()
