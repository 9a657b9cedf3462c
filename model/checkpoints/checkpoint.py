"""What a checkpoint holds: names, shapes and dtypes of its tensors, configuration, and how its layers are quantized.

A `Checkpoint` is all that detection needs, and it makes its own refusals. A `StoredCheckpoint` was opened from files
(files.py) and can read its tensors too.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from torch import Tensor

from ...messages import Value
from . import gguf
from .config_json import Configuration
from .errors import CheckpointError, invalid_shape, missing_tensor


class TensorInfo(NamedTuple):
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: F32, BF16, F16, I8, ...; of a GGUF file's packed matrix: Q8_0, Q4_K, ...


Tensors = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint, without a tensor's values.

    label: the name that messages use. config: the folder's config.json or the one in the file's metadata, or {}.
    quantization: layer -> the record that says how it is quantized, see quantization.py.
    """

    label: str
    tensors: Tensors
    config: Mapping = field(default_factory=dict)
    quantization: Mapping[str, dict] = field(default_factory=dict)

    def shape(self, name: str, axes: int = 1) -> tuple[int, ...]:
        """Of a tensor with at least so many axes, none of them empty. Raises CheckpointError where it has not."""
        if name not in self.tensors:
            raise missing_tensor(self.label, name)
        found = self.tensors[name].shape
        if len(found) < axes or 0 in found:
            raise invalid_shape(self.label, name, found)
        return found

    def count(self, pattern: str) -> int:
        """How many names the numbered pattern has, from 0 on without a gap."""
        number = 0
        while pattern.format(number) in self.tensors:
            number += 1
        return number

    @property
    def configuration(self) -> Configuration:
        """The configuration's entries, each checked as it is read."""
        return Configuration(self.config, self.label)

    def fail(self, key: str, template: str, /, **values: Value) -> CheckpointError:
        """A refusal of this file, whose {file} is the label."""
        return CheckpointError(key, template, file=self.label, **values)

    def prefix_of(self, *markers: str) -> str | None:
        """What stands before one of the names that only one network has; repackers choose it freely. None: none of
        them is there."""
        return next((name.removesuffix(marker) for name in sorted(self.tensors) for marker in markers
                     if name.endswith(marker)), None)

    def below(self, prefix: str) -> Checkpoint:
        """The tensors and layers whose names begin so, without it."""
        tensors = {name.removeprefix(prefix): info for name, info in self.tensors.items() if name.startswith(prefix)}
        # A file may hold other networks beside this one, and records in the metadata may have no prefix.
        records = {layer.removeprefix(prefix): record for layer, record in self.quantization.items()
                   if layer.startswith(prefix) or f"{layer}.weight" not in self.tensors}
        return Checkpoint(self.label, tensors, self.config, records)

    def with_tensors(self, tensors: Tensors) -> Checkpoint:
        """The same file, seen with these tensors instead of its own."""
        return Checkpoint(self.label, tensors, self.config, self.quantization)


@dataclass(frozen=True)
class StoredCheckpoint(Checkpoint):
    """A checkpoint in one file or several. homes: tensor name -> its file."""

    homes: Mapping[str, Path] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def read(self, name: str) -> Tensor:
        """The tensor, mapped from its file on its own: its pages are read when touched and gone with it."""
        with safe_open(self.homes[name], "pt") as file:
            return aligned(file.get_tensor(name))

    @contextmanager
    def mapped(self) -> Iterator[Callable[[str], Tensor]]:
        """Yields a function like `read` whose tensors share one mapping of each file, alive as long as one of them."""
        with ExitStack() as stack:
            opened = {path: stack.enter_context(safe_open(path, "pt")) for path in dict.fromkeys(self.homes.values())}
            yield copying_once(lambda name: opened[self.homes[name]].get_tensor(name))

    def only(self, names: Iterable[str]) -> StoredCheckpoint:
        """The same file with these of its tensors: one network of several that it holds."""
        return replace(self, tensors={name: self.tensors[name] for name in names})

    def with_quantization(self, records: Mapping[str, dict]) -> StoredCheckpoint:
        return replace(self, quantization=records)


@dataclass(frozen=True)
class GGUFCheckpoint(StoredCheckpoint):
    """A GGUF file. A packed matrix has the shape of what it stands for; it is read as rows of bytes.

    header: its metadata, which publishers of diffusion models often leave out.
    """

    stored: Mapping[str, gguf.Stored] = field(default_factory=dict)
    header: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, label: str, stored: Mapping[str, gguf.Stored], header: Mapping[str, object],
           config: Mapping | None = None, homes: Mapping[str, Path] | None = None) -> GGUFCheckpoint:
        """Every matrix that is packed is a layer quantized in GGUF's way."""
        tensors = {name: TensorInfo(one.shape, one.type) for name, one in stored.items()}
        records = {name.removesuffix(".weight"): {"format": "gguf", "type": info.dtype}
                   for name, info in tensors.items() if info.dtype not in gguf.PLAIN}
        return cls(label, tensors, config or {}, records, homes or {}, {}, stored, header)

    def read(self, name: str) -> Tensor:
        return aligned(self.stored[name].read())

    @contextmanager
    def mapped(self) -> Iterator[Callable[[str], Tensor]]:
        yield copying_once(lambda name: self.stored[name].read())


def aligned(tensor: Tensor) -> Tensor:
    """The mapped tensor itself, or its copy where it lies at an address that is no multiple of its element.

    Nothing stops a file's writer from that: a text of odd length before the weights is enough. Kernels choose their way
    by the address, so the same weights would compute otherwise than at home, and some devices read no such element.
    """
    return tensor if _is_aligned(tensor) else tensor.clone()


def _is_aligned(tensor: Tensor) -> bool:
    return tensor.data_ptr() % tensor.element_size() == 0


def copying_once(read: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
    """`read`, whose tensors are aligned; two parameters that are rows of one tensor share its copy."""
    copies: dict[str, Tensor] = {}

    def read_aligned(name: str) -> Tensor:
        if name in copies:
            return copies[name]
        tensor = read(name)
        if not _is_aligned(tensor):
            tensor = copies[name] = tensor.clone()
        return tensor
    return read_aligned
