"""Quantized weights, made by ComfyUI's own layouts and written in its files' form."""
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import comfy.lora
import comfy.model_management
import comfy.utils
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from torch import Tensor, nn

from ....messages import Refusal
from ....model.checkpoints import quantization, writer
from ....model.checkpoints.loading import NOT_QUANTIZING
from .formats import INTEGERS

# Largest value of the format times that of its block scales: what a matrix's largest magnitude is mapped to, where the
# format has one scale for all of it.
FORMAT_MAX = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0, "nvfp4": 6.0 * 448.0}
# Formats that the pack only reads: their codebook and zeros are found by calibration.
READ_ONLY = {name for name, form in quantization.FORMATS.items() if form.group}


def quantize(matrix: Tensor, absmax: Tensor, record: Mapping) -> dict[str, Tensor]:
    """The entries of a layer, by their last name. absmax: the largest magnitude in all that shares the matrix's scale.

    Computed on ComfyUI's device, kept on the CPU.
    """
    device, name = comfy.model_management.get_torch_device(), record["format"]
    arguments = {"scale": (absmax / FORMAT_MAX[name]).to(device)} if name in FORMAT_MAX else {}
    arguments |= {"per_channel": True} if name in INTEGERS else {}
    arguments |= {key: value for key, value in record.items() if key not in ("format", quantization.FULL_PRECISION)}
    layout = QUANT_ALGOS[name]["comfy_tensor_layout"]
    made = QuantizedTensor.from_float(matrix.to(device, torch.float32), layout, **arguments)
    return {last: value.cpu() for last, value in made.state_dict("weight").items()}


