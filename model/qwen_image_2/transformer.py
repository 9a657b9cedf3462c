"""The diffusion transformer of Qwen-Image 2.x: one stream, block-causal, modulated by scale and gate alone.

Written from the technical report (arXiv 2605.10730) and checked tensor by tensor against diffusers 0.42.1,
transformer_qwenimage21.py. Module names are those of the diffusers checkpoint, but for the MLP's fused matrix.

Shapes: B batch of targets, P batch of prefixes (1 or B), S tokens of the pass at hand, N target tokens = h * w,
T prefix tokens, D width, H heads, C channels of a head, M hidden width of the MLP.
"""
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from ...messages import Refusal
from ..runtime.kernels import TORCH, Kernels
from ..runtime.offload import Streamer
from ..runtime.operations import Factory, ModuleList, Operations
from ..runtime.rope import image_positions, rotations, text_positions
from ..runtime.time_embedding import TIME_CHANNELS, timestep_embedding
from .prefix_cache import Condition, PrefixCache, Segment
from .spec import TransformerSpec


class Modulation(NamedTuple):
    """What sigma does to every block alike: scales and gates, each of (B, 1, D)."""

    scale_attn: Any  # scales in the form that the kernels want (runtime/kernels.py)
    gate_attn: Tensor
    scale_mlp: Any
    gate_mlp: Tensor


# attend(q, k, v) -> attended values; q, k, v (B, S, H, C) -> (B, S, H * C)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


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


