"""Writes a safetensors file tensor by tensor.

The safetensors package wants all tensors in memory at once, which for these models is most of a machine's. Here names,
dtypes and shapes are known first and give the header (8 bytes of length, then JSON), so each tensor is written where it
belongs as soon as it is there.
"""
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...atomic import unfinished, write_errors

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
          torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0", torch.int8: "I8", torch.uint8: "U8"}
LENGTH_BYTES = 8
# Files are mapped into memory, and kernels choose their way, and with it how they round, by the address: weights at
# multiples of 64 bytes (a cache line, the widest vector registers) compute as freshly allocated ones do.
ALIGNMENT = 64


class Entry(NamedTuple):
    """A tensor that is to be written, without its values."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "Entry":
        return cls(name, tensor.dtype, tuple(tensor.shape))

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(path: Path, entries: Iterable[Entry], tensors: Iterable[tuple[str, Tensor]],
          metadata: dict[str, str]) -> None:
    """Write `tensors` as they come, in any order; they are exactly the `entries`. An existing file is replaced.

    Raises WriteError, and whatever `tensors` raises; the temporary file goes in both cases. What was not announced, or
    announced and does not come, is a programming error: AssertionError.
    """
    places = _places(entries)
    header = _header(places, metadata)
    with unfinished(path) as file:
        with write_errors(path):
            file.write(header)
        for name, tensor in tensors:
            assert name in places, f"the tensor {name} was not announced, or came twice"
            entry, begin = places.pop(name)
            assert Entry.of(name, tensor) == entry, f"{Entry.of(name, tensor)} was announced as {entry}"
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            with write_errors(path):
                file.seek(len(header) + begin)
                file.write(values.numpy().data)
        assert not places, f"these tensors were announced and did not come: {', '.join(places)}"


class _Place(NamedTuple):
    entry: Entry
    begin: int  # byte from which on its values stand, counted from the header's end


def _places(entries: Iterable[Entry]) -> dict[str, _Place]:
    """Where each tensor stands, one behind the other, as the format demands.

    What divides the length of every tensor before divides a tensor's place. So lengths that are multiples of ALIGNMENT
    come first, as nearly all are, and odd ones, such as the text of a quantized layer's mark, last; no tensor then lies
    at an odd part of its element.
    """
    places, begin = {}, 0
    for entry in sorted(entries, key=lambda entry: -math.gcd(entry.size, ALIGNMENT)):
        assert entry.name not in places, f"the tensor {entry.name} was announced twice"
        places[entry.name] = _Place(entry, begin)
        begin += entry.size
    return places


def _header(places: dict[str, _Place], metadata: dict[str, str]) -> bytes:
    """Everything before the values, filled up with spaces so that these begin at a multiple of ALIGNMENT."""
    entries = {name: {"dtype": DTYPES[entry.dtype], "shape": entry.shape, "data_offsets": [begin, begin + entry.size]}
               for name, (entry, begin) in places.items()}
    encoded = json.dumps({"__metadata__": metadata} | entries, separators=(",", ":")).encode()
    encoded += b" " * (-(LENGTH_BYTES + len(encoded)) % ALIGNMENT)
    return len(encoded).to_bytes(LENGTH_BYTES, "little") + encoded
