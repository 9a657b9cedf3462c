"""Blocks whose weights stay in RAM and visit the device in turn.

While one block computes, the next one's weights are under way: into one of two buffers on the device, by way of
pinned memory and a stream of their own. The blocks that stay on the device lie evenly between those that do not, so a
pass takes as long as the longer of computing and copying.
"""
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple

import torch
from torch import Tensor, nn

from .operations import Layer

BUFFERS = 2
ALIGNMENT = 256  # bytes: what CUDA's own allocations keep


# ---------------------------------------------------------------- what stays and what streams

@dataclass(frozen=True)
class Plan:
    """fixed: bytes that never leave the device; sizes: of each block; streamed: the numbers of those that visit it."""

    fixed: int
    sizes: tuple[int, ...]
    streamed: frozenset[int]

    @property
    def buffers(self) -> int:
        return BUFFERS * max((self.sizes[number] for number in self.streamed), default=0)

    @property
    def resident(self) -> int:
        """Bytes of the weights that stay."""
        return self.fixed + sum(self.sizes) - self.moved

    @property
    def moved(self) -> int:
        """Bytes that every pass brings to the device."""
        return sum(self.sizes[number] for number in self.streamed)

    @property
    def on_device(self) -> int:
        return self.resident + self.buffers

    def keeping(self, count: int) -> "Plan":
        """The same model with `count` of its blocks on the device."""
        streamed = len(self.sizes) - count
        return Plan(self.fixed, self.sizes, frozenset(_spread(streamed, len(self.sizes))))


def plan(fixed: int, sizes: Sequence[int], budget: float) -> Plan:
    """Keep as many blocks as the budget (bytes, buffers included) has room for: none, where it is too small."""
    nothing_moves = Plan(fixed, tuple(sizes), frozenset())
    plans = map(nothing_moves.keeping, range(len(sizes), 0, -1))
    return next((each for each in plans if each.on_device <= budget), nothing_moves.keeping(0))


def _spread(count: int, places: int) -> Iterable[int]:
    """`count` of the numbers below `places`, evenly."""
    return ((2 * number + 1) * places // (2 * count) for number in range(count))


# ---------------------------------------------------------------- a block's weights as bytes

class Entry(NamedTuple):
    module: nn.Module
    name: str
    parameter: nn.Parameter


def entries(block: nn.Module) -> list[Entry]:
    return [Entry(module, name, parameter) for module in block.modules()
            for name, parameter in module.named_parameters(recurse=False)]


def size_of(entry: Entry) -> int:
    """Bytes in a buffer."""
    return buffer_size(_parts(entry.parameter))


def buffer_size(parts: Iterable[Tensor]) -> int:
    """Bytes of a buffer that holds them all."""
    return sum(map(_aligned, parts))


def _aligned(part: Tensor) -> int:
    return -(-part.nbytes // ALIGNMENT) * ALIGNMENT


def _parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a quantized tensor consists of, or the tensor itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor.detach()]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]


def _rebuilt(tensor: Tensor, parts: Iterator[Tensor]) -> Tensor:
    """The tensor with these parts instead of its own."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return next(parts)
    names, context = tensor.__tensor_flatten__()
    inner = {name: _rebuilt(getattr(tensor, name), parts) for name in names}
    unflatten = type(tensor).__tensor_unflatten__  # type: ignore[attr-defined]  # only quantized tensors have it
    return unflatten(inner, context, tensor.shape, tensor.stride())


def views(buffer: Tensor, parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Where in the buffer's bytes each part has its place."""
    start = 0
    for part in parts:
        yield buffer[start:start + part.nbytes].view(part.dtype).view(part.shape)
        start += _aligned(part)


# ---------------------------------------------------------------- the way to the device