def form(shape: tuple[int, int], record: Mapping) -> dict[str, Tensor]:
    """What `quantize` gives for a matrix of this shape, on the meta device: without values."""
    (rows, columns), name = shape, record["format"]
    form, dtype = quantization.FORMATS[name], torch.float32
    if form.block:
        blocks, dtype = columns // form.block, form.block_scale
        scale = (rows + -rows % quantization.TILE_ROWS, blocks + -blocks % quantization.TILE_BLOCKS)
    else:
        scale = {"float8_e4m3fn": (), "float8_e5m2": (), "int8_tensorwise": (rows, 1), "convrot_w4a4": (rows,)}[name]
    with torch.device("meta"):
        made = {"weight": torch.empty(rows, columns // form.packed, dtype=QUANT_ALGOS[name]["storage_t"]),
                "weight_scale": torch.empty(scale, dtype=dtype)}
        return made | ({"weight_scale_2": torch.empty(())} if "weight_scale_2" in form.scales else {})


# ---------------------------------------------------------------- saving

class Origin(NamedTuple):
    """What a network's file said of it."""

    config: Mapping
    # Of what is not quantized: ComfyUI's layers may hold it in the one they compute in. None: each as the network holds
    # it, which has kept some of the file's in fp32.
    dtype: torch.dtype | None


class Network(NamedTuple):
    """A loaded network whose weights are to be written."""

    module: nn.Module
    patches: Mapping[str, list]     # parameter name -> ComfyUI's patches: LoRAs
    official: Callable[[str], str]  # parameter name -> the official file's
    origin: Origin
    size: int                       # bytes
    # parameter name -> those that the official file holds in one matrix with it, in the order of their rows
    sharing: Callable[[str], tuple[str, ...]] = NOT_QUANTIZING.sharing
    fused: Callable[[str], str] = str  # parameter name -> the name of that matrix
    marks: Mapping[str, Tensor] = {}   # what the file holds beside the parameters


def patches_below(prefix: str, patcher) -> dict[str, list]:
    """The patches of a ModelPatcher for the network whose parameters have this prefix, without it."""
    return {name.removeprefix(prefix): patches for name, patches in patcher.patches.items() if name.startswith(prefix)}


def check(network: Network, name: str) -> None:
    """Raises ValueError for a network that cannot be written. name: of the file."""
    refuse_packed(network.module, name)
    patched = {_format(network, parameter) for parameter in network.patches}
    if found := sorted(quantization.FORMATS[one].words for one in patched & READ_ONLY):
        raise Refusal("save_read_only", "{model} cannot be saved with its LoRAs: its layers are {format}, which the "
                      "pack only reads. Remove the LoRAs, or load the bf16 file.", model=name, format=", ".join(found))


def _format(network: Network, parameter: str) -> str | None:
    layer = network.module.get_submodule(parameter.rpartition(".")[0])
    return getattr(layer, "quant_format", None)


def refuse_packed(module: nn.Module, name: str) -> None:
    """Raises Refusal where matrices are GGUF's. name: what messages call the network."""
    if any(getattr(layer, "quant_format", None) == "gguf" for layer in module.modules()):
        raise Refusal("save_gguf", "{model} cannot be saved: its weights are still GGUF. Choose another Weight format "
                      "than 'as stored' in the loader.", model=name)


def save(path: Path, network: Network, progress: Callable[[int, int], None]) -> None:
    """Write the weights, LoRAs baked in, as one file with the official names.

    A layer keeps its format; progress(done, total) may raise to cancel. Raises WriteError.
    """
    check(network, path.name)
    # Weights that are patched in place get their own values back, and the device its memory.
    comfy.model_management.unload_all_models()
    state = network.module.state_dict()
    groups = list(_groups(network, state))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for done, group in enumerate(groups, start=1):
            yield from _entries(group, network, state, _values_with_loras)
            progress(done, len(groups))
        yield from network.marks.items()

    forms = {name: value if quantization.is_beside(name) else value.to("meta") for name, value in state.items()}
    entries = [writer.Entry.of(*entry) for group in groups
               for entry in _entries(group, network, forms, _forms_with_loras)]
    entries += [writer.Entry.of(*mark) for mark in network.marks.items()]
    config = {"config": json.dumps(network.origin.config)} if network.origin.config else {}
    writer.write(path, entries, tensors(), {"format": "pt"} | config)


def _groups(network: Network, state: Mapping[str, Tensor]) -> Iterator[tuple[str, ...]]:
    """Parameters of a network, those together that share a matrix of the official file."""
    for name in state:
        if not quantization.is_beside(name):
            group = network.sharing(name)
            if name == group[0]:
                yield group


# For parameters, and what the file holds for each by their last names: what becomes of each with LoRAs.
WithLoRAs = Callable[[tuple[str, ...], Network, list[dict[str, Tensor]]], Iterator[dict[str, Tensor]]]


def _entries(group: tuple[str, ...], network: Network, state: Mapping[str, Tensor],
             with_loras: WithLoRAs) -> Iterator[tuple[str, Tensor]]:
    """What the file holds for these parameters: their own values, or with LoRAs in the format that they have.

    The same for values and for what is announced, on the meta device, before any is computed.
    """
    parts = [_stored(name, state, network.origin.dtype) for name in group]
    if any(name in network.patches for name in group):
        parts = [part | made for part, made in zip(parts, with_loras(group, network, parts), strict=True)]
    if len(parts) > 1 and (joined := _joined(parts)):
        group, parts = (network.fused(group[0]),), (joined,)
    for name, part in zip(group, parts, strict=True):
        yield from ((network.official(f"{name.rpartition('.')[0]}.{last}"), value) for last, value in part.items())


def _values_with_loras(group: tuple[str, ...], network: Network,
                       parts: list[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    values = [_patched(name, network) for name in group]
    absmax = quantization.absmax(values)
    for name, part, value in zip(group, parts, values, strict=True):
        record, last = _mark(part), name.rpartition(".")[2]
        yield {last: value.to(part[last].dtype)} if record is None else quantize(value, absmax, record)


def _forms_with_loras(group: tuple[str, ...], network: Network,
                      parts: list[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    for name, part in zip(group, parts, strict=True):
        record = _mark(part)
        yield {} if record is None else form(comfy.utils.get_attr(network.module, name).shape, record)


def _mark(part: Mapping[str, Tensor]) -> Mapping | None:
    """The record of the layer that these entries make; None where it is not quantized."""
    record = part.get(quantization.QUANT_RECORD.removeprefix("."))
    return None if record is None else json.loads(record.numpy().tobytes())


def _stored(name: str, state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """A parameter, and what stands beside it if it is quantized, by their last names. A bias never is."""
    layer, _, last = name.rpartition(".")
    if last != "weight" or f"{layer}{quantization.QUANT_RECORD}" not in state:
        return {last: state[name] if dtype is None else state[name].to(dtype)}
    beside = (last, *quantization.COMPANIONS, quantization.QUANT_RECORD.removeprefix("."))
    return {last: state[f"{layer}.{last}"] for last in beside if f"{layer}.{last}" in state}


def _patched(name: str, network: Network) -> Tensor:
    """A parameter with its LoRAs, fp32."""
    weight = comfy.utils.get_attr(network.module, name)
    weight = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
    return comfy.lora.calculate_weight(network.patches.get(name, []), weight.detach().float().clone(), name)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor] | None:
    """The rows of several matrices in one; None where they share no scale, or their scales' tiles do not meet."""
    out = {}
    for last in parts[0]:
        values, rows = [part[last] for part in parts], len(parts[0]["weight"])
        if last == "weight" or values[0].shape[:1] == (rows,):
            # One byte: scales of blocks.
            if last == "weight_scale" and values[0].element_size() == 1 and rows % quantization.TILE_ROWS:
                return None
            out[last] = torch.cat(values)
        elif _are_the_same(values):
            out[last] = values[0]
        else:
            return None
    return out


def _are_the_same(values: list[Tensor]) -> bool:
    """To the bit, so that NaN is itself; on the meta device scales that are made from their group's absmax."""
    first, *others = (value if value.is_meta else value.reshape(-1).view(torch.uint8) for value in values)
    return first.is_meta or all(torch.equal(first, other) for other in others)
