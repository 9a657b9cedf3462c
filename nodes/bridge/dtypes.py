"""What `weight_format` means."""
import torch

from ...model import quantised
from ...model.checkpoint import Detected
from ...model.files import CheckpointError

# The choices on the loaders. None: the dtype of most of the file, whose tensors then stay mapped from it.
WEIGHT_FORMATS = {"as stored": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def check_weight_format(detected: Detected, weight_format: str, label: str) -> None:
    """Refuse to convert what is quantised."""
    if detected.quantised and WEIGHT_FORMATS[weight_format]:
        raise CheckpointError(f"{label} is quantised ({quantised.in_words(detected.quantised)}): its weight_format can "
                              f"only be 'as stored'.")
