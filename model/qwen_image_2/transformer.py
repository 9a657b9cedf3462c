"""The diffusion transformer of Qwen-Image 2.x: one stream, block-causal, modulated by scale and gate alone.

Written from the technical report (arXiv 2605.10730) and checked tensor by tensor against diffusers 0.42.1,
transformer_qwenimage21.py. Module names are those of the diffusers checkpoint, but for the MLP's fused matrix.

Shapes: B batch of targets, P batch of prefixes (1 or B), S tokens of the pass at hand, N target tokens = h * w,
T prefix tokens, D width, H heads, C channels of a head, M hidden width of the MLP.
"""
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from ...messages import Refusal
from ..runtime.kernels import TORCH, Kernels
from ..runtime.key_weights import PLAIN, KeyWeights, weighted_attention
from ..runtime.offload import Streamer
from ..runtime.operations import Factory, ModuleList, Operations
from ..runtime.rope import image_positions, rotations, text_positions
from ..runtime.time_embedding import TIME_CHANNELS, timestep_embedding
from .blocks import Attend, Block, Modulation
from .control import Controlling, ControlPass, PrefixControl, TargetChains
from .prefix_cache import Condition, PrefixCache, Segment
from .spec import TransformerSpec

InTurn = Callable[[Iterable[Block]], Iterator[Block]]


class ZeroCentredRMSNorm(nn.Module):
    """RMSNorm whose stored weight is the scale minus one; computed and returned in fp32."""

    def __init__(self, dim: int, eps: float, **factory: Unpack[Factory]):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, **factory))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.to(x.device, torch.float32) + 1
        return F.rms_norm(x.float(), x.shape[-1:], scale, self.eps)


class TextProjection(nn.Module):
    """Text-encoder states to the transformer's width."""

    def __init__(self, spec: TransformerSpec, ops: Operations, **factory: Unpack[Factory]):
        super().__init__()
        self.text_norm = ZeroCentredRMSNorm(spec.context_dim, spec.eps, **factory)
        self.in_layer = ops.Linear(spec.context_dim, spec.dim, bias=False, **factory)
        self.out_layer = ops.Linear(spec.dim, spec.dim, bias=False, **factory)

    def forward(self, states: Tensor, dtype: torch.dtype) -> Tensor:
        """States before the encoder's final norm can exceed fp16: they meet `dtype` only after their own norm."""
        normed = self.text_norm(states).to(dtype)
        return self.out_layer(F.gelu(self.in_layer(normed), approximate="tanh"))


class TimeEmbedding(nn.Module):
    """Sigma (B,) -> embedding (B, D)."""

    def __init__(self, spec: TransformerSpec, ops: Operations, **factory: Unpack[Factory]):
        super().__init__()
        self.timestep_embedder = nn.ModuleDict({
            "linear_1": ops.Linear(TIME_CHANNELS, spec.dim, bias=False, **factory),
            "linear_2": ops.Linear(spec.dim, spec.dim, bias=False, **factory),
        })

    def forward(self, sigma: Tensor, dtype: torch.dtype) -> Tensor:
        mlp = self.timestep_embedder
        return mlp["linear_2"](F.silu(mlp["linear_1"](timestep_embedding(sigma, dtype))))


class OutputNorm(nn.Module):
    def __init__(self, spec: TransformerSpec, ops: Operations, kernels: Kernels, **factory: Unpack[Factory]):
        super().__init__()
        self.eps = spec.eps
        self.kernels = kernels
        self.linear = ops.Linear(spec.dim, spec.dim, bias=False, **factory)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale = self.linear(F.silu(time)).unsqueeze(1)  # (B, 1, D)
        return self.kernels.scaled_layer_norm(x, self.kernels.prepare_scale(scale), self.eps)


