"""The transformer's block: attention and SwiGLU, modulated by scale and gate alone. The control network has it too.

Shapes as in transformer.py.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from ..runtime.kernels import Kernels
from ..runtime.operations import Factory, ModuleList, Operations
from .spec import TransformerSpec


class Modulation(NamedTuple):
    """What sigma does to every block alike: scales and gates, each of (B, 1, D)."""

    scale_attn: Any  # scales in the form that the kernels want (runtime/kernels.py)
    gate_attn: Tensor
    scale_mlp: Any
    gate_mlp: Tensor


# attend(q, k, v) -> attended values; q, k, v (B, S, H, C) -> (B, S, H * C)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


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