class Transfer:
    """Copies into buffers of a device that has no streams of its own: done when the call returns."""

    def __init__(self, device: torch.device):
        self.device = device

    def event(self) -> Any:  # of the device's own type
        return None

    def staging(self, size: int) -> Tensor | None:
        return None

    def copy(self, parts: list[Tensor], buffer: "DeviceBuffer") -> None:
        for view, part in zip(views(buffer.memory, parts), parts, strict=True):
            view.copy_(part)

    def before_use(self, buffer: "DeviceBuffer") -> None:
        pass

    def after_use(self, buffer: "DeviceBuffer") -> None:
        pass

    def finish(self) -> None:
        pass


class CudaTransfer(Transfer):
    """Copies on a stream of their own, from pinned memory: the weights' own, or the buffer's where they have none."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.backend = torch.get_device_module(device)
        self.stream = self.backend.Stream(device)

    def event(self) -> Any:
        return self.backend.Event()

    def staging(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def copy(self, parts: list[Tensor], buffer: "DeviceBuffer") -> None:
        sources = self._pinned(parts, buffer)
        with self.backend.stream(self.stream):
            self.stream.wait_event(buffer.used)
            for view, source in zip(views(buffer.memory, parts), sources, strict=True):
                view.copy_(source, non_blocking=True)
            buffer.filled.record(self.stream)

    def _pinned(self, parts: list[Tensor], buffer: "DeviceBuffer") -> list[Tensor]:
        """The parts themselves where they are pinned (ComfyUI pins no scales), else copies in pinned memory."""
        pinned = [part.is_pinned() for part in parts]
        if all(pinned):
            return parts
        if buffer.staging is None:
            buffer.staging = self.staging(len(buffer.memory))
        buffer.filled.synchronize()  # the last copy out of it
        return [part if is_pinned else view.copy_(part)
                for part, is_pinned, view in zip(parts, pinned, views(buffer.staging, parts), strict=True)]

    def before_use(self, buffer: "DeviceBuffer") -> None:
        self.backend.current_stream(self.device).wait_event(buffer.filled)

    def after_use(self, buffer: "DeviceBuffer") -> None:
        buffer.used.record(self.backend.current_stream(self.device))

    def finish(self) -> None:
        self.stream.synchronize()


def transfer_for(device: torch.device) -> Transfer:
    return CudaTransfer(device) if device.type in ("cuda", "xpu") else Transfer(device)


class DeviceBuffer:
    """A buffer on the device, and the block that is in it or on its way there."""

    def __init__(self, size: int, transfer: Transfer):
        self.memory = torch.empty(size, dtype=torch.uint8, device=transfer.device)
        self.staging: Tensor | None = None  # pinned, where the weights are not
        self.filled, self.used = transfer.event(), transfer.event()
        self.block: int | None = None
        self.arrival: Future[None] | None = None
        self.holders = 0  # passes that compute with the block
        self.originals: list[Entry] = []
        transfer.after_use(self)  # what had this memory before may still be computing


# ---------------------------------------------------------------- a pass

@dataclass
class Streamer(Generic[Layer]):
    """Gives out the blocks in their order, with the weights of those that stream on the device.

        for block in streamer.iter_blocks(): ...

    Two passes may take turns, as when a prefix is computed anew within every block of its target.
    """

    blocks: Sequence[Layer]
    plan: Plan
    transfer: Transfer
    buffers: list[DeviceBuffer] = field(default_factory=list)
    _worker: ThreadPoolExecutor | None = None
    _weights: Hashable = None
    _generation: int = 0  # counts how often what the buffers hold was forgotten

    def iter_blocks(self) -> Iterator[Layer]:
        for number, block in enumerate(self.blocks):
            if number not in self.plan.streamed:
                yield block
                continue
            buffer, generation = self._enter(number), self._generation
            try:
                yield block
            finally:
                if generation == self._generation:  # else an abandoned pass is closed, whose buffers others have now
                    self._leave(buffer, number)

    def expect(self, weights: Hashable) -> None:
        """Before a pass: what is already under way is of no use if the weights have changed since."""
        if weights != self._weights:
            self._forget()
            self._weights = weights

    def release(self) -> None:
        """Give the buffers back and leave every block with its own weights: after a run, however it ended."""
        self._forget()
        self.buffers = []
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None

    def _enter(self, number: int) -> DeviceBuffer:
        buffer = next((buffer for buffer in self.buffers if buffer.block == number), None) or self._prefetch(number)
        if not buffer.holders:
            self._wait_for(buffer)
            self.transfer.before_use(buffer)
            self._bind(buffer, number)
        buffer.holders += 1
        self._prefetch_next(number)
        return buffer

    def _wait_for(self, buffer: DeviceBuffer) -> None:
        assert buffer.arrival is not None, "its block was asked for"
        try:
            buffer.arrival.result()
        except BaseException:
            buffer.block = None  # or the next pass would be told of this failure again
            raise

    def _leave(self, buffer: DeviceBuffer, number: int) -> None:
        buffer.holders -= 1
        if not buffer.holders:
            self._unbind(buffer)
            self.transfer.after_use(buffer)
            held = (each.block for each in self.buffers if each.holders and each.block is not None)
            self._prefetch_next(max(held, default=number))

    def _prefetch_next(self, number: int) -> None:
        """Start the copy of the block that comes after this one, if a buffer is free."""
        order = sorted(self.plan.streamed)
        following = order[(order.index(number) + 1) % len(order)]
        known = any(buffer.block == following for buffer in self.buffers)
        if not known and any(not buffer.holders for buffer in self.buffers):
            self._prefetch(following)

    def _prefetch(self, number: int) -> DeviceBuffer:
        if not self.buffers:
            size = self.plan.buffers // BUFFERS
            self.buffers = [DeviceBuffer(size, self.transfer) for _ in range(BUFFERS)]
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "weights")
        buffer = next(buffer for buffer in self.buffers if not buffer.holders)
        buffer.block = number
        parts = [part for entry in entries(self.blocks[number]) for part in _parts(entry.parameter)]
        buffer.arrival = self._worker.submit(self._copy, parts, buffer)
        return buffer

    @torch.inference_mode()  # it belongs to a thread; a buffer made in it can be written in it alone
    def _copy(self, parts: list[Tensor], buffer: DeviceBuffer) -> None:
        self.transfer.copy(parts, buffer)

    def _bind(self, buffer: DeviceBuffer, number: int) -> None:
        buffer.originals = entries(self.blocks[number])
        places = views(buffer.memory, [part for entry in buffer.originals for part in _parts(entry.parameter)])
        for module, name, parameter in buffer.originals:
            setattr(module, name, nn.Parameter(_rebuilt(parameter, places), requires_grad=False))

    def _unbind(self, buffer: DeviceBuffer) -> None:
        for module, name, parameter in buffer.originals:
            setattr(module, name, parameter)
        buffer.originals = []

    def _forget(self) -> None:
        self._generation += 1
        wait([buffer.arrival for buffer in self.buffers if buffer.arrival is not None])
        self.transfer.finish()
        for buffer in self.buffers:
            self._unbind(buffer)
            buffer.block, buffer.arrival, buffer.holders = None, None, 0


# ---------------------------------------------------------------- how fast

def copy_rate(transfer: Transfer, size: int = 2**26, repeats: int = 3) -> float:
    """Bytes per second into the device's memory, the best of some copies of `size` bytes: out of pinned memory where
    the device has streams."""
    buffer = DeviceBuffer(size, transfer)
    source = transfer.staging(size)
    parts = [torch.zeros(size, dtype=torch.uint8) if source is None else source]
    seconds = []
    for _ in range(repeats + 1):  # the first one warms up
        begin = time.perf_counter()
        transfer.copy(parts, buffer)
        transfer.finish()
        seconds.append(time.perf_counter() - begin)
    return size / min(seconds[1:])
