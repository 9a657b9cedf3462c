"""Quantized matrices whose LoRAs are computed each time they are used instead of merged: GGUF's, whose blocks have no
room for what a merge makes of them, and plain casts to fp8."""
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..adapters.plain_casts import is_plain_cast, patch_plain_casts
from .gguf_ops import is_packed


def is_patched_in_use(module: nn.Module) -> bool:
    return is_packed(module) or is_plain_cast(module)


def patch_in_use(patcher: ModelPatcher, *_) -> None:
    """A callback for after loading.

    ComfyUI's dynamic patcher (the usual one on NVIDIA cards) merges a LoRA at a matrix's first use and writes the
    result where the matrix lies on the card.
    """
    for module in patcher.model.modules():
        merging = getattr(module, "weight_lowvram_function", None)
        if merging is not None and is_patched_in_use(module):
            module.weight_function, module.weight_lowvram_function = [merging, *module.weight_function], None
    patch_plain_casts(patcher)
