"""Quantized linear layers in checkpoint files: which layers, in which format, with which scales.

Three ways are in circulation, all ComfyUI's (0.30, comfy/ops.py, comfy/quant_ops.py, comfy/utils.py; 0271a469 of both
for the 4-bit formats in groups, and comfy-kitchen's tensor/w4a8_int8.py and awq_w4a16.py): a tensor
`{layer}.comfy_quant` that holds JSON as bytes, all of it in the file's metadata `_quantization_metadata`, and in older
files a tensor `scaled_fp8` and `{layer}.scale_weight`. ComfyUI's own operations compute with them; here names and
shapes are checked, and layers chosen that a plain file can have quantized.
"""
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...messages import Message, and_list
from . import gguf
from .checkpoint import Checkpoint, StoredCheckpoint, TensorInfo
from .errors import CheckpointError, missing_tensor

# What is not quantized is stored in one of these, by their names in safetensors files.
PLAIN_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

QUANT_RECORD = ".comfy_quant"
METADATA = "_quantization_metadata"
OLD_MARKER = "scaled_fp8"


@dataclass(frozen=True)
class Format:
    words: str                  # for people
    dtypes: tuple[str, ...]     # of the stored weight, as safetensors names them
    scales: tuple[str, ...]     # that must stand beside the weight
    others: tuple[str, ...] = ()  # that may; an `input_scale` that the format has no use for is left where it is
    packed: int = 1             # columns of the matrix in one stored value
    block: int = 0              # columns that share a scale with no other row's; such scales lie in tiles
    block_scale: torch.dtype | None = None  # of such scales, which some files hold as bare bytes
    group: int = 0              # columns that share a scale where the record does not say; such scales lie in no tiles


FORMATS = {
    "float8_e4m3fn": Format("fp8 (e4m3)", ("F8_E4M3",), ("weight_scale",), ("input_scale",)),
    "float8_e5m2": Format("fp8 (e5m2)", ("F8_E5M2",), ("weight_scale",), ("input_scale",)),
    "mxfp8": Format("mxfp8", ("F8_E4M3",), ("weight_scale",), ("input_scale",), block=32,
                    block_scale=torch.float8_e8m0fnu),
    "nvfp4": Format("nvfp4", ("U8",), ("weight_scale", "weight_scale_2"), ("input_scale", "pre_quant_scale"), packed=2,
                    block=16, block_scale=torch.float8_e4m3fn),
    "int8_tensorwise": Format("int8", ("I8",), ("weight_scale",)),
    "convrot_w4a4": Format("4-bit ConvRot", ("I8", "U8"), ("weight_scale",), packed=2),
    # Two of 16 levels in a byte, the even column's in its low half: level * s_rel of its group * s_channel of its row,
    # then the inputs rotate back. The levels are the codebook's, or -8 to 7 where there is none.
    "asym_w4a8_int8": Format("4-bit ConvRot in groups", ("I8",), ("weight_s_rel", "weight_s_channel"),
                             ("weight_codebook",), packed=2, group=16),
    # Packed alike: (level - 8) * scale + zero, both of the row and the group.
    "awq_w4a16": Format("4-bit AWQ", ("I8",), ("weight_scale", "weight_zeros"), packed=2, group=64),
    "gguf": Format("GGUF", tuple(gguf.BLOCKS), ()),  # the pack's own: blocks with their scales inside
}
# As safetensors names them: their own dtype, or bare bytes.
BLOCK_SCALES = {torch.float8_e8m0fnu: ("F8_E8M0", "U8"), torch.float8_e4m3fn: ("F8_E4M3", "U8")}
# Of the scales that are not floats of any width: what ComfyUI hands to its kernels as it is.
OTHER_SCALES = {"weight_s_rel": ("F8_E4M3", "U8", "F32"), "weight_s_channel": ("F32",), "weight_codebook": ("F32",)}
ROWS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "gguf")  # whose rows can be looked up one by one
# Formats of which ComfyUI computes the same with one scale for the matrix, and with that scale for each row.
ONE_SCALE_OR_ROWS = ("int8_tensorwise",)
# What may stand beside a quantized weight.
COMPANIONS = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "weight_s_rel", "weight_s_channel",
              "weight_codebook", "weight_zeros")
