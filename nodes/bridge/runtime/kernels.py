"""comfy-kitchen's fused kernels behind the transformer's `Kernels`, and ComfyUI's SwiGLU inside the int8 quantizer."""
import logging

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ....model.runtime import kernels as plain
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

    def modulated_layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        return kitchen.adaln(x, scale.contiguous(), shift.contiguous(), eps)

    return Kernels(norm_rope=norm_rope, scaled_layer_norm=scaled_layer_norm,
                   modulated_layer_norm=modulated_layer_norm, linear_of_swiglu=linear_of_swiglu,
                   prepare_scale=with_zero_shift, prepare_rotations=rotation_matrices)


# The queries', keys' and values' products round the same input three times. comfy-kitchen (0.2.26) rotates and rounds
# activations in its int8_linear alone: what is public beside it rounds without the rotation, or multiplies into 32-bit
# integers, which are more bytes than are saved. One matrix for the three would do, but few files allow it: fp8 and
# nvfp4 have a scale for each, GGUF often another type for the values.

def linear_of_swiglu(linear: nn.Module, gate_up: Tensor) -> Tensor:
    """The plain form, but for int8: a kernel rotates and rounds its input anyway, and ComfyUI's own form (where this
    version has it) multiplies gate and projection in that kernel. Their product is never written and read again."""
    if hasattr(comfy.ops, "linear_input_act") and multiplies_int8(linear):
        return comfy.ops.linear_input_act(linear, gate_up, "swiglu")
    return plain.linear_of_swiglu(linear, gate_up)


def multiplies_int8(linear: nn.Module) -> bool:
    """Whether this layer's own product would be one of integers, and nothing else: ComfyUI's form looks at the weight
    alone, and calls no layer. One that was told to dequantize, whose LoRA is computed as it is used, or whose forward
    another node has replaced keeps its own way; so does one that torch compiles, which cannot look into the call."""
    if getattr(linear, "quant_format", None) != "int8_tensorwise" or not isinstance(linear.weight, QuantizedTensor):
        return False
    told = linear._full_precision_mm or getattr(linear, "comfy_force_cast_weights", False) or linear.weight_function
    return not (told or "forward" in vars(linear) or torch.compiler.is_compiling())


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
