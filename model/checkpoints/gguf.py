"""GGUF files and the block formats of their matrices.

A block holds 32 or 256 neighbouring values of a row under one scale. Layouts: ggml's ggml-quants.c, as the gguf package
(0.19, gguf/quants.py) decodes them in NumPy; here on any device, because matrices stay packed until they are used. The
package itself is not needed: the tests compare with it.
"""
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from ...messages import Refusal


class Block(NamedTuple):
    values: int
    bytes: int
    halves: tuple[int, ...]  # bytes of a block where its fp16 numbers begin; whatever else it holds is whole numbers
    decode: Callable[[Tensor], Tensor]  # (blocks, bytes) uint8 -> (blocks, values) fp32


def _half(data: Tensor) -> Tensor:
    """Two bytes -> an fp16 number, as fp32 (blocks, 1)."""
    return data.contiguous().view(torch.float16).float()


def _parts(data: Tensor, bits: int, group: int) -> Tensor:
    """Bytes cut into groups; of each group first the lowest so many bits, then the next ones (blocks, values)."""
    # Counted on the device: copying a list there would make the host wait for it, once for every matrix.
    shift = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device).view(1, 1, -1, 1)
    return (data.unflatten(1, (-1, 1, group)) >> shift & (1 << bits) - 1).flatten(1)


def _q8_0(data: Tensor) -> Tensor:
    return _half(data[:, :2]) * data[:, 2:].contiguous().view(torch.int8).float()


def _q4_0(data: Tensor) -> Tensor:
    return _half(data[:, :2]) * (_parts(data[:, 2:], 4, 16).float() - 8)


def _q4_1(data: Tensor) -> Tensor:
    return _half(data[:, :2]) * _parts(data[:, 4:], 4, 16).float() + _half(data[:, 2:4])


def _five_bits(data: Tensor) -> Tensor:
    """Four bytes with the fifth bit of each value, in the order of the values, then their lower four bits."""
    return (_parts(data[:, 4:], 4, 16) | _parts(data[:, :4], 1, 1) << 4).float()


def _q5_0(data: Tensor) -> Tensor:
    return _half(data[:, :2]) * (_five_bits(data[:, 2:]) - 16)


def _q5_1(data: Tensor) -> Tensor:
    return _half(data[:, :2]) * _five_bits(data[:, 4:]) + _half(data[:, 2:4])


# What the 16 codes of IQ4_NL and IQ4_XS stand for (kvalues_iq4nl in ggml-common.h): denser around zero, as weights are.
CODES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# The same as two numbers of eight bytes: a device can be filled with them, while a list would be copied from the host.
CODE_WORDS = struct.unpack("<2q", struct.pack("<16b", *CODES))


def _coded(data: Tensor) -> Tensor:
    """Codes of 4 bits in groups of 16 bytes -> the values that they stand for (blocks, values) fp32."""
    words = [torch.full((1,), word, dtype=torch.int64, device=data.device) for word in CODE_WORDS]
    table = torch.cat(words).view(torch.int8).float()
    codes = _parts(data, 4, 16)
    return table.index_select(0, codes.flatten().int()).view(codes.shape)


def _iq4_nl(data: Tensor) -> Tensor:
    return _half(data[:, :2]) * _coded(data[:, 2:])


def _iq4_xs(data: Tensor) -> Tensor:
    """Eight groups of 32 values, whose scales have 6 bits: first the upper two of all, then the lower four."""
    scales = _parts(data[:, 4:8], 4, 1) | _parts(data[:, 2:4], 2, 1) << 4
    scales = _half(data[:, :2]) * (scales.float() - 32)
    return (scales.unsqueeze(-1) * _coded(data[:, 8:]).unflatten(1, (8, 32))).flatten(1)


def _q2_k(data: Tensor) -> Tensor:
    """Sixteen groups of 16 values; a byte holds a group's scale in its lower half, its minimum in the upper one."""
    scales = (data[:, :16] & 15).float() * _half(data[:, 80:82])
    minima = (data[:, :16] >> 4).float() * _half(data[:, 82:])
    values = _parts(data[:, 16:80], 2, 32).unflatten(1, (16, 16))
    return (scales.unsqueeze(-1) * values.float() - minima.unsqueeze(-1)).flatten(1)


