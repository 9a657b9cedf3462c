"""What `weight_format` means."""
from dataclasses import replace

import torch

from ....model.checkpoints import quantization
from ....model.checkpoints.files import CheckpointError
from ....model.qwen_image_2.detect import PLAIN, Detected, Quantising
from .quantize import quantise

AS_STORED = "as stored"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# The choices on the loaders. As stored: the dtype of most of the file, whose tensors then stay mapped from it.
WEIGHT_FORMATS = (AS_STORED, *DTYPES, *quantization.TARGETS)


def conversion(detected: Detected, weight_format: str, label: str) -> tuple[Detected, Quantising]:
    """The layers that stay quantised as the file has them, and those to quantise while loading.

    Raises CheckpointError where a conversion cannot be. GGUF's matrices can become anything.
    """
    if weight_format == AS_STORED:
        return detected, PLAIN
    if {one["format"] for one in detected.quantised.values()} - {"gguf"}:
        raise CheckpointError("already_quantised", "{file} is quantised ({format}): its weight_format can only be 'as "
                              "stored'.", file=label, format=quantization.in_words(detected.quantised))
    plain = replace(detected, quantised={})
    if weight_format in DTYPES:
        return plain, PLAIN
    layers = quantization.targets(detected.shapes, weight_format)
    if not layers:
        raise CheckpointError("no_large_matrix", "No matrix of {file} is large enough for {format}: choose another "
                              "weight_format.", file=label, format=weight_format)
    return plain, Quantising(layers, quantise)
