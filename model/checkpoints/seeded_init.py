"""Random weights that come out the same on every machine: the miniature's text encoder is never stored, but drawn.

Each value is a signed byte times a power of two, so bf16 holds it exactly; the bytes come from a counter-based
generator whose raw output NumPy guarantees (Philox), so neither platform nor version can change them.
"""
import hashlib
import math
from collections.abc import Mapping

import numpy
import torch
from torch import Tensor

STEPS = 128  # of a signed byte up to 1.0


def random_state_dict(shapes: Mapping[str, tuple[int, ...]], seed: int, gain: float) -> dict[str, Tensor]:
    """Weights (bf16) of a network of linear layers, norms and embeddings, by their names and shapes.

    Matrices are uniform with the deviation gain / sqrt(fan-in), tables of embeddings uniform in [-1, 1]; norms are
    1 and biases 0.
    """
    return {name: _draw_one(name, shape, seed, gain) for name, shape in shapes.items()}


def _draw_one(name: str, shape: tuple[int, ...], seed: int, gain: float) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    limit = 1.0 if "embed" in name and len(shape) == 2 else _limit(gain, math.prod(shape[1:]))
    values = torch.from_numpy(_signed_bytes(name, math.prod(shape), seed)).to(torch.bfloat16)
    return values.mul_(limit / STEPS).view(shape)


def _limit(gain: float, fan_in: int) -> float:
    """The power of two nearest to where a uniform distribution of this deviation ends."""
    return 2.0 ** round(math.log2(gain * math.sqrt(3 / fan_in)))


def _signed_bytes(name: str, count: int, seed: int) -> numpy.ndarray:
    key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:16], "little")
    words = numpy.random.Philox(key=key).random_raw(-(-count // 8))
    return words.astype("<u8").view(numpy.int8)[:count]
