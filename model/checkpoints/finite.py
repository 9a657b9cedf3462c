"""Finds NaN and infinity in stored values, also where torch has no arithmetic for them: by their bits.

Nothing is copied, so that a tensor stays mapped from its file; each value is looked at once or twice.
"""
import torch
from torch import Tensor

from . import gguf

# The first bit pattern of 8 bits, its sign left out, that is no number.
E4M3FN, E5M2 = 0x7F, 0x7C
FLOATS = {torch.float8_e4m3fn: E4M3FN, torch.float8_e5m2: E5M2}


def is_finite(values: Tensor) -> bool:
    """No value is NaN or infinite. Whole numbers always are finite."""
    if not values.numel():
        return True
    if values.dtype in FLOATS:
        return _below(values.view(torch.uint8), FLOATS[values.dtype])
    if values.dtype == torch.float8_e8m0fnu:  # a power of two without a sign
        return bool(values.view(torch.uint8).max() < 0xFF)
    if not values.is_floating_point():
        return True
    # Smallest and largest value carry NaN and infinity with them, and need no memory.
    return all(bool(torch.isfinite(extreme)) for extreme in values.aminmax())


def has_finite_scales(packed: Tensor, type_name: str) -> bool:
    """The same of packed blocks (rows, bytes) uint8: all that is not whole numbers in them is their scales."""
    block = gguf.BLOCKS[type_name]
    blocks = packed.reshape(-1, block.bytes)
    # The upper byte of an fp16 number is one of fp8 (e5m2), with the same exponent.
    return all(_below(blocks[:, offset + 1], E5M2) for offset in block.halves)


def _below(patterns: Tensor, limit: int) -> bool:
    """uint8 patterns: the largest of the negative ones is the largest byte, that of the others the largest int8."""
    return bool(patterns.max() < limit + 0x80 and patterns.view(torch.int8).max() < limit)
