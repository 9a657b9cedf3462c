"""Quantised linear layers in checkpoint files: which layers, in which format, with which scales.

Two ways are in circulation, both ComfyUI's (0.30, comfy/ops.py and comfy/quant_ops.py): a tensor `{layer}.comfy_quant`
that holds JSON as bytes, or all of it in the file's metadata `_quantization_metadata`. ComfyUI's own operations compute
with them; here only names and shapes are checked.
"""
import json
from collections.abc import Mapping
from dataclasses import dataclass

from .files import CheckpointError, CheckpointFiles, TensorInfo

MARK = ".comfy_quant"
METADATA = "_quantization_metadata"


@dataclass(frozen=True)
class Format:
    words: str                  # for people
    dtypes: tuple[str, ...]     # of the stored weight, as safetensors names them
    scales: tuple[str, ...]     # that must stand beside the weight
    packed: int = 1             # columns of the matrix in one stored value


FORMATS = {
    "float8_e4m3fn": Format("fp8 (e4m3)", ("F8_E4M3",), ("weight_scale",)),
    "float8_e5m2": Format("fp8 (e5m2)", ("F8_E5M2",), ("weight_scale",)),
    "mxfp8": Format("mxfp8", ("F8_E4M3",), ("weight_scale",)),
    "nvfp4": Format("nvfp4", ("U8",), ("weight_scale", "weight_scale_2"), packed=2),
    "int8_tensorwise": Format("int8", ("I8",), ("weight_scale",)),
    "convrot_w4a4": Format("4-bit ConvRot", ("I8", "U8"), ("weight_scale",), packed=2),
}
# What may stand beside a quantised weight.
COMPANIONS = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")

Settings = dict[str, dict]  # layer -> the JSON of its mark


def settings_of(files: CheckpointFiles) -> Settings:
    """The quantised layers of a file. Raises CheckpointError for a mark that cannot be read."""
    found = {}
    try:
        if METADATA in files.metadata:
            found |= json.loads(files.metadata[METADATA])["layers"]
        for name in files.tensors:
            if name.endswith(MARK):
                found[name.removesuffix(MARK)] = json.loads(files.read(name).numpy().tobytes())
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{files.label} says that it is quantised, but not how ({error}): download it "
                              f"again.") from error
    return found


def unpacked(stored: Mapping[str, TensorInfo], settings: Settings,
             label: str) -> tuple[dict[str, TensorInfo], dict[str, list[str]]]:
    """The tensors as if no layer were quantised, and for each quantised weight the names of what stands beside it."""
    companions = {f"{layer}.weight": [name for name in COMPANIONS if f"{layer}.{name}" in stored]
                  for layer in settings}
    beside = {f"{layer}.{name}" for layer in settings for name in COMPANIONS}
    plain = {name: info for name, info in stored.items() if name not in beside and not name.endswith(MARK)}
    plain |= {f"{layer}.weight": check(layer, one, stored, label) for layer, one in settings.items()}
    return plain, companions


def check(layer: str, settings: Mapping, tensors: Mapping[str, TensorInfo], label: str) -> TensorInfo:
    """The layer's weight as it would be without quantisation; its dtype and its scales are checked."""
    name = settings.get("format") if isinstance(settings, Mapping) else None
    if name not in FORMATS:
        raise CheckpointError(f"In {label} the layer {layer} is quantised as {name!r}, which this version of the pack "
                              f"does not know ({', '.join(FORMATS)}).")
    kind, weight = FORMATS[name], tensors.get(f"{layer}.weight")
    if weight is None:
        raise CheckpointError(f"{label} is incomplete: the tensor {layer}.weight is missing.")
    if weight.dtype not in kind.dtypes or len(weight.shape) != 2:
        raise CheckpointError(f"In {label} the tensor {layer}.weight should be a matrix of {kind.dtypes[0]} "
                              f"({kind.words}), but is {list(weight.shape)} of {weight.dtype}.")
    for scale in kind.scales:
        if f"{layer}.{scale}" not in tensors:
            raise CheckpointError(f"{label} is incomplete: the layer {layer} is quantised, but its {scale} is "
                                  f"missing.")
    rows, shape = weight.shape[0], tensors[f"{layer}.weight_scale"].shape
    if shape not in ((), (1,)) and shape[0] != rows:
        raise CheckpointError(f"In {label} the tensor {layer}.weight_scale has the shape {list(shape)}, but the matrix "
                              f"has {rows} rows.")
    return TensorInfo((rows, weight.shape[1] * kind.packed), weight.dtype)


def in_words(settings: Settings) -> str:
    """The formats of a file, for people: 'int8 with rotation'."""
    found = []
    for one in settings.values():
        words = FORMATS[one["format"]].words + (" with rotation" if one.get("convrot") else "")
        if words not in found:
            found.append(words)
    return " and ".join(found)
