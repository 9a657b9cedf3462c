"""What `weight_format` means."""
import torch

# The choices on the loaders. None: the dtype of most of the file, whose tensors then stay mapped from it.
WEIGHT_FORMATS = {"as stored": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
