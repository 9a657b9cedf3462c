"""The transformer against diffusers: one denoising step, the first step with its prefix, several seeds of a prompt."""
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from bootstrap import ROOT  # noqa: F401  first, it makes the pack importable
from diffusers import QwenImage21Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache
from floor import beside_floor, of_floors
from timing import Budget, Comparison, compare
from torch import Tensor

from qwen_image_2.model.qwen_image_2 import schedule
from qwen_image_2.model.qwen_image_2.prefix_cache import Condition
from qwen_image_2.model.qwen_image_2.spec import TransformerSpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.model.runtime.sigmas import linear_times
from qwen_image_2.tools import tiny

SPEC = TransformerSpec(layers=8, dim=512, heads=4, head_dim=128, mlp_dim=1536, context_dim=512)
# A round of the batches takes 48 steps of one picture, so they get by with fewer layers; ratios hardly depend on them.
BATCH_SPEC = replace(SPEC, layers=4)
TEXT_TOKENS = 256
SIDE = 32  # latents: pictures of 512 x 512
TOKENS = SIDE * SIDE
TOKENS_PER_SLOT = 4  # latent tokens of a reference for each state that diffusers reads in its place, and ignores
SLOTS = TOKENS // TOKENS_PER_SLOT
SEEDS, STEPS = 4, 4
STEP_FLOOR_GOAL = 1.12


def setting(spec: TransformerSpec, reference: bool = False) -> str:
    prefix = f"{TEXT_TOKENS} text tokens" + (f" and a reference of {TOKENS}" if reference else "")
    return (f"dim {spec.dim}, {spec.heads} heads of {spec.head_dim}, {spec.layers} layers, prefix of {prefix}, "
            f"{TOKENS} target tokens, fp32")


class Networks:
    """Both transformers with the same random weights, one prompt, and noise for several pictures."""

    def __init__(self, spec: TransformerSpec, reference: bool = False):
        self.theirs = QwenImage21Transformer2DModel(
            num_layers=spec.layers, num_attention_heads=spec.heads, attention_head_dim=spec.head_dim,
            context_in_dim=spec.context_dim).eval()
        self.theirs.load_state_dict(tiny.randomise(self.theirs.state_dict(), seed=0))
        self.ours = Transformer(spec).eval()
        self.ours.load_state_dict(tiny.to_comfy_transformer(self.theirs.state_dict()))
        generator = torch.Generator().manual_seed(1)
        count = int(reference)
        self.references = torch.randn(count, spec.channels, SIDE, SIDE, generator=generator).split(1) if count else ()
        self.text = torch.randn(1, TEXT_TOKENS + count * SLOTS, spec.context_dim, generator=generator)
        self.noise = torch.randn(SEEDS, spec.channels, SIDE, SIDE, generator=generator)

    def our_prefix(self):
        """The reference stands before the text, as in the pack's prompts."""
        count = len(self.references)
        return self.ours.encode_prefix(Condition(self.text[:, count * SLOTS:], (0,) * count, self.references))

    def new_cache(self) -> QwenImage21KVCache:
        return QwenImage21KVCache(len(self.theirs.transformer_blocks))

    def their_velocity(self, x: Tensor, sigma: Tensor, cache: QwenImage21KVCache, mode: str) -> Tensor:
        return their_velocity(self.theirs, self.text, self.references, x, sigma, cache, mode)

    def our_pictures(self, noise: Tensor) -> Tensor:
        """Latents of a whole run: prefix once, then all steps."""
        cache = self.our_prefix()
        return sample(noise, lambda x, sigma: self.ours(x, sigma, cache))

    def their_pictures(self, noise: Tensor) -> Tensor:
        cache, modes = self.new_cache(), iter(["extract"] + ["cached"] * (STEPS - 1))
        return sample(noise, lambda x, sigma: self.their_velocity(x, sigma, cache, next(modes)))


