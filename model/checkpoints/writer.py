"""Writes files whole or not at all; a safetensors file tensor by tensor.

The safetensors package wants all tensors in memory at once, which for these models is most of a machine's. The format
(8 bytes of length, a JSON header, the values) allows spaces after the header, so room for it is left free and filled
at the end.
"""
import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ...messages import Message, Refusal

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
          torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0", torch.int8: "I8", torch.uint8: "U8"}
LENGTH_BYTES = 8
# What a name, its dtype, shape and offsets take in the header at most, beside the name itself.
ENTRY_BYTES = 160


class WriteError(Refusal):
    """The file could not be written; the message says why, and nothing is left of it."""


def write(path: Path, names: Iterable[str], tensors: Iterable[tuple[str, Tensor]], metadata: dict[str, str]) -> None:
    """Write `tensors` as they come; `names` are at least theirs, known beforehand. An existing file is replaced.

    Raises WriteError, and whatever `tensors` raises; the temporary file goes in both cases.
    """
    room = len(json.dumps(metadata)) + sum(len(json.dumps(name)) + ENTRY_BYTES for name in names) + 64
    room += -room % LENGTH_BYTES
    with _unfinished(path) as file:
        with _words_for(path):
            file.write(b" " * (LENGTH_BYTES + room))
        header, begin = {"__metadata__": metadata}, 0
        for name, tensor in tensors:
            values = tensor.detach().cpu().contiguous()
            end = begin + values.nbytes
            header[name] = {"dtype": DTYPES[values.dtype], "shape": list(values.shape), "data_offsets": [begin, end]}
            with _words_for(path):
                file.write(values.reshape(-1).view(torch.uint8).numpy().data)
            begin = end
        encoded = json.dumps(header, separators=(",", ":")).encode()
        if len(encoded) > room:
            raise Refusal("header_room", "The header takes {size} bytes, but its names were said to need {room}.",
                          size=len(encoded), room=room)
        with _words_for(path):
            file.seek(0)
            file.write(room.to_bytes(LENGTH_BYTES, "little") + encoded)


def write_by(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Whatever `save` writes into the open file, which it may also read. Raises WriteError and what `save` raises."""
    with _unfinished(path) as file, _words_for(path):
        save(file)


@contextlib.contextmanager
def _unfinished(path: Path) -> Iterator:
    """A file beside `path` that takes its place when the block ends well, and goes when it does not."""
    with _words_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    try:
        with open(descriptor, "w+b") as file:
            yield file
            with _words_for(path):
                file.flush()
                os.fsync(file.fileno())
        with _words_for(path):
            os.chmod(name, 0o666 & ~_umask())  # mkstemp's file is for its owner only
            os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def _words_for(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = Message("disk_full", "the disk is full") if full else str(error.strerror or error)
        raise WriteError("write_failed", "{file} could not be written: {reason}. Nothing is left of it.",
                         file=path.name, reason=why) from error


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