OLD_COMPANIONS = {"weight_scale": "scale_weight", "input_scale": "scale_input"}
# In a record: the input's scale counts for nothing. ComfyUI, too, takes an old file's 1.0 for one never measured.
NO_INPUT_SCALE = "no_input_scale"
# In a record: the weight was cast and nothing scales it, as in files that say nothing of it.
PLAIN_CAST = "plain_cast"
FP8_DTYPES = {dtype: name for name, one in FORMATS.items() if one.words.startswith("fp8") for dtype in one.dtypes}
# Formats whose inputs rotate whether the record says so or not.
ALWAYS_ROTATED = ("convrot_w4a4", "asym_w4a8_int8")
# In a record of 4-bit ConvRot: what its products are computed in.
LINEAR_DTYPES = ("int4", "int8")
# In a record, and for ComfyUI as well: the weight is dequantized, and multiplied as plain numbers.
FULL_PRECISION = "full_precision_matrix_mult"

# What other tools leave beside or instead of a weight, by the end of the name, the unmistakable ends first. ComfyUI
# computes with none of it.
OTHER_TOOLS = {
    "bitsandbytes": (".absmax", ".quant_map", ".SCB", "quant_state.bitsandbytes__nf4",
                     "quant_state.bitsandbytes__fp4"),
    "nunchaku (SVDQuant)": (".smooth_factor", ".wscales", ".wtscale", ".wcscales"),
    "compressed-tensors": (".weight_packed", ".weight_shape", ".weight_zero_point"),
    "torchao": ("._weight_qdata", ".weight:qdata", ".weight:int_data"),
    "quanto": (".weight._data", ".weight._scale"),
    "GPTQ or AWQ": (".qweight", ".qzeros"),
    "Qwen as fp8 in blocks": (".weight_scale_inv",),
}

QuantConfig = dict[str, dict]  # layer -> the JSON of its record

# What a plain file can be made into.
TARGETS: Mapping[str, Mapping[str, object]] = {
    "fp8": {"format": "float8_e4m3fn"},
    "int8 (ConvRot)": {"format": "int8_tensorwise", "convrot": True},
    "4-bit (nvfp4)": {"format": "nvfp4"},
}
BYTES = {"float8_e4m3fn": 1, "int8_tensorwise": 1, "nvfp4": 1 / 2 + 1 / 16}  # of a value, with its block's scale
# As in the official files: the layers between are quantized, what stands around them is not. For ComfyUI's modules.
INNER_LAYERS = ("transformer_blocks.", "model.layers.")
VOCABULARY = ("model.embed_tokens", "model.lm_head")
ROTATIONS = (256, 64, 16)  # inputs that ConvRot mixes: powers of four
# Scales of blocks are stored in tiles of so many rows and blocks.
TILE_ROWS, TILE_BLOCKS = 128, 4


def layers_to_quantize(shapes: Mapping[str, tuple[int, ...]], target: str) -> QuantConfig:
    """The layers of a network to quantize, with their records; shapes: those of its parameters."""
    found = {}
    for name, shape in shapes.items():
        if not name.endswith(".weight") or len(shape) != 2:
            continue
        layer = name.removesuffix(".weight")
        if layer.startswith(INNER_LAYERS):
            found[layer] = _record(TARGETS[target], shape)
        elif layer in VOCABULARY:  # looked up row by row, which no 4-bit format can be
            found[layer] = _record(TARGETS["int8 (ConvRot)"] if "4-bit" in target else TARGETS[target], shape)
    return {layer: record for layer, record in found.items() if record is not None}


