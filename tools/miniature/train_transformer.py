"""Training of the miniature's transformer: flow matching, text-to-image and edits together.

The network is model/qwen_image_2/transformer.py itself. A prefix is computed once for several noise levels of its
target, as it is for the steps of a sampler.
"""
import copy
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...model.qwen_image_2 import latents
from ...model.qwen_image_2.prefix_cache import Condition, PrefixCache
from ...model.qwen_image_2.spec import TransformerSpec
from ...model.qwen_image_2.transformer import Transformer
from ...model.runtime.sigmas import shifted
from .pool import Pool, Prepared
from .training import SAVE_SECONDS, Log, State, learning_rate, optimizers, set_rate

# Muon makes each matrix's step orthogonal, and gate and projection are two to it; the shipped file has them as one.
SPEC = TransformerSpec(layers=8, dim=192, heads=4, head_dim=64, mlp_dim=576, context_dim=128, rope_axes=(8, 28, 28),
                       fused_mlp=False)
RATE, WARMUP = 3e-3, 100
FORMS = 2               # batches of one form that make a step
EXAMPLES = 8            # in each
LEVELS = 4              # noise levels of each example
# Stronger than any sampler's: the pictures are so simple that a little signal shows what they are, so the prompt is
# read only where there is next to none.
SHIFT = 1.5
EMA = 0.999
STEPS_PER_SHARD = 400   # the pool grows while training goes on, until it is
MAX_SHARDS = 24        # so large


def build() -> Transformer:
    """Gates, and so all blocks, begin shut."""
    transformer = Transformer(SPEC)
    nn.init.zeros_(transformer.modulation[1].weight)
    nn.init.zeros_(transformer.norm_out.linear.weight)
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.txt_in.text_norm.weight)
    return transformer


def trained_by_adam(name: str) -> bool:
    """Everything but the matrices between hidden states: what meets latents, times or modulations."""
    return not name.startswith(("transformer_blocks.", "txt_in."))


class Batch:
    """Prepared examples of one form on the transformer's scale, each target at several noise levels."""

    def __init__(self, prepared: list[Prepared], mean: tuple, std: tuple, generator: torch.Generator,
                 device: torch.device):
        def stacked(tensors) -> Tensor:
            return latents.normalize(torch.stack(list(tensors)).to(device, torch.float32), mean, std)

        references = tuple(map(stacked, zip(*(example.references for example in prepared), strict=True)))
        text = torch.stack([example.text for example in prepared]).to(device, torch.float32)
        self.condition = Condition(text, prepared[0].slots, references)
        target = stacked(example.target for example in prepared).repeat(LEVELS, 1, 1, 1)
        self.sigma = _sigmas(len(prepared), generator).to(device)
        noise = torch.randn(target.shape, generator=generator).to(device)
        self.noisy = torch.lerp(target, noise, self.sigma.view(-1, 1, 1, 1))
        self.velocity = noise - target


def _sigmas(examples: int, generator: torch.Generator) -> Tensor:
    """Noise levels (LEVELS * examples,): each example has one from each equal part of the schedule's times."""
    part = torch.arange(LEVELS).repeat_interleave(examples)
    times = (part + torch.rand(len(part), generator=generator)) / LEVELS
    return shifted(times.clamp(1e-3), SHIFT)


def loss(transformer: Transformer, batch: Batch) -> Tensor:
    cache = transformer.encode_prefix(batch.condition)
    shared = PrefixCache(cache.position, [(k.repeat(LEVELS, 1, 1, 1), v.repeat(LEVELS, 1, 1, 1))
                                          for k, v in cache.layers])
    return F.mse_loss(transformer(batch.noisy, batch.sigma, shared), batch.velocity)


def train(work: Path, transformer: Transformer, pool: Pool, mean: tuple, std: tuple, steps: int,
          seed: int) -> Transformer:
    """Train a transformer, or go on where that was stopped. Returns the moving average of its weights, which is what
    is shipped."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transformer = transformer.to(device)
    average = copy.deepcopy(transformer).requires_grad_(False)
    both = optimizers(transformer, RATE, trained_by_adam)
    state = State(work / "transformer.safetensors", {"transformer": transformer, "average": average}, both)
    log, saved = Log(work / "transformer.log"), time.monotonic()
    for step in range(state.load(), steps):
        pool.grow(min(MAX_SHARDS, 1 + step // STEPS_PER_SHARD))
        rng = random.Random(f"batch {seed} {step}")
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        set_rate(both, RATE * learning_rate(step, steps, WARMUP))
        losses = {"text": [], "edit": []}
        for _ in range(FORMS):
            batch = Batch(pool.batch(rng, EXAMPLES), mean, std, generator, device)
            value = loss(transformer, batch)
            (value / FORMS).backward()
            losses["edit" if batch.condition.references else "text"].append(value.item())
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
        _follow(average, transformer, min(EMA, (1 + step) / (10 + step)))
        log.add(step, {name: sum(values) / len(values) for name, values in losses.items() if values})
        if time.monotonic() - saved > SAVE_SECONDS:
            state.save(step + 1)
            saved = time.monotonic()
    state.save(steps)
    return average


@torch.no_grad()
def _follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
