"""A whole parameter that takes the place of the model's, on ComfyUI's patch seam."""
import comfy.model_management
import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor


class Replacement(WeightAdapterBase):
    """weights: (parameter,). Strength s goes a part of the way, W + s (R - W), as it does for the adapters that stand
    beside it in a file. Core's own patch of that kind replaces the whole whatever the strength is."""

    name = "replacement"

    def __init__(self, loaded_keys: set[str], weights: tuple[Tensor]):
        # Core makes a copy of an adapter from these two, with weights that lie on a device.
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(self, weight, key, strength, strength_model, offset, function,
                         intermediate_dtype=torch.float32, original_weight=None):
        """weight: of the parameter's shape, changed in place and returned, as core's adapters do."""
        replacement = comfy.model_management.cast_to_device(self.weights[0], weight.device, intermediate_dtype)
        weight += function((strength * (replacement - weight.to(intermediate_dtype))).to(weight.dtype))
        return weight
