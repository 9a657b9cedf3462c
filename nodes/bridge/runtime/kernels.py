"""comfy-kitchen's fused kernels behind the transformer's `Kernels`."""
import logging

import comfy.ops
import torch
from torch import Tensor, nn

from ....model.runtime.kernels import TORCH, Kernels
from ..kitchen import has_fused

log = logging.getLogger(__name__)


def kernels_for(device: torch.device) -> Kernels:
    """Fused kernels where the device has them. On the CPU comfy-kitchen only repeats what torch does."""
    if device.type == "cpu":
        return TORCH
    if not has_fused("rms_rope", "adaln"):
        log.warning("comfy-kitchen has no kernels for this device (on NVIDIA it needs PyTorch for CUDA 13, or ComfyUI "
                    "started with --enable-triton-backend): the transformer runs with plain PyTorch kernels.")
        return TORCH
    import comfy_kitchen
    return kitchen_kernels(comfy_kitchen)


def kitchen_kernels(kitchen) -> Kernels:
    """QK-norm + RoPE and scaled LayerNorm as single kernels of comfy-kitchen."""
    def norm_rope(q: Tensor, k: Tensor, norm_q: nn.Module, norm_k: nn.Module, rotations: Tensor):
        return kitchen.rms_rope(q, k, rotations, ready_weight(norm_q, q), ready_weight(norm_k, k), norm_q.eps)

    def scaled_layer_norm(x: Tensor, scale: tuple[Tensor, Tensor], eps: float) -> Tensor:
        return kitchen.adaln(x, *scale, eps)

    return Kernels(norm_rope=norm_rope, scaled_layer_norm=scaled_layer_norm, prepare_scale=with_zero_shift,
                   prepare_rotations=rotation_matrices)


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