def saved_size(shapes: Mapping[str, tuple[int, ...]], target: str, width: int) -> int:
    """Bytes of a network whose layers are quantized so, without a file's header. shapes: as for `layers_to_quantize`;
    width: bytes of a value that is not quantized."""
    records, total = layers_to_quantize(shapes, target), 0.0
    for name, shape in shapes.items():
        record = records.get(name.removesuffix(".weight"))
        total += math.prod(shape) * (width if record is None else BYTES[record["format"]])
        if record is not None and record["format"] == "int8_tensorwise":
            total += 4 * shape[0]  # a scale for each row
    return int(total)


def _record(target: Mapping, shape: tuple[int, int]) -> dict | None:
    """The record of a matrix in this format; None where it does not fill the tiles of its scales."""
    rows, columns = shape
    if target["format"] == "nvfp4" and (rows % TILE_ROWS or columns % (TILE_BLOCKS * FORMATS["nvfp4"].block)):
        return None
    if not target.get("convrot"):
        return dict(target)
    group = next((group for group in ROTATIONS if columns % group == 0), None)
    return {**target, "convrot_groupsize": group} if group else {"format": target["format"]}


def read_records(checkpoint: StoredCheckpoint) -> QuantConfig:
    """The quantized layers that a file tells of. Raises CheckpointError for a record that cannot be read."""
    found = _old_settings(checkpoint)
    if METADATA in checkpoint.metadata:
        found |= _layers(checkpoint)
    for name in checkpoint.tensors:
        if name.endswith(QUANT_RECORD):
            found[name.removesuffix(QUANT_RECORD)] = _json(checkpoint, checkpoint.read(name).numpy().tobytes(), name)
    return found | _plain_cast(checkpoint, found)


def _layers(checkpoint: StoredCheckpoint) -> QuantConfig:
    metadata = _json(checkpoint, checkpoint.metadata[METADATA], METADATA)
    layers = metadata.get("layers") if isinstance(metadata, dict) else None
    if not isinstance(layers, dict):  # a list of pairs would pass for one, whatever its names are
        raise _unreadable(checkpoint, METADATA)
    return layers


