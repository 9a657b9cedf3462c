"""GGUF's packed matrices decoded in one pass: each block is read once, each value written once.

The formats are told in model/checkpoints/gguf.py, whose PyTorch operations define the result. All products are exact
in fp32 (11 bits of a scale in fp16, up to 8 of a factor, up to 6 of a value), so one rounding, to the dtype of the
matrix, is all that happens in either form.

A program decodes some blocks: tiles are (block, value), or (block, group, value) where groups have scales. A scale is
read in a tile of its own, or every thread would read it once for each of its values.
"""
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _half(at):
    """The fp16 number whose two bytes lie there, as fp32. (Blocks have sizes like 34: no address is promised even.)"""
    bits = tl.load(at).to(tl.uint16) | tl.load(at + 1).to(tl.uint16) << 8
    return bits.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _own_blocks(packed, out, blocks, BYTES: tl.constexpr, VALUES: tl.constexpr, BLOCKS: tl.constexpr):
    """Where this program's blocks begin, and where their values go (BLOCKS,). Behind the end of the matrix the last
    block is decoded again."""
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.minimum(tl.arange(0, BLOCKS), blocks - 1 - first).to(tl.int32)
    return packed + first * BYTES + block * BYTES, out + first * VALUES + block * VALUES


@triton.jit(do_not_specialize=["blocks"])
def _q8_0(packed, out, blocks, BLOCKS: tl.constexpr):
    block, to = _own_blocks(packed, out, blocks, 34, 32, BLOCKS)
    number = tl.arange(0, 32)[None, :]
    value = tl.load(block[:, None] + 2 + number).to(tl.int8, bitcast=True)
    tl.store(to[:, None] + number, (_half(block)[:, None] * value.to(tl.float32)).to(out.dtype.element_ty))


@triton.jit
def _scales_and_minima(block):
    """Of the eight groups of a Q4_K or Q5_K block (BLOCKS, 8, 1): six bits, of the last four groups the upper two
    apart."""
    half, minimal = _half(block)[:, None], _half(block + 2)[:, None]
    group = tl.arange(0, 8)[None, :]
    place = block[:, None] + group % 4
    first, second, last = tl.load(place + 4), tl.load(place + 8), tl.load(place + 12)
    scale = tl.where(group < 4, first & 63, last & 15 | first >> 2 & 48)
    minimum = tl.where(group < 4, second & 63, last >> 4 | second >> 2 & 48)
    return (half * scale.to(tl.float32))[:, :, None], (minimal * minimum.to(tl.float32))[:, :, None]


@triton.jit(do_not_specialize=["blocks"])
def _q4_k(packed, out, blocks, BLOCKS: tl.constexpr):
    block, to = _own_blocks(packed, out, blocks, 144, 256, BLOCKS)
    group, number = tl.arange(0, 8)[None, :, None], tl.arange(0, 32)[None, None, :]
    scale, minimum = _scales_and_minima(block)
    value = tl.load(block[:, None, None] + 16 + group // 2 * 32 + number) >> group % 2 * 4 & 15
    decoded = scale * value.to(tl.float32) - minimum
    tl.store(to[:, None, None] + group * 32 + number, decoded.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["blocks"])
def _q5_k(packed, out, blocks, BLOCKS: tl.constexpr):
    block, to = _own_blocks(packed, out, blocks, 176, 256, BLOCKS)
    group, number = tl.arange(0, 8)[None, :, None], tl.arange(0, 32)[None, None, :]
    scale, minimum = _scales_and_minima(block)
    low = tl.load(block[:, None, None] + 48 + group // 2 * 32 + number) >> group % 2 * 4 & 15
    fifth = tl.load(block[:, None, None] + 16 + number) >> group & 1
    decoded = scale * (low | fifth << 4).to(tl.float32) - minimum
    tl.store(to[:, None, None] + group * 32 + number, decoded.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["blocks"])
def _q6_k(packed, out, blocks, BLOCKS: tl.constexpr):
    """Sixteen groups of 16 values. Each half of a block has 64 bytes of lower bits and 32 of upper ones."""
    block, to = _own_blocks(packed, out, blocks, 210, 256, BLOCKS)
    factor = tl.load(block[:, None] + 192 + tl.arange(0, 16)[None, :]).to(tl.int8, bitcast=True)
    scale = (_half(block + 208)[:, None] * factor.to(tl.float32))[:, :, None]
    group, number = tl.arange(0, 16)[None, :, None], tl.arange(0, 16)[None, None, :]
    half, place = group // 8, group % 8 * 16 + number  # among the 128 values of the half
    low = tl.load(block[:, None, None] + half * 64 + place % 64) >> place // 64 * 4 & 15
    high = tl.load(block[:, None, None] + 128 + half * 32 + place % 32) >> place // 32 * 2 & 3
    decoded = scale * ((low | high << 4).to(tl.float32) - 32)
    tl.store(to[:, None, None] + group * 16 + number, decoded.to(out.dtype.element_ty))


class Decoder(NamedTuple):
    kernel: Any  # a function of Triton's
    values: int  # of a block
    bytes: int

    @property
    def blocks(self) -> int:
        """Of a program: sixteen values for each of its 128 threads."""
        return 2048 // self.values


DECODERS = {"Q8_0": Decoder(_q8_0, 32, 34), "Q4_K": Decoder(_q4_k, 256, 144), "Q5_K": Decoder(_q5_k, 256, 176),
            "Q6_K": Decoder(_q6_k, 256, 210)}


def decode(packed: Tensor, type_name: str, dtype: torch.dtype) -> Tensor:
    """Rows of packed blocks (rows, bytes) uint8 -> the matrix (rows, columns) in this dtype."""
    decoder, packed = DECODERS[type_name], packed.contiguous()
    blocks = packed.numel() // decoder.bytes
    out = torch.empty(len(packed), packed.shape[1] // decoder.bytes * decoder.values, dtype=dtype, device=packed.device)
    with torch.cuda.device_of(packed):  # Triton launches on the current one
        decoder.kernel[(triton.cdiv(blocks, decoder.blocks),)](packed, out, blocks, BLOCKS=decoder.blocks)
    return out
