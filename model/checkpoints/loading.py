"""Fills a module with a recognized file's tensors: as they are stored, converted, or quantized on the way."""
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import finite, gguf, quantization
from .checkpoint import Checkpoint, GGUFCheckpoint, StoredCheckpoint, Tensors
from .matching import Detected
from .quantization import PLAIN_DTYPES, layer_of

Read = Callable[[str], Tensor]  # name of a tensor of the file -> the tensor


class Quantizing(NamedTuple):
    """What to do with the matrices of a plain file while it is loaded."""

    layers: quantization.QuantConfig
    # (matrix, largest magnitude in all that shares its scale, record) -> the entries of its layer, by their last name
    quantize: Callable[[Tensor, Tensor, Mapping], Mapping[str, Tensor]]
    # name of a parameter -> the parameters that share its scale: those that are one matrix in other files
    sharing: Callable[[str], tuple[str, ...]]


NOT_QUANTIZING = Quantizing({}, lambda matrix, absmax, record: {}, lambda name: (name,))


def load(module: nn.Module, detected: Detected, checkpoint: StoredCheckpoint, dtype: torch.dtype,
         progress: Callable[[int, int], None] = lambda done, total: None,
         quantizing: Quantizing = NOT_QUANTIZING, keep_fp32: bool = False) -> None:
    """Fill a module built on the meta device, strictly.

    Tensors that are stored as `dtype` stay mapped from the file, the others are converted or quantized. keep_fp32:
    those of fp32 stay too, for a module whose layers cast their parameters as they use them. Every tensor
    is looked at (integers are always finite) and refused if it holds NaN or infinity: a single one turns every image
    black, and nothing later could name it. progress(done, total) counts tensors and may raise to cancel.
    """
    records = {**detected.quantization, **quantizing.layers}
    values = {f"{layer}{quantization.QUANT_RECORD}": quantization.encoded(record) for layer, record in records.items()}
    with checkpoint.mapped() as mapped:
        entries = _Entries(detected, checkpoint, dtype, quantizing, mapped, keep_fp32)
        for done, name in enumerate(detected.table, start=1):
            values |= entries.of(name)
            progress(done, len(detected.table))
    module.load_state_dict(values, strict=True, assign=True)
    module.requires_grad_(False).eval()


@dataclass(frozen=True)
class _Entries:
    """The entries of a module's state dict that a parameter makes."""

    detected: Detected
    checkpoint: StoredCheckpoint
    dtype: torch.dtype
    quantizing: Quantizing
    mapped: Read  # like checkpoint.read; its tensors share one mapping of each file
    keep_fp32: bool

    def of(self, name: str) -> Mapping[str, Tensor]:
        layer = layer_of(name)
        if name not in self.detected.shapes or layer in self.detected.quantization:
            return {name: self.as_stored(name)}
        if layer in self.quantizing.layers:
            return {f"{layer}.{last}": value for last, value in self.quantized(name, layer).items()}
        return {name: self.converted(name)}

    def as_stored(self, name: str) -> Tensor:
        """A quantized weight, or one of its scales."""
        source = self.detected.table[name]
        if not source:
            return torch.ones(())
        if len(source) == 1:
            return self.looked_at(name, source[0], self.mapped)
        values = [self.looked_at(name, tensor, self.checkpoint.read) for tensor in source]
        layer, _, last = name.rpartition(".")
        if last == "weight_scale" and self.detected.quantization[layer]["format"] in quantization.ONE_SCALE_OR_ROWS:
            weights = self.detected.table[f"{layer}.weight"]
            values = [value.reshape(-1, 1).expand(self.checkpoint.tensors[weight].shape[0], 1)
                      for value, weight in zip(values, weights, strict=True)]
        return torch.cat(values)

    def looked_at(self, name: str, tensor: str, read: Read) -> Tensor:
        value = read(tensor)
        self.refuse_infinite(quantization.as_numbers(name, value, self.detected.quantization), tensor)
        return value

    def quantized(self, name: str, layer: str) -> Mapping[str, Tensor]:
        read = self.checkpoint.read
        absmax = quantization.absmax(self.plain(each, read) for each in self.quantizing.sharing(name))
        return self.quantizing.quantize(self.plain(name, read), absmax, self.quantizing.layers[layer])

    def converted(self, name: str) -> Tensor:
        """In the module's dtype, or fp32 that is kept. A tensor that is converted, joined with others or taken in part
        is mapped on its own, so that its pages go when the copy is there."""
        source = self.detected.table[name]
        stored = {PLAIN_DTYPES.get(self.checkpoint.tensors[tensor].dtype) for tensor in source}
        dtype = torch.float32 if self.keep_fp32 and stored == {torch.float32} else self.dtype
        as_it_is = len(source) == 1 and stored == {dtype} and name not in self.detected.last_taps
        read = self.mapped if as_it_is else self.checkpoint.read
        return self.plain(name, read).to(dtype)

    def plain(self, name: str, read: Read) -> Tensor:
        """The values in the parameter's shape, decoded where they are GGUF's blocks."""
        last_tap = name in self.detected.last_taps
        parts = [self.decoded(tensor, read, last_tap) for tensor in self.detected.table[name]]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(self.detected.shapes[name])

    def decoded(self, tensor: str, read: Read, last_tap: bool) -> Tensor:
        value, stored = read(tensor), self.checkpoint.tensors[tensor].dtype
        if last_tap:  # (C', C, taps, H, W): a copy, or the other taps would stay with it
            value = value[:, :, -1].contiguous()
        if stored in gguf.BLOCKS:
            value = gguf.dequantize(value, stored)
        self.refuse_infinite(value, tensor)
        return value

    def refuse_infinite(self, value: Tensor, name: str) -> None:
        """value: of this tensor of the file, packed or not."""
        stored = self.checkpoint.tensors[name].dtype
        packed = stored in gguf.BLOCKS and value.dtype == torch.uint8
        if not (finite.has_finite_scales(value, stored) if packed else finite.is_finite(value)):
            raise self.checkpoint.fail("tensor_not_finite", "{file} is damaged: tensor {tensor} contains NaN or "
                                       "infinite values.", tensor=name)


def stored_dtype(tensors: Tensors) -> torch.dtype:
    """The dtype of most of a file's values, those that are quantized left out. Some repackers keep norms in fp32; a
    network runs in one dtype."""
    values: dict[str, int] = {}
    for shape, dtype in tensors.values():
        if dtype in PLAIN_DTYPES:
            values[dtype] = values.get(dtype, 0) + math.prod(shape)
    return PLAIN_DTYPES[max(values, key=values.__getitem__)] if values else torch.bfloat16  # all of it was cast to fp8


def has_fp32_beside(checkpoint: Checkpoint) -> bool:
    """A GGUF file whose values are narrower than fp32 for the most part, with tensors that its publisher left in fp32
    on purpose: norms and biases, beside matrices of BF16 or F16. Decoding and casting, its layers can keep them."""
    return (isinstance(checkpoint, GGUFCheckpoint) and stored_dtype(checkpoint.tensors) != torch.float32
            and any(info.dtype == "F32" for info in checkpoint.tensors.values()))
