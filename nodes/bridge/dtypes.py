"""What `weight_format` means."""
import torch

from ...model import quantised
from ...model.checkpoint import PLAIN, Detected, Quantising
from ...model.files import CheckpointError
from .quantise import quantise

AS_STORED = "as stored"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# The choices on the loaders. As stored: the dtype of most of the file, whose tensors then stay mapped from it.
WEIGHT_FORMATS = (AS_STORED, *DTYPES, *quantised.TARGETS)


def quantising(detected: Detected, weight_format: str, label: str) -> Quantising:
    """Which layers to quantise while loading. Raises CheckpointError where that, or a conversion, cannot be."""
    if detected.quantised and weight_format != AS_STORED:
        raise CheckpointError(f"{label} is quantised ({quantised.in_words(detected.quantised)}): its weight_format can "
                              f"only be 'as stored'.")
    if weight_format not in quantised.TARGETS:
        return PLAIN
    layers = quantised.targets(detected.shapes, weight_format)
    if not layers:
        raise CheckpointError(f"No matrix of {label} is large enough for {weight_format}: choose another "
                              f"weight_format.")
    return Quantising(layers, quantise)
