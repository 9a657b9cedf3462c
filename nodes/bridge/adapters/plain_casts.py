"""Matrices that were cast to fp8 as they were: LoRAs are computed on what they decode to, each time they are used.

Into such a matrix a merge would be rounded: small LoRAs are smaller than the steps between fp8's numbers, a sixteenth
to an eighth of each, and drown in them (28 % off in tests/nodes/bridge/test_lora_1.py).
"""
from collections.abc import Container

from comfy.model_patcher import LowVramPatch, ModelPatcher
from torch import nn


def keep_apart(network: nn.Module, layers: Container[str]) -> None:
    """Mark the layers of these names as plain casts."""
    for name, module in network.named_modules():
        if name in layers:
            module.qwen_image_2_plain_cast = True


def is_plain_cast(module: nn.Module) -> bool:
    return getattr(module, "qwen_image_2_plain_cast", False)


def patch_plain_casts(patcher: ModelPatcher) -> None:
    """After ComfyUI's static patcher has loaded or moved layers, however often: it merges as it loads, which
    PlacingPatcher keeps it from here, and adds a LoRA of its own to each layer that leaves the device."""
    if patcher.is_dynamic():
        return
    for name, module in patcher.model.named_modules():
        if is_plain_cast(module) and f"{name}.weight" in patcher.patches:
            others = [each for each in module.weight_function if not isinstance(each, LowVramPatch)]
            module.weight_function = [LowVramPatch(f"{name}.weight", patcher.patches), *others]