def their_network(ours: Transformer) -> QwenImage21Transformer2DModel:
    """diffusers' transformer with the very weights of ours, not a copy of them."""
    def empty(layers: int) -> QwenImage21Transformer2DModel:
        return QwenImage21Transformer2DModel(
            num_layers=layers, num_attention_heads=ours.spec.heads, attention_head_dim=ours.spec.head_dim,
            context_in_dim=ours.spec.context_dim, axes_dims_rope=ours.spec.rope_axes)

    with torch.device("meta"):
        network = empty(ours.spec.layers)
    made = empty(1)
    # They hold tables that are no parameters.
    network.pos_embed, network.time_text_embed = made.pos_embed, made.time_text_embed
    network.load_state_dict(tiny.to_diffusers_transformer(ours.state_dict()), assign=True)
    return network.eval()


def their_velocity(network: QwenImage21Transformer2DModel, text: Tensor, references: Sequence[Tensor], x: Tensor,
                   sigma: Tensor, cache: QwenImage21KVCache, mode: str) -> Tensor:
    """diffusers' velocity of latents x (B, 64, h, w). The references stand before the text and are as large as x.

    mode: "extract" computes prefix and target and fills the cache, "cached" computes the target alone.
    """
    batch, images, grid = len(x), [*references, x], tuple(x.shape[-2:])
    tokens = torch.cat([image.expand(batch, -1, -1, -1).flatten(2).transpose(1, 2) for image in images], dim=1)
    # Its image slots: the references' before the text, the target's after it.
    slots = grid[0] * grid[1] // TOKENS_PER_SLOT
    state = torch.arange(text.shape[1] + slots, device=x.device)
    is_slot = (state < slots * len(references)) | (state >= text.shape[1])
    out, = network(
        tokens, text.expand(batch, -1, -1), sigma, [[(1, *grid)] * len(images)] * batch,
        is_slot.expand(batch, -1), kv_cache=cache, kv_cache_mode=mode, return_dict=False)
    return out[:, -grid[0] * grid[1]:].transpose(1, 2).unflatten(2, grid)


def sample(x: Tensor, velocity: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Euler steps from noise to latents."""
    sigmas = schedule.SHIFT.unstretched(linear_times(STEPS), TOKENS)
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) * velocity(x, sigma.expand(len(x)))
    return x


def cached_step(budget: Budget) -> list[Comparison]:
    """One step whose prefix is already known."""
    nets = Networks(SPEC)
    x, sigma = nets.noise[:1], torch.tensor([0.73])
    ours, theirs = nets.our_prefix(), nets.new_cache()
    nets.their_velocity(x, sigma, theirs, "extract")
    return [*compare("step, prefix known", {
        "ours": lambda: nets.ours(x, sigma, ours),
        "diffusers": lambda: nets.their_velocity(x, sigma, theirs, "cached"),
    }, budget, goals=(0.95,)), beside_floor("step, prefix known", lambda: nets.ours(x, sigma, ours), nets.ours, budget,
                                            goal=STEP_FLOOR_GOAL)]


def first_step(budget: Budget) -> list[Comparison]:
    """The first step, which also computes the prefix."""
    nets = Networks(SPEC)
    x, sigma = nets.noise[:1], torch.tensor([0.73])
    return compare("first step, prefix included", {
        "ours": lambda: nets.ours(x, sigma, nets.our_prefix()),
        "diffusers": lambda: nets.their_velocity(x, sigma, nets.new_cache(), "extract"),
    }, budget, goals=(0.9,))


def batch(budget: Budget) -> list[Comparison]:
    """Several seeds of one prompt at once, against one after another, and against diffusers' batch."""
    nets, what = Networks(BATCH_SPEC), f"{SEEDS} seeds x {STEPS} steps"
    ways = _together_and_one_by_one(nets)
    return [*compare(what, {**ways, "diffusers, together": lambda: nets.their_pictures(nets.noise)}, budget,
                     goals=(0.95, None)), of_floors(what, ways, nets.ours, budget)]


def edit_batch(budget: Budget) -> list[Comparison]:
    """The same for an edit, whose prefix is longer than its target."""
    nets = Networks(BATCH_SPEC, reference=True)
    return compare(f"{SEEDS} seeds x {STEPS} steps, edit", _together_and_one_by_one(nets), budget, goals=(0.95,))


def _together_and_one_by_one(nets: Networks) -> dict[str, Callable[[], Tensor]]:
    return {
        "ours, together": lambda: nets.our_pictures(nets.noise),
        "ours, one by one": lambda: torch.cat([nets.our_pictures(x) for x in nets.noise.split(1)]),
    }
