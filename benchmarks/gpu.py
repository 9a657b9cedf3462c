"""Steps and decodes of the published size on a graphics card, beside diffusers and beside what the card can do.

    python tools/dev.py bench gpu [--seconds N] [--save]     # a CUDA device, 60 GB of it and 40 GB of RAM
    python tools/dev.py bench gpu --small                    # a miniature size, on a CPU too: does it run

Weights are random and made on the device; there is no file. A floor is the time of the arithmetic alone at the rate of
a large matrix product, or of moving the bytes alone at the rate of a large copy, whichever is more; both rates are
measured in the same run. Without diffusers its columns stay empty, and the run says so.
"""
import gc
import math
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import load_process
import report
import torch
from gpu_card import Card, Measurement, Setup, measure_card, milliseconds
from gpu_kernels import measure_gguf, measure_kernels
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qwen_image_2.model.checkpoints.checkpoint import StoredCheckpoint, TensorInfo
from qwen_image_2.model.checkpoints.matching import shapes
from qwen_image_2.model.checkpoints.quantization import PLAIN_DTYPES
from qwen_image_2.model.qwen_image_2.detect import detect_transformer
from qwen_image_2.model.qwen_image_2.spec import TransformerSpec, VAESpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.model.qwen_image_2.vae import VAE
from qwen_image_2.tools import tiny

LIMIT = 540         # seconds of a whole run
MODEL_SECONDS = 60  # what making a model of the published size may take; below that much time it is not begun
STEP_SECONDS = 12   # the same of one measurement
FORMATS = {"bf16": "as stored", "int8 (ConvRot)": "int8 (ConvRot)", "fp8": "fp8"}  # -> weight_format
SHARES = (1.0, 0.5, 0.0)  # of the weights that may stay on the card
SIGMA = 0.73
CPU = torch.device("cpu")

# Goals for an H200, in milliseconds. Of the two 8-bit formats one is enough.
STEP_GOALS = {("bf16", 1024): 95, ("bf16", 2048): 530, ("int8 (ConvRot)", 1024): 62, ("fp8", 1024): 62}
VAE_GOAL = 2.5 * 87      # 69 TFLOP at 2048 x 2048 take 87 ms at 790 TFLOP/s
STREAMING_GOAL = 1.1     # to the longer of the resident step and the transfer

FULL = Setup(TransformerSpec(), VAESpec(), (1024, 2048), 300, 8192, (1024, 2048, 4096, 8192, 16384, 32768))
SMALL = Setup(
    TransformerSpec(layers=4, dim=256, heads=4, head_dim=64, mlp_dim=768, context_dim=64, rope_axes=(8, 28, 28)),
    VAESpec(base_dim=8, decoder_base_dim=12), (64, 96), 16, 64, (16, 32))


@dataclass
class Clock:
    """What a run still has time for, and what it had to leave out."""

    end: float
    left_out: list[str] = field(default_factory=list)

    def allows(self, what: str, seconds: float) -> bool:
        if time.monotonic() + seconds <= self.end:
            return True
        self.left_out.append(f"{what} (no time was left)")
        return False

    @contextmanager
    def memory_for(self, what: str) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            self.left_out.append(f"{what} (the card's memory was too small)")
            torch.cuda.empty_cache()


# ---------------------------------------------------------------- a model without a file

@dataclass(frozen=True)
class RandomCheckpoint(StoredCheckpoint):
    """A checkpoint whose values are drawn when they are read. Like a file's they are in RAM."""

    device: torch.device = CPU

    def read(self, name: str) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode()))
        info = self.tensors[name]
        return tiny.drawn(name, info.shape, generator).to(PLAIN_DTYPES[info.dtype]).cpu()

    @contextmanager
    def mapped(self) -> Iterator[Callable[[str], Tensor]]:
        yield self.read


def random_model(spec: TransformerSpec, weight_format: str, device: torch.device, stored: str = "BF16"):
    """MODEL by the pack's own loader, as of a file in this dtype."""
    from qwen_image_2.nodes.bridge.loading import model_from
    tensors = {name: TensorInfo(shape, stored) for name, shape in shapes(Transformer(spec, device="meta")).items()}
    checkpoint = RandomCheckpoint("random weights", tensors, {"axes_dims_rope": list(spec.rope_axes)}, device=device)
    return model_from(checkpoint, detect_transformer(checkpoint), "base", weight_format, disable_dynamic=True)