class Attention(nn.Module):
    def __init__(self, spec: TransformerSpec, ops: Operations, kernels: Kernels, **factory: Unpack[Factory]):
        super().__init__()
        inner = spec.heads * spec.head_dim
        self.heads = spec.heads
        self.kernels = kernels
        self.to_q = ops.Linear(spec.dim, inner, bias=False, **factory)
        self.to_k = ops.Linear(spec.dim, inner, bias=False, **factory)
        self.to_v = ops.Linear(spec.dim, inner, bias=False, **factory)
        self.to_out = ModuleList([ops.Linear(inner, spec.dim, bias=False, **factory)])
        self.norm_q = ops.RMSNorm(spec.head_dim, eps=spec.eps, **factory)
        self.norm_k = ops.RMSNorm(spec.head_dim, eps=spec.eps, **factory)

    def project(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, S, D) -> queries, keys, values, each (B, S, H, C), normed and rotated."""
        q, k, v = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.to_q, self.to_k, self.to_v))
        q, k = self.kernels.norm_rope(q, k, self.norm_q, self.norm_k, rope)
        return q, k, v

    def forward(self, x: Tensor, rope: Tensor, attend: Attend) -> Tensor:
        return self.to_out[0](attend(*self.project(x, rope)))  # (B, S, D)


class SwiGLU(nn.Module):
    """Gate and projection are one matrix, whose upper half of rows is the gate's, as in Comfy-Org's files: one product,
    one input to quantize, and an output that a kernel can multiply while it quantizes it (runtime/kernels.py)."""

    def __init__(self, spec: TransformerSpec, ops: Operations, kernels: Kernels, **factory: Unpack[Factory]):
        super().__init__()
        self.kernels = kernels
        self.gate_up = ops.Linear(spec.dim, 2 * spec.mlp_dim, bias=False, **factory)
        self.out = ops.Linear(spec.mlp_dim, spec.dim, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.kernels.linear_of_swiglu(self.out, self.gate_up(x))  # (B, S, 2M) -> (B, S, D)


class SplitSwiGLU(nn.Module):
    """The same with two matrices, as in the reference: for files whose halves cannot be joined to the bit, because
    each has a type or a scale of its own (detect.py)."""

    def __init__(self, spec: TransformerSpec, ops: Operations, **factory: Unpack[Factory]):
        super().__init__()
        self.gate_layer = ops.Linear(spec.dim, spec.mlp_dim, bias=False, **factory)
        self.proj = ops.Linear(spec.dim, spec.mlp_dim, bias=False, **factory)
        self.out = ops.Linear(spec.mlp_dim, spec.dim, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.gate_layer(x)).mul_(self.proj(x))  # (B, S, M), the widest tensor: no third copy of it
        return self.out(hidden)


class Block(nn.Module):
    def __init__(self, spec: TransformerSpec, ops: Operations, kernels: Kernels, **factory: Unpack[Factory]):
        super().__init__()
        self.eps = spec.eps
        self.kernels = kernels
        self.attn = Attention(spec, ops, kernels, **factory)
        self.img_mlp: SwiGLU | SplitSwiGLU = (SwiGLU(spec, ops, kernels, **factory) if spec.fused_mlp
                                              else SplitSwiGLU(spec, ops, **factory))

    def forward(self, x: Tensor, modulation: Modulation, rope: Tensor, attend: Attend) -> Tensor:
        """x (B, S, D) -> x + gate * attention(norm(x) * (1 + scale)), and the same with the MLP: no shift.

        The kernel of the norm multiplies by 1 + scale, torch.addcmul gates and adds in one pass.
        """
        scale_attn, gate_attn, scale_mlp, gate_mlp = modulation
        norm = self.kernels.scaled_layer_norm
        x = torch.addcmul(x, gate_attn, self.attn(norm(x, scale_attn, self.eps), rope, attend))  # (B, S, D)
        x = torch.addcmul(x, gate_mlp, self.img_mlp(norm(x, scale_mlp, self.eps)))               # (B, S, D)
        # The residual stream outgrows fp16; the reference clips it to the largest finite value.
        return x.clip(-65504, 65504) if x.dtype == torch.float16 else x

    def keys_and_values(self, x: Tensor, modulation: Modulation, rope: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens x (B, S, D), each (B, S, H, C), without the rest of the block."""
        _, k, v = self.attn.project(self.kernels.scaled_layer_norm(x, modulation.scale_attn, self.eps), rope)
        return k, v


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
                      attention: Callable[..., Tensor] | None = None) -> PrefixCache:
        """Run text and references through all blocks and keep their keys and values; arguments as prefix_layers."""
        return PrefixCache(prefix_end(condition), list(self.prefix_layers(condition, sigma, dtype, attention)))

    def prefix_layers(self, condition: Condition, sigma: Tensor | None = None, dtype: torch.dtype | None = None,
                      attention: Callable[..., Tensor] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Run text and references through the blocks and yield each one's keys and values (P, T, H, C).

        sigma (P,): only read where `causal_condition` is false. dtype: to compute in, by default the text's.
        attention: instead of the kernels' own, this once.
        """
        attention = attention or self.kernels.attention
        segments = list(condition.segments())
        x = self._prefix_tokens(condition, segments, dtype or condition.text.dtype)  # (P, T, D)
        positions, _ = _prefix_positions(segments)
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

        last = self.transformer_blocks[-1]
        for block in self._blocks_in_turn():
            if block is last:  # nothing reads the prefix after its keys and values
                final = block.keys_and_values(x, modulation, rope)
            else:
                x = block(x, modulation, rope, attend)
                yield kept.pop()
        yield final  # out of the loop: a pass that nobody takes further must hold no block

    def forward(self, x: Tensor, sigma: Tensor, cache: PrefixCache,
                attention: Callable[..., Tensor] | None = None) -> Tensor:
        """x: noisy latents (B, 64, h, w) on the transformer's scale; sigma (B,) in [0, 1] -> velocity like x."""
        attention = attention or self.kernels.attention
        height, width = x.shape[-2:]
        tokens = self.img_in(x.flatten(2).transpose(1, 2))  # (B, N, D)
        time = self.time_text_embed(sigma, tokens.dtype)    # (B, D)
        modulation = self._modulation(time)
        rope = self._target_rope(cache, (height, width), x.device)
        for layer, block in enumerate(self._blocks_in_turn()):
            tokens = block(tokens, modulation, rope, _attend_to_all(cache, layer, attention))  # (B, N, D)
        velocity = self.proj_out(self.norm_out(tokens, time))  # (B, N, 64)
        return velocity.transpose(1, 2).unflatten(2, (height, width))

    def _blocks_in_turn(self) -> Iterator[Block]:
        return iter(self.transformer_blocks) if self.streamer is None else self.streamer.iter_blocks()

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


def _attend_to_all(cache: PrefixCache, layer: int, attention: Callable[..., Tensor]) -> Attend:
    """The target sees the whole prefix and itself: no mask."""
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = cache.join(layer, k, v)  # (B, T + N, H, C)
        return attention(q, keys, values)
    return attend


def prefix_end(condition: Condition) -> int:
    """The rotary counter after the prefix."""
    return _prefix_positions(list(condition.segments()))[1]


def _prefix_positions(segments: list[Segment]) -> tuple[Tensor, int]:
    """Rotary positions (T, 3) of the prefix, and the counter after it."""
    counter, positions = 0, []
    for segment in segments:
        if segment.grid is None:
            length = segment.end - segment.start
            positions.append(text_positions(counter, length))
            counter += length
        else:
            positions.append(image_positions(counter, *segment.grid))
            counter += max(segment.grid)
    return torch.cat(positions), counter