def _json(checkpoint: StoredCheckpoint, text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise _unreadable(checkpoint, where) from error


def _unreadable(checkpoint: StoredCheckpoint, where: str) -> CheckpointError:
    return checkpoint.fail("quantization_unreadable", "{file} is marked as quantized, but its settings in {where} "
                           "cannot be read. Download it again.", where=where)


def _old_settings(checkpoint: StoredCheckpoint) -> QuantConfig:
    """The layers of networks with the marker `scaled_fp8`, which a file has for each network that it holds and that is
    scaled; two values in it ask for products in full precision."""
    found: QuantConfig = {}
    for record in (name for name in checkpoint.tensors if name.rpartition(".")[2] == OLD_MARKER):
        prefix = record.removesuffix(OLD_MARKER)
        full = {FULL_PRECISION: True} if checkpoint.tensors[record].shape == (2,) else {}
        found |= {layer_of(name): {"format": FP8_DTYPES[info.dtype], **full}
                  for name, info in checkpoint.tensors.items()
                  if name.startswith(prefix) and name.endswith(".weight") and info.dtype in FP8_DTYPES}
    with checkpoint.mapped() as read:
        for layer, settings in found.items():
            name = f"{layer}.{OLD_COMPANIONS['input_scale']}"
            if name in checkpoint.tensors and (read(name).float() == 1.0).all():
                settings[NO_INPUT_SCALE] = True
    return found


def _plain_cast(checkpoint: StoredCheckpoint, records: QuantConfig) -> QuantConfig:
    """The matrices of a network that was cast to fp8 as it was. They are multiplied as what they were cast from: in fp8
    their activations would have no scale either. One with scales or records for some of its matrices is damaged where
    others have none; a whole checkpoint holds several networks, told apart by how their names begin."""
    scaled = {name.partition(".")[0] for name in checkpoint.tensors
              if layer_of(name) in records or companion_tensors(layer_of(name), checkpoint.tensors)}
    return {layer_of(name): {"format": FP8_DTYPES[info.dtype], FULL_PRECISION: True, PLAIN_CAST: True}
            for name, info in checkpoint.tensors.items()
            if name.endswith(".weight") and len(info.shape) == 2 and info.dtype in FP8_DTYPES
            and name.partition(".")[0] not in scaled}


def layer_of(name: str) -> str:
    return name.removesuffix(".weight")


def companion_tensors(layer: str, stored: Mapping[str, TensorInfo]) -> dict[str, str]:
    """What stands beside a quantized weight: its last name -> the tensor, which older files call otherwise."""
    names = {last: (f"{layer}.{last}", f"{layer}.{OLD_COMPANIONS.get(last, last)}") for last in COMPANIONS}
    return {last: name for last, both in names.items() for name in both if name in stored}


def is_beside(name: str) -> bool:
    """Whether a parameter is a quantized layer's record or stands beside its weight."""
    return name.endswith(QUANT_RECORD) or name.rpartition(".")[2] in COMPANIONS


def other_tool(tensors: Iterable[str], config: Mapping) -> str | None:
    """Who quantized a file in a way that only its own software reads, and what shows it; None for other files."""
    for tool, ends in OTHER_TOOLS.items():
        for name in tensors:
            if name.endswith(ends):
                return f"{tool} ({name})"
    found = config.get("quantization_config")
    method = found.get("quant_method") if isinstance(found, Mapping) else found
    return f"{method} (quantization_config)" if method else None


class Unpacked(NamedTuple):
    """A checkpoint seen as if no layer were quantized, and what stands beside each quantized weight, see `beside`."""

    plain: Checkpoint
    companions: dict[str, dict[str, str]]


def unpack(stored: Checkpoint) -> Unpacked:
    """Raises CheckpointError for a layer whose format, weight or scales are not as its record says."""
    records = stored.quantization
    companions = {f"{layer}.weight": companion_tensors(layer, stored.tensors) for layer in records}
    taken = {OLD_MARKER, *(name for one in companions.values() for name in one.values())} if records else set()
    plain = {name: info for name, info in stored.tensors.items()
             if name not in taken and not name.endswith(QUANT_RECORD)}
    plain |= {f"{layer}.weight": plain_weight(stored, layer) for layer in records}
    for layer, one in records.items():
        if one.get(NO_INPUT_SCALE) or "input_scale" not in FORMATS[one["format"]].others:
            companions[f"{layer}.weight"].pop("input_scale", None)
    return Unpacked(stored.with_tensors(plain), companions)


def plain_weight(checkpoint: Checkpoint, layer: str) -> TensorInfo:
    """The layer's weight as it would be without quantization. Raises CheckpointError for a record, a weight or scales
    that ComfyUI could not compute with."""
    form = _checked_format(checkpoint, layer)
    weight = _checked_weight(checkpoint, layer, form)
    if not form.scales:
        return weight
    rows, columns = weight.shape
    matrix = TensorInfo((rows, columns * form.packed), weight.dtype)
    if checkpoint.quantization[layer].get(PLAIN_CAST):
        return matrix
    _check_rotation(checkpoint, layer, matrix)
    _check_group(checkpoint, layer, form, matrix)
    _check_scales(checkpoint, layer, form, matrix)
    return matrix


def _checked_format(checkpoint: Checkpoint, layer: str) -> Format:
    """The format that a layer's record names, with what else the record says about it."""
    settings = checkpoint.quantization[layer]
    name = settings.get("format") if isinstance(settings, Mapping) else None
    if not isinstance(name, str) or name not in FORMATS:
        raise checkpoint.fail("layer_format", "{file}: layer {layer} is quantized as {format}, which is not supported "
                              "({known}).", layer=layer,
                              format=repr(name), known=", ".join(FORMATS))
    if name == "gguf" and (found := str(settings.get("type"))) not in gguf.BLOCKS:
        raise checkpoint.fail("gguf_type", "{file}: tensor {layer}.weight has the GGUF type {type}, which is not "
                              "supported ({known}). Choose another file.", layer=layer,
                              type=found, known=", ".join(gguf.BLOCKS))
    linear = _setting(settings, "linear_dtype", LINEAR_DTYPES[0])
    if name == "convrot_w4a4" and linear not in LINEAR_DTYPES:
        raise checkpoint.fail("linear_dtype", "{file}: layer {layer} asks for products in {dtype}, which {format} does "
                              "not support ({known}). Download it again.", layer=layer,
                              dtype=repr(linear)[:60], format=FORMATS[name].words, known=", ".join(LINEAR_DTYPES))
    return FORMATS[name]


def _setting(settings: Mapping, name: str, default: object) -> object:
    """What a record says, at its own level or among its `params`, where ComfyUI looks next."""
    inner = settings.get("params")
    return settings.get(name, inner.get(name, default) if isinstance(inner, Mapping) else default)


def _checked_weight(checkpoint: Checkpoint, layer: str, form: Format) -> TensorInfo:
    """The stored weight: a matrix of the format's dtype."""
    weight = checkpoint.tensors.get(f"{layer}.weight")
    if weight is None:
        raise missing_tensor(checkpoint.label, f"{layer}.weight")
    if weight.dtype not in form.dtypes or len(weight.shape) != 2:
        raise checkpoint.fail("layer_matrix", "{file}: tensor {layer}.weight must be a matrix of {expected} "
                              "({format}), but has shape {shape} and dtype {dtype}.", layer=layer,
                              expected=form.dtypes[0], format=form.words, shape=str(list(weight.shape)),
                              dtype=weight.dtype)
    return weight


def _check_rotation(checkpoint: Checkpoint, layer: str, matrix: TensorInfo) -> None:
    """Inputs rotate in groups, a whole number of them, by a matrix whose sizes are powers of four."""
    settings = checkpoint.quantization[layer]
    group = _setting(settings, "convrot_groupsize", ROTATIONS[0])
    fits = (isinstance(group, int) and not isinstance(group, bool) and group in (4 ** power for power in range(1, 9))
            and matrix.shape[1] % group == 0)
    rotates = settings["format"] in ALWAYS_ROTATED or _setting(settings, "convrot", False)
    if rotates and not fits:
        raise checkpoint.fail("rotation_group", "{file}: layer {layer} has {columns} inputs and rotates them in groups "
                              "of {group}; that must be a power of 4 which divides them. Choose another file.",
                              layer=layer, group=repr(group)[:60], columns=matrix.shape[1])


def _check_group(checkpoint: Checkpoint, layer: str, form: Format, matrix: TensorInfo) -> None:
    """Columns share a scale in groups, a whole number of them, which meet those of 16 that integers are multiplied in.
    """
    group = _group(checkpoint.quantization[layer], form)
    fits = (isinstance(group, int) and not isinstance(group, bool) and group >= 4
            and matrix.shape[1] % group == 0 and (16 % group == 0 or group % 16 == 0))
    if form.group and not fits:
        raise checkpoint.fail("scale_group", "{file}: layer {layer} has {columns} inputs and scales for groups of "
                              "{group}; that must be 4, 8 or a multiple of 16 which divides them. Choose another file.",
                              layer=layer, group=repr(group)[:60], columns=matrix.shape[1])


def _group(settings: Mapping, form: Format) -> Any:
    return _setting(settings, "group_size", form.group)


def _check_scales(checkpoint: Checkpoint, layer: str, form: Format, matrix: TensorInfo) -> None:
    """Every scale of the format is there, a number that can scale, and as many as the matrix needs."""
    scales = companion_tensors(layer, checkpoint.tensors)
    for scale in form.scales:
        if scale not in scales:
            raise checkpoint.fail("scale_missing", "{file} is incomplete: layer {layer} is quantized, but its {scale} "
                                  "is missing.", layer=layer, scale=scale)
    if foreign := sorted(set(scales) - {*form.scales, *form.others, "input_scale"}):
        raise checkpoint.fail("scale_foreign", "{file}: layer {layer} is quantized as {format}, which does not use "
                              "{scale}. Download it again.", layer=layer, format=form.words, scale=foreign[0])
    rows, columns = matrix.shape
    for last in (*form.scales, *(last for last in form.others if last in scales)):
        shape, dtype = checkpoint.tensors[scales[last]]
        if dtype not in (known := _scale_dtypes(form, last)):
            raise checkpoint.fail("scale_dtype", "{file}: tensor {tensor} must have one of the dtypes {known} "
                                  "({format}), not {dtype}. Choose another file.", tensor=scales[last],
                                  known=", ".join(known), format=form.words, dtype=dtype)
        group = _group(checkpoint.quantization[layer], form) if form.group else 0
        if not _scale_fits(form, last, shape, rows, columns, group):
            raise checkpoint.fail("scale_shape", "{file}: tensor {tensor} has shape {shape}, but the matrix has "
                                  "{rows} rows and {columns} columns ({format}).", tensor=scales[last],
                                  shape=str(list(shape)), rows=rows, columns=columns, format=form.words)


def _scale_dtypes(form: Format, last: str) -> tuple[str, ...]:
    """What safetensors calls the dtypes that this scale may have."""
    if last == "weight_scale" and form.block_scale:
        return BLOCK_SCALES[form.block_scale]
    return OTHER_SCALES.get(last, tuple(PLAIN_DTYPES))


def _scale_fits(form: Format, last: str, shape: tuple[int, ...], rows: int, columns: int, group: int) -> bool:
    """group: columns that share a scale, where the format has such."""
    if group:
        groups = columns // group
        return shape == {"weight_s_rel": (rows, groups), "weight_s_channel": (rows,), "weight_codebook": (16,),
                         "weight_scale": (groups, rows), "weight_zeros": (groups, rows)}[last]
    if last == "pre_quant_scale":
        return shape == (columns,)
    if last != "weight_scale":
        return math.prod(shape) == 1
    if not form.block:
        return math.prod(shape) == 1 or shape in ((rows,), (rows, 1))
    blocks = -(-columns // form.block)
    return shape in ((rows, blocks), (rows + -rows % TILE_ROWS, blocks + -blocks % TILE_BLOCKS))


def as_numbers(name: str, value: Tensor, settings: Mapping[str, dict]) -> Tensor:
    """A parameter of a quantized layer; bytes that are scales of blocks as the numbers that they mean."""
    layer, _, last = name.rpartition(".")
    meant = {"weight_scale": FORMATS[settings[layer]["format"]].block_scale,
             "weight_s_rel": torch.float8_e4m3fn}.get(last)
    return value.view(meant) if meant and value.dtype == torch.uint8 else value


def in_words(settings: QuantConfig) -> str:
    """The formats of a file, for people: 'int8 with rotation'."""
    found = []
    for one in settings.values():
        words = FORMATS[one["format"]].words + (f" {one['type']}" if "type" in one else "")
        words = Message("format_rotated", "{format} with rotation", format=words) if one.get("convrot") else words
        if words not in found:
            found.append(words)
    return and_list(found)


def encoded(record: Mapping) -> Tensor:
    """A record as the tensor that files hold."""
    told = {name: value for name, value in record.items() if name != PLAIN_CAST}  # its scale, 1, stands beside it
    return torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)


def absmax(matrices: Iterable[Tensor]) -> Tensor:
    """The largest magnitude in matrices that share a scale, fp32."""
    return torch.stack([extreme.float().abs() for matrix in matrices for extreme in matrix.aminmax()]).max()
