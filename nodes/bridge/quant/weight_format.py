"""What `weight_format` means."""
from collections.abc import Callable
from dataclasses import replace

import torch

from ....model.checkpoints import loading, quantization
from ....model.checkpoints.checkpoint import Checkpoint
from ....model.checkpoints.loading import NOT_QUANTIZING, Quantizing
from ....model.checkpoints.matching import Detected
from .quantize import quantize

AS_STORED = "as stored"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# The choices on the loaders. As stored: the dtype of most of the file, whose tensors then stay mapped from it.
WEIGHT_FORMATS = (AS_STORED, *DTYPES, *quantization.TARGETS)


def keeps_fp32(checkpoint: Checkpoint, weight_format: str) -> bool:
    """Whether a network keeps what its file has in fp32 beside narrower values."""
    return weight_format == AS_STORED and loading.has_fp32_beside(checkpoint)


def conversion(checkpoint: Checkpoint, detected: Detected, weight_format: str,
               sharing: Callable[[str], tuple[str, ...]] = NOT_QUANTIZING.sharing) -> tuple[Detected, Quantizing]:
    """The layers that stay quantized as the file has them, and those to quantize while loading.

    sharing: name of a parameter -> those that share its scale. Raises CheckpointError where a conversion cannot be.
    GGUF's matrices can become anything.
    """
    if weight_format == AS_STORED:
        return detected, NOT_QUANTIZING
    if {one["format"] for one in detected.quantization.values()} - {"gguf"}:
        raise checkpoint.fail("already_quantised", "{file} is already quantized ({format}). Set Weight format to 'as "
                              "stored'.", format=quantization.in_words(detected.quantization))
    plain = replace(detected, quantization={})
    if weight_format in DTYPES:
        return plain, NOT_QUANTIZING
    layers = quantization.layers_to_quantize(detected.shapes, weight_format)
    if not layers:
        raise checkpoint.fail("no_large_matrix", "{file} has no matrix large enough for {format}. Choose another "
                              "Weight format.", format=weight_format)
    return plain, Quantizing(layers, quantize, sharing)
