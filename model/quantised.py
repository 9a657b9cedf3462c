"""Quantised linear layers in checkpoint files: which layers, in which format, with which scales.

Two ways are in circulation, both ComfyUI's (0.30, comfy/ops.py and comfy/quant_ops.py): a tensor `{layer}.comfy_quant`
that holds JSON as bytes, or all of it in the file's metadata `_quantization_metadata`. ComfyUI's own operations compute
with them; here names and shapes are checked, and layers chosen that a plain file can have quantised.
"""
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ggml
from .files import CheckpointError, CheckpointFiles, GGUFFile, TensorInfo

MARK = ".comfy_quant"
METADATA = "_quantization_metadata"


@dataclass(frozen=True)
class Format:
    words: str                  # for people
    dtypes: tuple[str, ...]     # of the stored weight, as safetensors names them
    scales: tuple[str, ...]     # that must stand beside the weight
    packed: int = 1             # columns of the matrix in one stored value
    tiled: bool = False         # scales of blocks, in tiles


FORMATS = {
    "float8_e4m3fn": Format("fp8 (e4m3)", ("F8_E4M3",), ("weight_scale",)),
    "float8_e5m2": Format("fp8 (e5m2)", ("F8_E5M2",), ("weight_scale",)),
    "mxfp8": Format("mxfp8", ("F8_E4M3",), ("weight_scale",), tiled=True),
    "nvfp4": Format("nvfp4", ("U8",), ("weight_scale", "weight_scale_2"), packed=2, tiled=True),
    "int8_tensorwise": Format("int8", ("I8",), ("weight_scale",)),
    "convrot_w4a4": Format("4-bit ConvRot", ("I8", "U8"), ("weight_scale",), packed=2),
    "gguf": Format("GGUF", tuple(ggml.BLOCKS), ()),  # the pack's own: blocks with their scales inside
}
# What may stand beside a quantised weight.
COMPANIONS = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")

Settings = dict[str, dict]  # layer -> the JSON of its mark

# What a plain file can be made into.
TARGETS = {
    "fp8": {"format": "float8_e4m3fn"},
    "int8 (ConvRot)": {"format": "int8_tensorwise", "convrot": True},
    "4-bit (nvfp4)": {"format": "nvfp4"},
}
# As in the official files: the layers between are quantised, what stands around them is not. For ComfyUI's modules.
INNER_LAYERS = ("transformer_blocks.", "model.layers.")
VOCABULARY = ("model.embed_tokens", "model.lm_head")
ROTATIONS = (256, 64, 16)  # inputs that ConvRot mixes: powers of four
# Scales of blocks are stored in tiles: for so many rows of the matrix, and (nvfp4) so many of its columns.
TILE_ROWS, TILE_COLUMNS = 128, 64


def targets(shapes: Mapping[str, tuple[int, ...]], target: str) -> Settings:
    """The layers of a network to quantise, with their marks; shapes: those of its parameters."""
    found = {}
    for name, shape in shapes.items():
        if not name.endswith(".weight") or len(shape) != 2:
            continue
        layer = name.removesuffix(".weight")
        if layer.startswith(INNER_LAYERS):
            found[layer] = _mark(TARGETS[target], shape)
        elif layer in VOCABULARY:  # looked up row by row, which no 4-bit format can be
            found[layer] = _mark(TARGETS["int8 (ConvRot)"] if "4-bit" in target else TARGETS[target], shape)
    return {layer: mark for layer, mark in found.items() if mark is not None}


def _mark(target: Mapping, shape: tuple[int, int]) -> dict | None:
    """The mark of a matrix in this format; None where it does not fill the tiles of its scales."""
    rows, columns = shape
    if target["format"] == "nvfp4" and (rows % TILE_ROWS or columns % TILE_COLUMNS):
        return None
    if not target.get("convrot"):
        return dict(target)
    group = next((group for group in ROTATIONS if columns % group == 0), None)
    return {**target, "convrot_groupsize": group} if group else {"format": target["format"]}


def settings_of(files: CheckpointFiles) -> Settings:
    """The quantised layers of a file. Raises CheckpointError for a mark that cannot be read."""
    found = {name.removesuffix(".weight"): {"format": "gguf", "type": info.dtype}
             for name, info in files.tensors.items() if isinstance(files, GGUFFile) and info.dtype not in ggml.PLAIN}
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
    if name == "gguf" and settings["type"] not in ggml.BLOCKS:
        raise CheckpointError(f"In {label} the tensor {layer}.weight is of GGUF's type {settings['type']}, which this "
                              f"version of the pack does not read ({', '.join(ggml.BLOCKS)}): choose another file.")
    kind, weight = FORMATS[name], tensors.get(f"{layer}.weight")
    if weight is None:
        raise CheckpointError(f"{label} is incomplete: the tensor {layer}.weight is missing.")
    if weight.dtype not in kind.dtypes or len(weight.shape) != 2:
        raise CheckpointError(f"In {label} the tensor {layer}.weight should be a matrix of {kind.dtypes[0]} "
                              f"({kind.words}), but is {list(weight.shape)} of {weight.dtype}.")
    if not kind.scales:
        return weight
    for scale in kind.scales:
        if f"{layer}.{scale}" not in tensors:
            raise CheckpointError(f"{label} is incomplete: the layer {layer} is quantised, but its {scale} is "
                                  f"missing.")
    rows, shape = weight.shape[0], tensors[f"{layer}.weight_scale"].shape
    expected = rows + (-rows % TILE_ROWS if kind.tiled else 0)
    if shape not in ((), (1,)) and shape[0] not in (rows, expected):
        raise CheckpointError(f"In {label} the tensor {layer}.weight_scale has the shape {list(shape)}, but the matrix "
                              f"has {rows} rows.")
    return TensorInfo((rows, weight.shape[1] * kind.packed), weight.dtype)


def in_words(settings: Settings) -> str:
    """The formats of a file, for people: 'int8 with rotation'."""
    found = []
    for one in settings.values():
        words = FORMATS[one["format"]].words + (" with rotation" if one.get("convrot") else "")
        words += f" {one['type']}" if "type" in one else ""
        if words not in found:
            found.append(words)
    return " and ".join(found)


def encoded(mark: Mapping) -> Tensor:
    """A mark as the tensor that files hold."""
    return torch.frombuffer(bytearray(json.dumps(mark).encode()), dtype=torch.uint8)


def peak(matrices: Iterable[Tensor]) -> Tensor:
    """The largest magnitude in matrices that share a scale, fp32."""
    return torch.stack([extreme.float().abs() for matrix in matrices for extreme in matrix.aminmax()]).max()
