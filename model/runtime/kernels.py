"""The operations that a host may replace by faster ones: attention, QK-norm with RoPE, scaled LayerNorm, SwiGLU.

The transformer calls them through a `Kernels` object and never asks which backend runs. `TORCH` is the plain
version, the one that defines the result.

Shapes: B batch, Q query tokens, K key tokens, H heads, C channels of a head, S tokens, D width, M hidden width.
"""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .triton.checked import Checked


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, visible: Tensor | None = None) -> Tensor:
    """Softmax attention of q (B, Q, H, C) over k, v (B, K, H, C) -> (B, Q, H * C).

    causal: the queries are the last Q of the K positions, and none sees a later one. visible: (B or 1, K) bool, the
    keys that count; None: all.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, H, tokens, C)
    queries, keys = q.shape[2], k.shape[2]
    if visible is not None:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None, None])
    elif causal and queries != keys:
        earlier = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=earlier)
    else:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).flatten(2)


def norm_rope(q: Tensor, k: Tensor, norm_q: nn.Module, norm_k: nn.Module, rotations: Tensor) -> tuple[Tensor, Tensor]:
    """RMS-norm per head, then rotation of neighbouring channel pairs; q, k (B, S, H, C), rotations (S, C/2)."""
    return rotate_(norm_q(q), rotations), rotate_(norm_k(k), rotations)


def rotate_(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotate channel pairs of x (B, S, H, C) by unit complex numbers (S, C/2), in fp32; overwrites x where it is."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (B, S, H, C/2)
    return torch.view_as_real(pairs.mul_(rotations.unsqueeze(1))).flatten(-2).type_as(x)


def scaled_layer_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) * (1 + scale), x (B, S, D), scale (B or 1, 1, D)."""
    normed = F.layer_norm(x, x.shape[-1:], eps=eps)
    return torch.addcmul(normed, normed, scale)


def modulated_layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, x (B, S, D), scale and shift (B or 1, 1, D)."""
    width = x.shape[-1:]
    if len(scale) == 1:  # the same for all: torch has that in one pass
        return F.layer_norm(x, width, 1 + scale.view(width), shift.view(width), eps)
    return torch.addcmul(shift, F.layer_norm(x, width, eps=eps), 1 + scale)


def plain_silu_product(gate_up: Tensor) -> Tensor:
    """silu(gate) * projection (B, S, M); gate_up (B, S, 2M) has the gate's channels first."""
    gate, projection = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(projection)


def triton_silu_product() -> Callable[[Tensor], Tensor]:
    from .triton.swiglu import silu_product
    return silu_product


def few_tokens(gate_up: Tensor) -> tuple[Tensor]:
    """Random ones of as many channels, some of them as large as an MLP's become."""
    few = torch.randn(3, gate_up.shape[-1], generator=torch.Generator().manual_seed(1))
    return (few.mul_(torch.tensor([[0.1], [1.0], [30.0]])).to(gate_up),)


# The largest item of a block beside products and attention: two passes over the widest tensors, or one. (In int8 the
# last product's quantizer multiplies, where ComfyUI has that.)
silu_product = Checked("The MLPs' SwiGLU is computed", plain_silu_product, triton_silu_product, few_tokens, tolerance=2)


def linear_of_swiglu(linear: nn.Module, gate_up: Tensor) -> Tensor:
    """linear(silu(gate) * projection) -> (B, S, D); gate_up (B, S, 2M) has the gate's channels first."""
    return linear(silu_product(gate_up))


@dataclass(frozen=True)
class Kernels:
    attention: Callable[..., Tensor] = attention
    norm_rope: Callable[..., tuple[Tensor, Tensor]] = norm_rope
    scaled_layer_norm: Callable[..., Tensor] = scaled_layer_norm
    modulated_layer_norm: Callable[..., Tensor] = modulated_layer_norm
    linear_of_swiglu: Callable[[nn.Module, Tensor], Tensor] = linear_of_swiglu
    # A scale (B or 1, 1, D) in whatever form scaled_layer_norm wants, made once for a pass through all blocks.
    prepare_scale: Callable[[Tensor], Any] = lambda scale: scale
    # Rotations (S, C/2) on the CPU -> in whatever form norm_rope wants, made once for a pass through all blocks.
    prepare_rotations: Callable[[Tensor], Tensor] = lambda rotations: rotations


TORCH = Kernels()
