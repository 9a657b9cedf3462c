"""Whether the LoRAs of a MODEL or CLIP fit it. ComfyUI would log a line for each matrix and go on without them."""
from collections.abc import Iterator

import comfy.utils

from ....messages import Message
from ....model.checkpoints.errors import CheckpointError
from ..keys import FAMILY_1, FAMILY_2
from .shapes import made_shape, tensors_of

WIDTHS = {FAMILY_1: 3072, FAMILY_2: 4096}  # of the published transformers: no matrix of the other family has its side


def check_lora_shapes(patcher) -> None:
    """Refuse LoRAs made for another width: ComfyUI would log a line per layer and sample without them."""
    for key, patch, offset in patches_of(patcher):
        # Not the state dict's: that of a quantized layer holds packed values.
        expected = list(comfy.utils.get_attr(patcher.model, key).shape)
        if offset is not None:  # some rows or columns of the matrix
            axis, _, length = offset
            expected[axis] = length
        _check_patch(key, patch, tuple(expected), getattr(patcher.model, "family", None))


def check_loras(patcher, *_) -> None:
    """A callback for after loading: a LoRA that does not fit would be missing in what is saved or computed then, by a
    node that is no sampler."""
    check_lora_shapes(patcher)


def patches_of(patcher) -> Iterator[tuple]:
    """Parameter, patch and offset of all that is applied, by hooks too."""
    return ((key, patch[1], patch[3]) for applied in (patcher.patches, *patcher.hook_patches.values())
            for key, patches in applied.items() for patch in patches)


def _check_patch(key: str, patch, expected: tuple[int, ...], own: str | None) -> None:
    """own: the family of the model."""
    found = made_shape(patch, expected)
    shapes = [tuple(tensor.shape) for tensor in tensors_of(patch)]
    sizes = {size for shape in (*shapes, found or ()) for size in shape}
    other = next((name for name, width in WIDTHS.items() if width in sizes and name != own), None)
    family = "" if other is None else Message("lora_family", "; it was made for Qwen-Image {family} (width {width})",
                                              family=other, width=WIDTHS[other])
    if found is None:
        raise CheckpointError("lora_parts", "LoRA shape mismatch at {tensor}: the model expects {expected}, but the "
                              "LoRA's parts have the shapes {shapes}{family}.", tensor=key,
                              expected=str(list(expected)), shapes=[str(list(shape)) for shape in shapes],
                              family=family)
    if found != expected:
        raise CheckpointError("lora_shape", "LoRA shape mismatch at {tensor}: the LoRA gives {shape}, the model "
                              "expects {expected}{family}.", tensor=key, shape=str(list(found)),
                              expected=str(list(expected)), family=family)