def load_with_budget(model, size: float):
    """A MODEL that keeps at most `size` bytes of weights on the card, or as few as it can; the rest streams."""
    from qwen_image_2.nodes.bridge.runtime.budget import BudgetPatcher
    budgeted = BudgetPatcher.of(model, size)
    budgeted.partially_load(budgeted.load_device, math.inf)
    budgeted.pre_run()
    return budgeted


# ---------------------------------------------------------------- a step

class Given(NamedTuple):
    """What a step is asked for, on the device."""

    latent: Tensor
    sigma: Tensor
    text: Tensor
    references: list[Tensor]

    @property
    def target_tokens(self) -> int:
        return self.latent[0, 0].numel()

    @property
    def slots(self) -> int:
        """States of one reference, one for 2 x 2 latent tokens, which diffusers reads and ignores."""
        return self.target_tokens // 4

    @property
    def prefix_tokens(self) -> int:
        count = len(self.references)
        return self.text.shape[1] - count * self.slots + count * self.target_tokens


def given(setup: Setup, side: int, references: int, device: torch.device) -> Given:
    """The references stand before the text and are as large as the picture."""
    spec, grid = setup.spec, side // 16
    generator = torch.Generator(device).manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    text = random(1, setup.text_tokens + references * grid * grid // 4, spec.context_dim)
    return Given(random(1, spec.channels, grid, grid), torch.full((1,), SIGMA, device=device), text,
                 [random(1, spec.channels, grid, grid) for _ in range(references)])


def our_step(patcher, asked: Given) -> Callable[[], Tensor]:
    """What a sampler calls, latent to denoised latent. The first call computes the prefix, later ones have it."""
    from qwen_image_2.nodes.bridge.keys import SLOTS_KEY
    from qwen_image_2.nodes.bridge.prefix_cond import PromptPrefix, condition_from
    model = patcher.model
    count = len(asked.references)
    entries = {"cross_attn": asked.text[:, count * asked.slots:], SLOTS_KEY: [0] * count,
               "reference_latents": asked.references}
    prefix = PromptPrefix(condition_from(entries, model.spec, lambda latent: latent))
    return lambda: model.apply_model(asked.latent, asked.sigma, transformer_options={}, prefix=prefix)


def floor(card: Card, setup: Setup, kind: str, asked: Given, weights: int) -> float:
    """Milliseconds: arithmetic alone, or reading every weight once alone."""
    spec, tokens = setup.spec, asked.target_tokens
    inner = spec.heads * spec.head_dim
    linear = 2 * (4 * spec.dim * inner + 3 * spec.dim * spec.mlp_dim) * spec.layers * tokens
    attention = 4 * inner * spec.layers * tokens * (tokens + asked.prefix_tokens)
    # A device without arithmetic in this format dequantizes and computes in bf16.
    rate = card.products.get(kind, card.products["bf16"])
    return 1000 * max(linear / rate + attention / card.products["bf16"], weights / card.memory)


def measure_steps(kind: str, setup: Setup, card: Card, device: torch.device, clock: Clock) -> list[Measurement]:
    """All sizes of one format, resident first; beside diffusers in bf16."""
    patcher, found = random_model(setup.spec, FORMATS[kind], device), []
    resident: dict[tuple[int, int], float] = {}
    for share in SHARES:
        budgeted = load_with_budget(patcher, share * patcher.model_size() if share < 1 else math.inf)
        for side in setup.sides:
            for references in (0, 1):
                what = f"{kind}, {side} x {side}, {'an edit' if references else 'no reference'}, {share:.0%} resident"
                if not clock.allows(what, 0 if setup is SMALL else STEP_SECONDS):
                    continue
                with clock.memory_for(what):
                    asked = given(setup, side, references, device)
                    step = our_step(patcher, asked)
                    cost, peak = milliseconds(step, device)
                    one = Measurement(what, kind, side, references, share, cost, peak,
                                      floor(card, setup, kind, asked, patcher.model_size()))
                    if share == 1:
                        resident[side, references] = cost
                        one.goal = None if references else goal(card, kind, side)
                        if kind == "bf16":
                            velocity = (asked.latent - step()) / asked.sigma
                            beside_diffusers(one, patcher.model, asked, velocity, device, clock)
                    else:
                        one.transfer = 1000 * budgeted.plan.moved / card.upload
                        one.floor = max(one.floor, one.transfer)
                        if device.type == "cuda" and (side, references) in resident:
                            one.goal = STREAMING_GOAL * max(resident[side, references], one.transfer)
                    found.append(one)
                    print(f"  {what}: {cost:.1f} ms", flush=True)
        budgeted.detach()
    return found


def goal(card: Card, kind: str, side: int) -> float | None:
    return STEP_GOALS.get((kind, side)) if "H200" in card.name else None


def beside_diffusers(one: Measurement, model, asked: Given, velocity: Tensor, device: torch.device,
                     clock: Clock) -> None:
    """diffusers' cached step with the very same weights, and how far its velocity is from ours. (The first step, which
    computes the prefix, is not timed.)"""
    try:
        import steps
    except ImportError as error:
        clock.left_out.append(f"diffusers beside {one.what} ({error})")
        return
    with clock.memory_for(f"diffusers beside {one.what}"):
        dtype = model.get_dtype_inference()  # that of the weights, but not on a CPU
        theirs = steps.their_network(model.diffusion_model).to(dtype)
        cache = steps.QwenImage21KVCache(model.spec.layers)
        text, latent, *references = (t.to(dtype) for t in (asked.text, asked.latent, *asked.references))

        def step(mode: str = "cached") -> Tensor:
            return steps.their_velocity(theirs, text, references, latent, asked.sigma, cache, mode)

        step("extract")
        expected = step().float()
        one.error = ((velocity - expected).norm() / expected.norm()).item()
        one.theirs = milliseconds(step, device)[0]


# ---------------------------------------------------------------- attention

def measure_attention(setup: Setup, card: Card, device: torch.device) -> list[Measurement]:
    """Attention of one block over more and more tokens: in ComfyUI's order of PyTorch's backends, and in ours for cards
    for servers (nodes/bridge/runtime/attention.py, whose constant the crossover is for)."""
    import comfy.ops

    from qwen_image_2.nodes.bridge.runtime.attention import cudnn_attention
    spec, found = setup.spec, []

    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return comfy.ops.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    for tokens in setup.attention_tokens:
        generator = torch.Generator(device).manual_seed(1)
        q, k, v = (torch.randn(1, tokens, spec.heads, spec.head_dim, generator=generator, device=device).bfloat16()
                   for _ in range(3))
        expected, cost = core(q, k, v).float(), 4 * spec.heads * spec.head_dim * tokens ** 2
        for form, way in (("ComfyUI's order", core), ("cuDNN first", cudnn_attention)):
            error = ((way(q, k, v).float() - expected).norm() / expected.norm()).item()
            found.append(Measurement(f"attention of {tokens:,} tokens, {form}", "bf16", 0, 0, 1.0,
                                     *milliseconds(partial(way, q, k, v), device),
                                     1000 * cost / card.products["bf16"], error=error))
    return found


def crossover(found: list[Measurement]) -> str:
    """From how many tokens on cuDNN's attention is the faster one at every larger number, too."""
    pairs = [(core, ours) for core, ours in pairwise(found) if ours.what.endswith("cuDNN first")]
    faster = [ours.milliseconds < core.milliseconds for core, ours in pairs]
    first = next((number for number in range(len(faster)) if all(faster[number:])), None)
    tokens = None if first is None else pairs[first][1].what.split(" tokens")[0].removeprefix("attention of ")
    return "cuDNN's attention is not the faster one" if tokens is None else \
        f"cuDNN's attention is the faster one from {tokens} tokens on"


# ---------------------------------------------------------------- a decode

def measure_decodes(setup: Setup, card: Card, device: torch.device) -> list[Measurement]:
    """Ours, and two forms of it that only a card can choose between."""
    side, vae = setup.sides[-1], VAE(setup.vae, device="meta", dtype=torch.bfloat16)
    latent = torch.empty(1, setup.vae.latent_channels, side // 16, side // 16, device="meta", dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        vae.decode(latent)
    generator = torch.Generator(device).manual_seed(1)
    vae.load_state_dict({name: tiny.drawn(name, shape, generator).bfloat16()
                         for name, shape in shapes(vae).items()}, assign=True)
    latent = 3 * torch.randn(latent.shape, generator=generator, device=device).bfloat16()

    def measured(form: str) -> Measurement:
        cost, peak = milliseconds(lambda: vae.decode(latent), device)
        return Measurement(f"VAE decode, {side} x {side}{form}", "bf16", side, 0, 1.0, cost, peak,
                           1000 * counter.get_total_flops() / card.products["bf16"])

    ours = measured("")
    ours.goal = VAE_GOAL if "H200" in card.name else None
    double_plainly(vae)
    plain = measured(", doublings as nearest and 3x3")
    vae.to(memory_format=torch.channels_last)
    return [ours, plain, measured(", the same in channels_last")]


class PlainDoubling(nn.Conv2d):
    """Nearest, then a 3x3 convolution: nothing to fold."""

    def taps(self, x: torch.Tensor) -> None:
        return None

    def forward(self, x: torch.Tensor, taps: None = None) -> torch.Tensor:
        return super().forward(nn.functional.interpolate(x, scale_factor=2, mode="nearest"))


def double_plainly(vae: VAE) -> None:
    """In place of the four 2x2 convolutions."""
    for block in vae.decoder.up_blocks:
        if block.upsampler is not None:
            _, layer = block.upsampler.resample
            plain = PlainDoubling(layer.in_channels, layer.out_channels, 3, padding=1, device="meta")
            plain.weight, plain.bias = layer.weight, layer.bias
            block.upsampler.resample[1] = plain


# ---------------------------------------------------------------- the report

COLUMNS = ("measurement", "ms", "peak on the card", "floor (ms)", "ratio to it", "diffusers (ms)", "ratio to it",
           "difference", "goal (ms)", "met")


def row(one: Measurement) -> tuple[str, ...]:
    return (
        one.what, f"{one.milliseconds:.1f}", f"{one.peak / 1e9:.1f} GB" if one.peak else "", f"{one.floor:.1f}",
        f"{one.milliseconds / one.floor:.2f}",
        *(("", "") if one.theirs is None else (f"{one.theirs:.1f}", f"{one.milliseconds / one.theirs:.2f}")),
        "" if one.error is None else f"{one.error:.1e}",
        "" if one.goal is None else f"at most {one.goal:.0f}", {None: "", True: "yes", False: "NO"}[one.met])


def in_words(card: Card) -> dict[str, str]:
    return {"card": card.name} | {
        f"{name} matrix product": f"{rate / 1e12:.3g} TFLOP/s" for name, rate in card.products.items()} | {
        "copy to the card": f"{card.upload / 1e9:.1f} GB/s", "memory of the card": f"{card.memory / 1e9:.0f} GB/s"}


@torch.inference_mode()
def measure(setup: Setup, device: torch.device, clock: Clock) -> tuple[Card, list[Measurement]]:
    card, found = measure_card(device, setup.product), []
    print(report.listing(in_words(card)), flush=True)
    if clock.allows("attention", 0 if setup is SMALL else STEP_SECONDS):
        with clock.memory_for("attention"):
            found += measure_attention(setup, card, device)
    for what, part in (("GGUF", measure_gguf), ("SwiGLU and norms", measure_kernels)):
        if clock.allows(what, 0 if setup is SMALL else STEP_SECONDS):
            with clock.memory_for(what):
                found += part(setup, card, device)
    for kind in FORMATS:
        if clock.allows(f"{kind}, all sizes", 0 if setup is SMALL else MODEL_SECONDS):
            print(f"Making a model in {kind} ...", flush=True)
            found += measure_steps(kind, setup, card, device, clock)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    what = f"VAE decode, {setup.sides[-1]} x {setup.sides[-1]}"
    if clock.allows(what, 0 if setup is SMALL else 3 * STEP_SECONDS):
        with clock.memory_for(what):
            found += measure_decodes(setup, card, device)
    return card, found


def main() -> None:
    parser = report.parser("gpu", __doc__)
    parser.add_argument("--small", action="store_true", help="a miniature size, on a CPU where there is no CUDA device")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="what is not begun by then is left out (540)")
    chosen = parser.parse_args()
    if chosen.small and chosen.save:
        parser.error("--save keeps runs of the published size.")
    if not chosen.small and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device here. --small runs a miniature size on the CPU.")
    clock = Clock(time.monotonic() + chosen.seconds)
    load_process.import_comfyui()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    host = report.host()
    card, found = measure(SMALL if chosen.small else FULL, device, clock)
    text = f"{report.listing(in_words(card))}\n\n{report.aligned([COLUMNS, *map(row, found)])}"
    if attention := [one for one in found if one.what.startswith("attention")]:
        text += f"\n\n{crossover(attention)}."
    if clock.left_out:
        text += "\n\nLeft out:\n" + "\n".join(f"- {what}" for what in clock.left_out)
    print(f"\n{text}")
    if device.type == "cpu":
        print("\nThis ran on a CPU: no figure above is one of a graphics card.")
    if chosen.save:
        host["kind"] = card.name.lower().replace(" ", "-")
        data = {"card": card._asdict(), "measurements": [asdict(one) for one in found], "left out": clock.left_out}
        report.keep("gpu", host, data, text)


if __name__ == "__main__":
    main()
