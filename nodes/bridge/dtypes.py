"""What `weight_format` means, and which dtype a file is stored in."""
import torch

from ...model.files import CheckpointFiles

# The choices on the loaders. None: the tensors stay as they are in the file, mapped from it.
WEIGHT_FORMATS = {"as stored": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

_STORED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def stored_dtype(files: CheckpointFiles) -> torch.dtype:
    """The dtype of most of a file's values."""
    values: dict[str, int] = {}
    for shape, dtype in files.tensors.values():
        values[dtype] = values.get(dtype, 0) + torch.Size(shape).numel()
    return _STORED[max(values, key=values.get)]
