"""DoRA as the paper has it, on ComfyUI's patch seam.

W' = m * (W + dW) / |W + dW|, a norm for each row (arXiv 2402.09353, equation 5; PEFT's DoraLinearLayer). ComfyUI's own
adapters divide by |W| instead, which is the same for small updates only: 14 % off at large ones. What core's loader
loads keeps core's result.
"""
import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor


class Decomposed(WeightAdapterBase):
    """Another adapter with magnitudes. weights: (adapter, magnitudes (rows, 1), or (1, columns) as LyCORIS can have
    them). Strength s goes a part of the way: W + s (W' - W)."""

    name = "dora"

    def __init__(self, loaded_keys: set[str], weights: tuple[WeightAdapterBase, Tensor]):
        # Core makes a copy of an adapter from these two, with weights that lie on a device.
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(self, weight, key, strength, strength_model, offset, function,
                         intermediate_dtype=torch.float32, original_weight=None):
        """weight (rows, columns), changed in place and returned, as core's adapters do."""
        adapter, magnitude = self.weights
        exact = weight.to(intermediate_dtype, copy=True)
        updated = adapter.calculate_weight(exact.clone(), key, 1.0, strength_model, offset, lambda change: change,
                                           intermediate_dtype, original_weight)
        result = rescaled(updated, magnitude.to(updated))
        weight += function((strength * (result - exact)).to(weight.dtype))
        return weight


def rescaled(updated: Tensor, magnitude: Tensor) -> Tensor:
    """updated (rows, columns) with norms of `magnitude`. A row of zeros has no direction and stays."""
    axis = 1 if magnitude.shape[1] == 1 else 0
    norms = updated.norm(dim=axis, keepdim=True)
    return updated * (magnitude / norms.clamp_min(torch.finfo(updated.dtype).tiny))
