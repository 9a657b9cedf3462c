"""Writes a safetensors file tensor by tensor.

The safetensors package wants all tensors in memory at once, which for these models is most of a machine's. The format
(8 bytes of length, a JSON header, the values) allows spaces after the header, so room for it is left free and filled
at the end.
"""
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ...atomic import unfinished, write_errors
from ...messages import Refusal

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
          torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0", torch.int8: "I8", torch.uint8: "U8"}
LENGTH_BYTES = 8
# What a name, its dtype, shape and offsets take in the header at most, beside the name itself.
ENTRY_BYTES = 160


def write(path: Path, names: Iterable[str], tensors: Iterable[tuple[str, Tensor]], metadata: dict[str, str]) -> None:
    """Write `tensors` as they come; `names` are at least theirs, known beforehand. An existing file is replaced.

    Raises WriteError, and whatever `tensors` raises; the temporary file goes in both cases.
    """
    room = len(json.dumps(metadata)) + sum(len(json.dumps(name)) + ENTRY_BYTES for name in names) + 64
    room += -room % LENGTH_BYTES
    with unfinished(path) as file:
        with write_errors(path):
            file.write(b" " * (LENGTH_BYTES + room))
        header, begin = {"__metadata__": metadata}, 0
        for name, tensor in tensors:
            values = tensor.detach().cpu().contiguous()
            end = begin + values.nbytes
            header[name] = {"dtype": DTYPES[values.dtype], "shape": list(values.shape), "data_offsets": [begin, end]}
            with write_errors(path):
                file.write(values.reshape(-1).view(torch.uint8).numpy().data)
            begin = end
        encoded = json.dumps(header, separators=(",", ":")).encode()
        if len(encoded) > room:
            raise Refusal("header_room", "The header takes {size} bytes, but its names were said to need {room}.",
                          size=len(encoded), room=room)
        with write_errors(path):
            file.seek(0)
            file.write(room.to_bytes(LENGTH_BYTES, "little") + encoded)