class Transformer(nn.Module):
    """Predicts the velocity (noise minus image) of a latent, given the keys and values of its prefix.

        cache = transformer.encode_prefix(Condition(text, slots, references))
        velocity = transformer(x, sigma, cache)        # as often as wanted

    With `spec.causal_condition` false the prefix depends on sigma: pass it, and encode anew for every step.
    `ops` is a namespace with Linear and RMSNorm (torch.nn, or a host's), `kernels` see runtime/kernels.py.
    """

    def __init__(self, spec: TransformerSpec, ops: Operations = nn, kernels: Kernels = TORCH,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        super().__init__()
        factory = Factory(device=device, dtype=dtype)
        self.spec = spec
        self.kernels = kernels
        self.time_text_embed = TimeEmbedding(spec, ops, **factory)
        self.txt_in = TextProjection(spec, ops, **factory)
        self.img_in = ops.Linear(spec.channels, spec.dim, bias=False, **factory)
        self.modulation = nn.Sequential(nn.SiLU(), ops.Linear(spec.dim, 4 * spec.dim, bias=False, **factory))
        self.transformer_blocks = ModuleList(Block(spec, ops, kernels, **factory) for _ in range(spec.layers))
        self.streamer: Streamer[Block] | None = None  # where not all blocks stay on the device
        self.norm_out = OutputNorm(spec, ops, kernels, **factory)
        self.proj_out = ops.Linear(spec.dim, spec.channels, bias=False, **factory)

    def encode_prefix(self, condition: Condition, sigma: Tensor | None = None, dtype: torch.dtype | None = None,
                      attention: Callable[..., Tensor] | None = None, controls: Sequence[PrefixControl] = (),
                      target: tuple[int, int] | None = None) -> PrefixCache:
        """Run text and references through all blocks and keep their keys and values; arguments as prefix_layers."""
        layers = self.prefix_layers(condition, sigma, dtype, attention, controls, target)
        return PrefixCache(prefix_end(condition), list(layers))

    def prefix_layers(self, condition: Condition, sigma: Tensor | None = None, dtype: torch.dtype | None = None,
                      attention: Callable[..., Tensor] | None = None, controls: Sequence[PrefixControl] = (),
                      target: tuple[int, int] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Run text and references through the blocks and yield each one's keys and values (P, T, H, C), those of a
        control network's block after those of the block that it follows.

        sigma (P,): only read where `causal_condition` is false. dtype: to compute in, by default the text's.
        attention: instead of the kernels' own, this once. controls: that will be in force along the target.
        target: its height and width in tokens, which only references that are centred on it ask for.
        """
        attention = attention or self.kernels.attention
        segments = list(condition.segments())
        x = self._prefix_tokens(condition, segments, dtype or condition.text.dtype)  # (P, T, D)
        positions, _ = _prefix_positions(segments, target if condition.centred else None)
        if self.spec.causal_condition:
            sigma = torch.zeros(1, device=x.device)
        elif sigma is None:
            raise Refusal("causal_condition", "This checkpoint has causal_condition = false: its prefix depends on "
                          "sigma.")
        else:  # one prefix for each sigma; fused kernels want as many rows as scales, one after the other
            x = x.expand(max(len(x), len(sigma)), -1, -1).contiguous()
        modulation = self._modulation(self.time_text_embed(sigma, x.dtype))
        rope = self._rope(positions, x.device)
        kept = []

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kept.append((k, v))
            # No mask for images: a run of tokens sees all keys up to its own end, text causally within itself.
            return torch.cat([
                attention(q[:, s.start:s.end], k[:, :s.end], v[:, :s.end], causal=s.grid is None)
                for s in segments
            ], dim=1)

        images = [slice(segment.start, segment.end) for segment in segments if segment.grid is not None]
        passes = [ControlPass(control.network, self.spec.layers) for control in controls]
        chains = [each.begin_prefix(x, images if control.reference_rows else ())
                  for each, control in zip(passes, controls, strict=True)]
        last = self.spec.layers - 1
        for number, block in enumerate(self._blocks_in_turn()):
            if number == last:  # nothing reads the prefix after its keys and values
                final = block.keys_and_values(x, modulation, rope)
            else:
                x = block(x, modulation, rope, attend)
                yield kept.pop()
            for place, control in enumerate(controls):
                if (beside := passes[place].block_after(number)) is None:
                    continue
                assert number < last, "a control network follows no last block"
                chains[place] = beside(chains[place], modulation, rope, attend)
                yield kept.pop()
                x = torch.add(x, beside.after_proj(chains[place]), alpha=control.strength)
        yield final  # out of the loop: a pass that nobody takes further must hold no block

    def forward(self, x: Tensor, sigma: Tensor, cache: PrefixCache,
                attention: Callable[..., Tensor] | None = None, controls: Sequence[Controlling] = (),
                weights: KeyWeights = PLAIN, in_turn: InTurn = iter) -> Tensor:
        """x: noisy latents (B, 64, h, w) on the transformer's scale; sigma (B,) in [0, 1] -> velocity like x.
        controls: those that the cache was made with. weights: how much of its prefix the target looks at, on its
        device; the cache does not depend on them. in_turn: gives the blocks, where a host brings their weights."""
        attention = attention or self.kernels.attention
        height, width = x.shape[-2:]
        tokens = self.img_in(x.flatten(2).transpose(1, 2))  # (B, N, D)
        time = self.time_text_embed(sigma, tokens.dtype)    # (B, D)
        modulation = self._modulation(time)
        rope = self._target_rope(cache, (height, width), x.device)
        chains = TargetChains(controls, tokens, self.spec.layers)
        attends = _attending(cache, attention, weights, height * width)
        for layer, block in enumerate(self._blocks_in_turn(in_turn)):
            tokens = block(tokens, modulation, rope, next(attends))  # (B, N, D)
            tokens = chains.after(layer, tokens, modulation, rope, attends)
        velocity = self.proj_out(self.norm_out(tokens, time))  # (B, N, 64)
        return velocity.transpose(1, 2).unflatten(2, (height, width))

    def _blocks_in_turn(self, in_turn: InTurn = iter) -> Iterator[Block]:
        return in_turn(self.transformer_blocks) if self.streamer is None else self.streamer.iter_blocks()

    def _modulation(self, time: Tensor) -> Modulation:
        """Time embedding (B, D) -> prepared scales and tanh of the gates, the same for all blocks."""
        scale_attn, gate_attn, scale_mlp, gate_mlp = self.modulation(time).unsqueeze(1).chunk(4, dim=-1)
        prepare = self.kernels.prepare_scale
        return Modulation(prepare(scale_attn), gate_attn.tanh(), prepare(scale_mlp), gate_mlp.tanh())

    def _target_rope(self, cache: PrefixCache, size: tuple[int, int], device: torch.device) -> Tensor:
        """The target's rotations, kept in the cache: every step at one size has the same."""
        if cache.target_rope is None or cache.target_size != size:
            cache.target_rope = self._rope(image_positions(cache.position, *size), device)
            cache.target_size = size
        return cache.target_rope

    def _rope(self, positions: Tensor, device: torch.device) -> Tensor:
        table = rotations(positions, self.spec.rope_axes, self.spec.rope_theta)
        return self.kernels.prepare_rotations(table).to(device)

    def _prefix_tokens(self, condition: Condition, segments: list[Segment], dtype: torch.dtype) -> Tensor:
        """Embed each segment and line them up (P, T, D). References go through img_in, like the target."""
        text = self.txt_in(condition.text, dtype)
        pieces = []
        for segment in segments:
            if segment.grid is None:
                pieces.append(text[:, segment.source:segment.source + segment.end - segment.start])
            else:
                latent = condition.references[segment.source].to(dtype).expand(len(text), -1, -1, -1)
                pieces.append(self.img_in(latent.flatten(2).transpose(1, 2)))
        return torch.cat(pieces, dim=1)


def _attending(cache: PrefixCache, attention: Callable[..., Tensor], weights: KeyWeights,
               tokens: int) -> Iterator[Attend]:
    """For each layer of the cache in turn: the target sees the prefix, as much as is weighted, and its own tokens,
    without a mask."""
    factors = weights.followed_by(tokens).factors

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = cache.join(layer, k, v, weights)  # (B, T + N, H, C)
        return weighted_attention(attention, q, keys, values, factors)
    return (partial(attend, layer) for layer in count())


def prefix_end(condition: Condition) -> int:
    """The rotary counter after the prefix."""
    return _prefix_positions(list(condition.segments()))[1]


def _prefix_positions(segments: list[Segment], target: tuple[int, int] | None = None) -> tuple[Tensor, int]:
    """Rotary positions (T, 3) of the prefix, and the counter after it. target: the grid that references are centred
    on (ComfyUI's pull request 16400); None: each stands as its own number of rows and columns has it."""
    counter, positions = 0, []
    for segment in segments:
        if segment.grid is None:
            length = segment.end - segment.start
            positions.append(text_positions(counter, length))
            counter += length
        else:
            positions.append(image_positions(counter, *segment.grid))
            if target is not None:
                positions[-1] = positions[-1] + _offset(segment.grid, target)
            counter += max(segment.grid)
    return torch.cat(positions), counter


def _offset(grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """What brings an image's centre onto the target's, on the three axes: half a token where one number is odd."""
    return torch.tensor([0.0, *((own % 2 - other % 2) / 2 for own, other in zip(grid, target, strict=True))])
