"""LoRAs of the MLP as the files of Qwen-Image 2.x have it.

Trainers that work on Comfy-Org's files (ai-toolkit, musubi) adapt the MLP's gate and projection as one matrix,
img_mlp.gate_up, others as two.
"""
from torch import Tensor

from ..checkpoints import adapters
from ..checkpoints.lora import LoraError, Normalized, twice, whole_transformer
from .key_maps import FUSED_MLP, SPLIT_MLP

# Parts of an adapter with a row for each row of the matrix; both halves share the others.
_ROWS = {adapters.UP, adapters.MAGNITUDE, "hada_w1_a", "hada_w2_a", "lokr_w1", "lokr_w1_a", "diff", "set_weight"}
_SHARED = {adapters.DOWN, adapters.ALPHA, "hada_w1_b", "hada_w2_b", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}


def split_mlp(found: Normalized, label: str) -> Normalized:
    """Adapters of the fused MLP matrix -> one for the gate and one for the projection, its rows' halves: for a
    transformer that has these as two matrices."""
    state: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for name, tensor in found.state.items():
        origin = found.origins[name]
        for place, value in _for_halves(name, tensor, origin, label).items():
            if place in state:
                raise twice(label, origins[place], origin)
            state[place], origins[place] = value, origin
    return found._replace(state=state, origins=origins)


def _for_halves(name: str, tensor: Tensor, origin: str, label: str) -> dict[str, Tensor]:
    fused = next((form for form in (FUSED_MLP, FUSED_MLP.replace(".", "_"))
                  if name.rpartition(form)[1] and name.rpartition(form)[2].startswith(".")), None)
    if fused is None:
        return {name: tensor}
    before, _, part = name.rpartition(fused)
    part = part.removeprefix(".")
    if part != "weight" and part not in adapters.PARTS:
        return {name: tensor}
    halves = [half if fused == FUSED_MLP else half.replace(".", "_") for half in SPLIT_MLP]
    values = _halves(part, tensor, origin, label)
    return {f"{before}{half}.{part}": value for half, value in zip(halves, values, strict=True)}


def _halves(part: str, tensor: Tensor, name: str, label: str) -> tuple[Tensor, Tensor]:
    if part in _SHARED:
        return tensor, tensor
    if part == "weight":
        raise whole_transformer(label, name)
    if part not in _ROWS or not tensor.ndim or len(tensor) % 2:
        raise LoraError("lora_fused", "{file} adapts {matrix} as one matrix in a way that cannot be split ({tensor}); "
                        "this model's file has two. Load the model from Comfy-Org's file instead.",
                        file=label, matrix=FUSED_MLP, tensor=name)
    upper, lower = (half.contiguous() for half in tensor.chunk(2))
    return upper, lower
