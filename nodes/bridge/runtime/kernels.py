"""ComfyUI's attention and comfy-kitchen's fused kernels behind the transformer's `Kernels`."""
import logging

import comfy.ldm.modules.attention
import comfy.ops
import torch
from torch import Tensor, nn

from ....model.runtime import kernels as plain
from ....model.runtime.kernels import TORCH, Kernels

log = logging.getLogger(__name__)


def comfy_attention(transformer_options: dict):
    """The attention that ComfyUI was started with (xformers, flash, sage, PyTorch), or that a node overrides."""
    def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
        if causal:  # only the prompt's own tokens, once: ComfyUI's functions take no causal flag
            return plain.attention(q, k, v, causal=True)
        heads = q.shape[2]
        return comfy.ldm.modules.attention.optimized_attention(
            q.flatten(2), k.flatten(2), v.flatten(2), heads, transformer_options=transformer_options)
    return attention


def kernels_for(device: torch.device) -> Kernels:
    """Fused kernels where the device has them. On the CPU comfy-kitchen only repeats what torch does."""
    if device.type == "cpu":
        return TORCH
    try:
        import comfy_kitchen
    except ImportError:
        log.warning("comfy-kitchen is not installed: the transformer runs with plain PyTorch kernels.")
        return TORCH
    return kitchen_kernels(comfy_kitchen)


def kitchen_kernels(kitchen) -> Kernels:
    """QK-norm + RoPE and scaled LayerNorm as single kernels of comfy-kitchen."""
    def norm_rope(q: Tensor, k: Tensor, norm_q: nn.Module, norm_k: nn.Module, rotations: Tensor):
        return kitchen.rms_rope(q, k, rotations, ready_weight(norm_q, q), ready_weight(norm_k, k), norm_q.eps)

    def scaled_layer_norm(x: Tensor, scale: tuple[Tensor, Tensor], eps: float) -> Tensor:
        return kitchen.adaln(x, *scale, eps)

    return Kernels(plain.attention, norm_rope, scaled_layer_norm, with_zero_shift, rotation_matrices)


def ready_weight(norm: nn.Module, x: Tensor) -> Tensor:
    """The weight of a norm as ComfyUI hands it over for x, which may have to bring it from RAM or to patch it.

    ComfyUI may bring it in a buffer that the next layer gets as well, so what does not lie on the device is copied
    (256 bytes) before the buffer goes back: two such weights are in use at a time.
    """
    weight, bias, stream = comfy.ops.cast_bias_weight(norm, x, offloadable=True)
    brought = norm.weight.device != x.device
    own = weight.clone() if brought else weight
    comfy.ops.uncast_bias_weight(norm, weight, bias, stream)
    return own


def with_zero_shift(scale: Tensor) -> tuple[Tensor, Tensor]:
    """comfy-kitchen shifts too. Its kernels copy rows that do not lie one after the other, at every call."""
    scale = scale.contiguous()
    return scale, torch.zeros_like(scale)


def rotation_matrices(rotations: Tensor) -> Tensor:
    """Unit complex numbers (S, C/2) -> 2 x 2 matrices (1, S, 1, C/2, 2, 2), comfy-kitchen's form."""
    cos, sin = rotations.real, rotations.imag
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))[None, :, None]