def _q3_k(data: Tensor) -> Tensor:
    """Sixteen groups of 16 values of 3 bits; their scales have 6 bits, the lower four of all first."""
    values = _parts(data[:, 32:96], 2, 32) | _parts(data[:, :32], 1, 32) << 2
    scales = _parts(data[:, 96:104], 4, 8) | _parts(data[:, 104:108], 2, 4) << 4
    scales = _half(data[:, 108:]) * (scales.float() - 32)
    return (scales.unsqueeze(-1) * (values.float() - 4).unflatten(1, (16, 16))).flatten(1)


def _scales_and_minima(data: Tensor) -> tuple[Tensor, Tensor]:
    """The head of a Q4_K or Q5_K block -> scale and minimum of its 8 groups of 32 values (blocks, 8, 1).

    Twelve bytes hold 8 scales and 8 minima of 6 bits: the upper bits of the first two fours belong to the last four.
    """
    first, second, last = data[:, 4:16].unflatten(1, (3, 4)).unbind(1)
    scales = torch.cat([first & 63, last & 15 | first >> 2 & 48], 1)
    minima = torch.cat([second & 63, last >> 4 | second >> 2 & 48], 1)
    return ((_half(data[:, :2]) * scales.float()).unsqueeze(-1), (_half(data[:, 2:4]) * minima.float()).unsqueeze(-1))


