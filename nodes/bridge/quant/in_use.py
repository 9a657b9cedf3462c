"""Quantized matrices whose LoRAs are computed each time they are used, on what they decode to, instead of merged.

GGUF's blocks have no room for what a merge makes of them. Into a matrix that was cast to fp8 a merge would be
rounded: small LoRAs are smaller than the steps between its numbers, a sixteenth to an eighth of each, and drown in them
(28 % off in tests/nodes/bridge/test_lora_1.py).
"""
from collections.abc import Container

from comfy.model_patcher import LowVramPatch, ModelPatcher
from torch import nn

from .gguf_ops import is_packed


def keep_apart(network: nn.Module, layers: Container[str]) -> None:
    """Mark the layers of these names as plain casts."""
    for name, module in network.named_modules():
        if name in layers:
            module.qwen_image_2_plain_cast = True


def is_plain_cast(module: nn.Module) -> bool:
    return getattr(module, "qwen_image_2_plain_cast", False)


def is_patched_in_use(module: nn.Module) -> bool:
    return is_packed(module) or is_plain_cast(module)


def patch_in_use(patcher: ModelPatcher, *_) -> None:
    """A callback for after loading, and whenever ComfyUI has moved layers.

    ComfyUI's dynamic patcher (the usual one on NVIDIA cards) merges a LoRA at a matrix's first use and writes the
    result where the matrix lies on the card. Its static one merges as it loads, which PlacingPatcher keeps it from.
    """
    for name, module in patcher.model.named_modules():
        merging = getattr(module, "weight_lowvram_function", None)
        if merging is not None and is_patched_in_use(module):
            module.weight_function, module.weight_lowvram_function = [merging, *module.weight_function], None
        elif is_plain_cast(module) and f"{name}.weight" in patcher.patches and not patcher.is_dynamic():
            others = [each for each in module.weight_function if not isinstance(each, LowVramPatch)]
            module.weight_function = [LowVramPatch(f"{name}.weight", patcher.patches), *others]
