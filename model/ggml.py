"""GGUF files and the block formats of their matrices.

A block holds 32 or 256 neighbouring values of a row under one scale. Layouts: ggml's ggml-quants.c, as the gguf package
(0.19, gguf/quants.py) decodes them in NumPy; here on any device, because matrices stay packed until they are used.
"""
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    values: int
    bytes: int
    decode: Callable[[Tensor], Tensor]  # (blocks, bytes) uint8 -> (blocks, values) fp32


def _half(data: Tensor) -> Tensor:
    """Two bytes -> an fp16 number, as fp32 (blocks, 1)."""
    return data.contiguous().view(torch.float16).float()


def _parts(data: Tensor, shifts: tuple[int, ...], mask: int, group: int) -> Tensor:
    """Bytes cut into groups; each group's bits at every shift in turn (blocks, values)."""
    shift = torch.tensor(shifts, dtype=torch.uint8, device=data.device).view(1, 1, -1, 1)
    return (data.unflatten(1, (-1, 1, group)) >> shift & mask).flatten(1)


def _q8_0(data: Tensor) -> Tensor:
    return _half(data[:, :2]) * data[:, 2:].contiguous().view(torch.int8).float()


def _q4_0(data: Tensor) -> Tensor:
    return _half(data[:, :2]) * (_parts(data[:, 2:], (0, 4), 15, 16).float() - 8)


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
    values = _parts(data[:, 16:], (0, 4), 15, 32).unflatten(1, (8, 32))
    return (scales * values.float() - minima).flatten(1)


def _q5_k(data: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(data)
    fifth = _parts(data[:, 16:48], tuple(range(8)), 1, 32)
    values = (_parts(data[:, 48:], (0, 4), 15, 32) | fifth << 4).unflatten(1, (8, 32))
    return (scales * values.float() - minima).flatten(1)


def _q6_k(data: Tensor) -> Tensor:
    low, high = _parts(data[:, :128], (0, 4), 15, 64), _parts(data[:, 128:192], (0, 2, 4, 6), 3, 32)
    scales = _half(data[:, 208:]) * data[:, 192:208].contiguous().view(torch.int8).float()
    values = (low | high << 4).unflatten(1, (16, 16)).float() - 32
    return (scales.unsqueeze(-1) * values).flatten(1)


BLOCKS = {
    "Q8_0": Block(32, 34, _q8_0),
    "Q4_0": Block(32, 18, _q4_0),
    "Q4_K": Block(256, 144, _q4_k),
    "Q5_K": Block(256, 176, _q5_k),
    "Q6_K": Block(256, 210, _q6_k),
}
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dequantise(packed: Tensor, kind: str) -> Tensor:
    """Rows of packed blocks (rows, bytes) uint8 -> the matrix (rows, columns), fp32."""
    block = BLOCKS[kind]
    return block.decode(packed.reshape(-1, block.bytes)).view(len(packed), -1)


def quantise(matrix: Tensor) -> Tensor:
    """A matrix whose rows are multiples of 32 -> rows of Q8_0 blocks (rows, bytes) uint8."""
    blocks = matrix.float().reshape(-1, 32)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    values = torch.where(scale > 0, blocks / scale, 0).round()
    packed = torch.cat([scale.half().view(torch.uint8), values.to(torch.int8).view(torch.uint8)], 1)
    return packed.view(len(matrix), -1)


class Stored(NamedTuple):
    shape: tuple[int, ...]  # of the tensor
    kind: str               # F32, F16, BF16 or one of ggml's quantised types
    data: Tensor            # mapped from the file: the tensor, or its rows of packed blocks


def read(path: Path) -> dict[str, Stored]:
    """The tensors of a GGUF file, mapped. Raises ImportError without the gguf package, ValueError for other files."""
    import gguf
    reader = gguf.GGUFReader(path, "c")  # copy on write: torch wants arrays that it could write to
    return {tensor.name: Stored(tuple(reversed(tensor.shape.tolist())), tensor.tensor_type.name, _mapped(tensor))
            for tensor in reader.tensors}


def _mapped(tensor) -> Tensor:
    data = torch.from_numpy(tensor.data)
    return data.view(torch.bfloat16) if tensor.tensor_type.name == "BF16" else data
