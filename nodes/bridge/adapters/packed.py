"""What core's patcher writes of quantized layers that it has not loaded, for its save nodes."""
import contextlib
from collections.abc import Callable, Iterator, Sequence

import comfy.utils
from comfy.model_patcher import LazyCastingParam, LazyCastingParamPiece, LazyCastingQuantizedParam, ModelPatcher
from torch import Tensor, nn

from ....model.checkpoints.quantization import QUANT_RECORD
from .plain_casts import is_plain_cast


class PackedPiece(LazyCastingParamPiece):
    """Core's own is a parameter that could be trained, which integers cannot be."""

    def __new__(cls, caster: LazyCastingQuantizedParam, name: str, tensor: Tensor):
        return nn.Parameter.__new__(cls, tensor, requires_grad=False)


def with_packed(patcher: ModelPatcher, network: nn.Module, prefix: str,
                state_of_core: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What core's patcher would write of a network, by the names there.

    Core (0.30) fails at a quantized layer that it has not loaded as a whole: with dynamic VRAM at all of them, else at
    those that are kept apart. These are written as they are, or with their LoRAs, which are computed as the file is
    written; and so are those that it has loaded, but whose LoRAs are patched in use. prefix: of the network's
    parameters in the patcher.
    """
    names = [name.removesuffix(QUANT_RECORD) for name in network.state_dict() if name.endswith(QUANT_RECORD)]
    layers = {name: layer for name in names
              if not getattr(layer := comfy.utils.get_attr(network, name), "comfy_patched_weights", False)
              or is_plain_cast(layer)}
    with _taken_for_loaded(list(layers.values())):
        state = state_of_core()
    for name, layer in layers.items():
        weight, bias = f"{name}.weight", f"{name}.bias"
        if prefix + weight in patcher.patches:
            caster = LazyCastingQuantizedParam(patcher, prefix + weight)
            state |= {part: PackedPiece(caster, prefix + part, state[part]) for part in layer.weight.state_dict(weight)}
        if prefix + bias in patcher.patches and prefix + bias not in patcher.backup:  # else it is in the state already
            state[bias] = LazyCastingParam(patcher, prefix + bias, layer.bias)
    return state


@contextlib.contextmanager
def _taken_for_loaded(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, core takes their weights as the state dict has them."""
    loaded = [layer for layer in layers if getattr(layer, "comfy_patched_weights", False)]
    for layer in layers:
        layer.comfy_patched_weights = True
    try:
        yield
    finally:
        for layer in layers:
            del layer.comfy_patched_weights
        for layer in loaded:
            layer.comfy_patched_weights = True