def _q4_k(data: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(data)
    values = _parts(data[:, 16:], 4, 32).unflatten(1, (8, 32))
    return (scales * values.float() - minima).flatten(1)


def _q5_k(data: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(data)
    fifth = _parts(data[:, 16:48], 1, 32)
    values = (_parts(data[:, 48:], 4, 32) | fifth << 4).unflatten(1, (8, 32))
    return (scales * values.float() - minima).flatten(1)


def _q6_k(data: Tensor) -> Tensor:
    low, high = _parts(data[:, :128], 4, 64), _parts(data[:, 128:192], 2, 32)
    scales = _half(data[:, 208:]) * data[:, 192:208].contiguous().view(torch.int8).float()
    values = (low | high << 4).unflatten(1, (16, 16)).float() - 32
    return (scales.unsqueeze(-1) * values).flatten(1)


BLOCKS = {
    "Q8_0": Block(32, 34, (0,), _q8_0),
    "Q6_K": Block(256, 210, (208,), _q6_k),
    "Q5_K": Block(256, 176, (0, 2), _q5_k),
    "Q5_1": Block(32, 24, (0, 2), _q5_1),
    "Q5_0": Block(32, 22, (0,), _q5_0),
    "Q4_K": Block(256, 144, (0, 2), _q4_k),
    "Q4_1": Block(32, 20, (0, 2), _q4_1),
    "Q4_0": Block(32, 18, (0,), _q4_0),
    "IQ4_NL": Block(32, 18, (0,), _iq4_nl),
    "IQ4_XS": Block(256, 136, (0,), _iq4_xs),
    "Q3_K": Block(256, 110, (108,), _q3_k),
    "Q2_K": Block(256, 84, (80, 82), _q2_k),
}
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# The numbers of the types in a file (enum ggml_type in ggml.h), those that are only refused by name too. The numbers in
# between belonged to types that ggml has given up.
TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
         12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
         20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
         29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"}


def dequantize(packed: Tensor, type_name: str) -> Tensor:
    """Rows of packed blocks (rows, bytes) uint8 -> the matrix (rows, columns), fp32."""
    block = BLOCKS[type_name]
    return block.decode(packed.reshape(-1, block.bytes)).view(len(packed), -1)


def quantize(matrix: Tensor) -> Tensor:
    """A matrix whose rows are multiples of 32 -> rows of Q8_0 blocks (rows, bytes) uint8."""
    blocks = matrix.float().reshape(-1, 32)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    values = torch.where(scale > 0, blocks / scale, 0).round()
    packed = torch.cat([scale.half().view(torch.uint8), values.to(torch.int8).view(torch.uint8)], 1)
    return packed.view(len(matrix), -1)


class Stored(NamedTuple):
    shape: tuple[int, ...]  # of the tensor
    type: str               # F32, F16, BF16 or one of ggml's quantized types
    data: Tensor            # mapped from the file: the tensor, or its rows of packed blocks
    crossing: str = ""      # the type of blocks that cross the ends of rows: the tensor is F32, decoded when it is read
    parts: tuple[Tensor, ...] = ()  # instead of data: tensors whose rows are joined when it is read

    def read(self) -> Tensor:
        if self.parts:
            return torch.cat(self.parts)
        return dequantize(self.data, self.crossing).view(self.shape) if self.crossing else self.data


def stacked(tensors: Sequence[Stored]) -> Stored:
    """One tensor with the rows of several that have the same shape and type, packed or not."""
    first = tensors[0]
    shape = (len(tensors) * first.shape[0], *first.shape[1:])
    return Stored(shape, first.type, torch.empty(0), parts=tuple(one.read() for one in tensors))


# Before the name of a tensor in the metadata: the shape that it has for its network. city96's converter writes matrices
# whose rows are no whole blocks as rows of 256 values.
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."


def read(path: Path) -> tuple[dict[str, object], dict[str, Stored]]:
    """Metadata and tensors of a GGUF file, the tensors mapped.

    Raises ValueError for other files and for those that end early. The header follows ggml's docs/gguf.md.
    """
    file = numpy.memmap(path, mode="c")  # copy on write: torch wants arrays that it could write to
    try:
        header = _Header(file.data)
        metadata, entries = header.read()
    except struct.error as error:
        raise Refusal("gguf_header_error", "its header ends early: {error}", error=str(error)) from error
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise Refusal("gguf_alignment", "its tensors are aligned to {alignment}", alignment=repr(alignment))
    start = -(-header.offset // alignment) * alignment
    stored = {name: _stored(file, shape, number, start + offset) for name, (shape, number, offset) in entries.items()}
    original = {name: metadata[ORIGINAL_SHAPE + name] for name in stored if ORIGINAL_SHAPE + name in metadata}
    return metadata, stored | {name: _reshaped(stored[name], claim) for name, claim in original.items()}


def _stored(file: numpy.memmap, shape: tuple[int, ...], number: int, start: int) -> Stored:
    """A tensor whose bytes begin at `start`; one of a type that is not read has no data and is refused by its type."""
    type_name = TYPES.get(number, f"number {number}")
    if type_name in PLAIN:
        values, size = 1, PLAIN[type_name].itemsize
    elif type_name in BLOCKS:
        values, size = BLOCKS[type_name].values, BLOCKS[type_name].bytes
    else:
        return Stored(shape, type_name, torch.empty(0))
    if 0 in shape or (shape or (1,))[-1] % values:
        raise Refusal("gguf_tensor_shape", "a tensor of type {type} has the invalid shape {shape}",
                      type=type_name, shape=str(list(shape)))
    end = start + math.prod(shape) // values * size
    if end > len(file):
        raise Refusal("gguf_tensor_end", "a tensor ends at byte {end}", end=f"{end:,}")
    data = torch.from_numpy(file[start:end])
    if type_name in PLAIN:
        return Stored(shape, type_name, data.view(PLAIN[type_name]).view(shape))
    return Stored(shape, type_name, data.view(math.prod(shape[:-1]), -1))


def _reshaped(stored: Stored, claim: object) -> Stored:
    """The tensor in its original shape. Rows of whole blocks stay packed, in all other shapes it counts as F32."""
    shape, type_name = _as_shape(claim), stored.type
    if shape is None or math.prod(shape) != math.prod(stored.shape):
        raise Refusal("gguf_original_shape", "a tensor of shape {shape} declares the original shape {original}",
                      shape=str(list(stored.shape)),
                      original=str(claim[:_Header.MAX_ORIGINAL_AXES + 1] if isinstance(claim, list) else claim))
    if type_name in PLAIN:
        return Stored(shape, type_name, stored.data.view(shape))
    if type_name not in BLOCKS:  # it is refused by its type
        return Stored(shape, type_name, stored.data)
    if len(shape) == 2 and shape[1] % BLOCKS[type_name].values == 0:
        return Stored(shape, type_name, stored.data.view(shape[0], -1))
    return Stored(shape, "F32", stored.data, crossing=type_name)


def _as_shape(claim: object) -> tuple[int, ...] | None:
    """A value of the metadata as a shape; None where it is none."""
    if not isinstance(claim, list) or len(claim) > _Header.MAX_ORIGINAL_AXES:
        return None
    return tuple(claim) if all(isinstance(length, int) and length > 0 for length in claim) else None


class _Header:
    """Reads numbers and texts from the beginning of a GGUF file, one after the other."""

    VERSIONS = (2, 3)
    NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # type of a value -> its struct code
    TEXT, ARRAY = 8, 9
    MAX_AXES = 4
    MAX_ORIGINAL_AXES = 8  # of a shape in the metadata: convolutions over time have 5
    # A file may claim anything, and a sparse one costs its maker nothing: a header is read as far as real ones go. The
    # largest models have some 2,000 tensors, the largest tokenizers 1.3 million words, merges and scores in 30 MB.
    MAX_ENTRIES = 65_536  # values of the metadata, and tensors
    MAX_ITEMS = 2_000_000  # of all arrays together
    MAX_BYTES = 64 * 1024**2
    MAX_TEXT = 16 * 1024**2  # bytes of a value: a whole tokenizer.json; as characters it may take four times as much
    MAX_NAME = 65_535  # bytes, as the format has it
    MIN_VALUE, MIN_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8  # bytes: an empty name, type, number; axes, type, offset

    def __init__(self, buffer: memoryview):
        self.buffer, self.offset, self.items = buffer, 0, 0

    def read(self) -> tuple[dict[str, object], dict[str, tuple[tuple[int, ...], int, int]]]:
        """Metadata, and for each tensor its shape, type and offset."""
        if self.take(4) != b"GGUF":
            raise Refusal("gguf_magic", "it does not start with GGUF")
        version = self.number("I")
        if version not in self.VERSIONS:
            raise Refusal("gguf_version", "its version is {version}", version=version)
        tensors, values = self.number("Q"), self.number("Q")
        self.check_entries(values * self.MIN_VALUE + tensors * self.MIN_TENSOR, max(tensors, values))
        metadata = {self.name(): self.value(self.number("I")) for _ in range(values)}
        return metadata, {self.name(): self.entry() for _ in range(tensors)}

    def check_entries(self, size: int, most: int) -> None:
        """size: bytes that all entries take at least; most: how many there are of one type_name."""
        if most > self.MAX_ENTRIES or size > len(self.buffer) - self.offset:
            raise Refusal("gguf_entries", "its header declares {count} entries", count=f"{most:,}")

    def entry(self) -> tuple[tuple[int, ...], int, int]:
        axes = self.number("I")
        if axes > self.MAX_AXES:
            raise Refusal("gguf_axes", "a tensor has {axes} axes", axes=axes)
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]  # ggml counts axes from the last
        return shape, self.number("I"), self.number("Q")

    def value(self, value_type: int) -> object:
        if value_type == self.TEXT:
            return self.text()
        if value_type == self.ARRAY:
            value_type, count = self.number("I"), self.number("Q")
            self.items += count
            if self.items > self.MAX_ITEMS:
                raise Refusal("gguf_items", "its header declares arrays of {count} values",
                              count=f"{self.items:,}")
            if value_type == self.TEXT:
                return [self.text() for _ in range(count)]
            raw = self.take(count * struct.calcsize(self.code(value_type)))
            return [value for value, in struct.iter_unpack("<" + self.code(value_type), raw)]
        return self.number(self.code(value_type))

    def code(self, value_type: int) -> str:
        if value_type not in self.NUMBERS:
            raise Refusal("gguf_value_type", "a value is of type {type}", type=value_type)
        return self.NUMBERS[value_type]

    def number(self, code: str) -> Any:  # int, float or bool, as the code says
        value, = struct.unpack_from("<" + code, self.buffer, self.offset)
        self.offset += struct.calcsize("<" + code)
        return value

    def name(self) -> str:
        return self.text(self.MAX_NAME)

    def text(self, longest: int = MAX_TEXT) -> str:
        length = self.number("Q")
        if length > longest:
            raise Refusal("gguf_text_long", "its header declares a text of {count} bytes", count=f"{length:,}")
        return self.take(length).decode("utf-8", "replace")

    def take(self, count: int) -> bytes:
        end = self.offset + count
        if end > len(self.buffer):
            raise Refusal("gguf_header_end", "its header ends early")
        if end > self.MAX_BYTES:
            raise Refusal("gguf_header_long", "its header is longer than {max} MiB", max=self.MAX_BYTES // 1024**2)
        value = bytes(self.buffer[self.offset:end])
        self.offset = end
        return value
