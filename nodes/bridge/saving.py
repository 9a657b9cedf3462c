"""What core's save nodes (ModelSave, CheckpointSave, CLIPSave, VAESave) write of the pack's MODEL, CLIP and VAE.

The nodes ask core's objects for their tensors, whose names and marks our loaders read, and write nothing else of a
model. What sizes cannot tell of a network goes with them as a tensor.
"""
from collections.abc import Mapping

from torch import Tensor, nn

from ...model.checkpoints.files import SAVED_CONFIG
from ...model.checkpoints.quantization import encoded
from .quant.quantize import refuse_packed


def beside_weights(module: nn.Module, config: Mapping, label: str, prefix: str = "") -> dict[str, Tensor]:
    """What is to be written beside a network's own tensors; prefix: of their names. config: see
    matching.needed_config. Raises Refusal for GGUF's blocks, for which other formats have no mark."""
    refuse_packed(module, label)
    return {prefix + SAVED_CONFIG: encoded(config)} if config else {}


class TokenizerBesideWeights:
    """A CLIP's tokenizer: core asks it for tensors to be saved beside the weights, and hands it on to every clone."""

    beside_weights = dict  # () -> tensors by their names in the CLIP

    def state_dict(self) -> dict[str, Tensor]:
        return self.beside_weights()
