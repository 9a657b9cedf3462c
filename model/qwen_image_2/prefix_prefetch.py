"""Keys and values of a prefix that lie in RAM, and visit the device in turn.

While one block computes, the next one's keys and values are under way: into the other of two buffers, on a stream of
their own where the device has one (offload.py has the same for weights).
"""
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..runtime.offload import BUFFERS, DeviceBuffer, Transfer, buffer_size, views
from .prefix_cache import PrefixCache


@dataclass
class PrefetchedPrefix(PrefixCache):
    """Copies are under way while a block computes only if the layers lie in pinned memory.

    release() before the layers' memory is given back: copies out of it may be under way.
    """

    transfer: Transfer = field(default_factory=lambda: Transfer(torch.device("cpu")))
    _buffers: list[DeviceBuffer] = field(default_factory=list)
    _reading: DeviceBuffer | None = None  # with what the block at hand reads

    def layer(self, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """One block's keys and values, valid until the next call. Asked for in their order, only the first waits."""
        if self._reading is not None:
            self.transfer.after_use(self._reading)
        self._reading = self._prefetch(number)
        self.transfer.before_use(self._reading)
        self._prefetch((number + 1) % len(self.layers))  # after the last block the first, of the next step
        keys, values = views(self._reading.memory, self.layers[number])
        return keys, values

    def release(self) -> None:
        """End the copies that are under way, and give the buffers back."""
        self.transfer.finish()
        self._buffers, self._reading = [], None

    def _prefetch(self, number: int) -> DeviceBuffer:
        """The buffer with a block's keys and values, or to which they are on their way."""
        if not self._buffers:
            size = max(map(buffer_size, self.layers))
            self._buffers = [DeviceBuffer(size, self.transfer) for _ in range(BUFFERS)]
        buffer = next((buffer for buffer in self._buffers if buffer.block == number), None)
        if buffer is None:
            buffer = next(buffer for buffer in self._buffers if buffer is not self._reading)
            buffer.block = None  # until the copy has been asked for
            self.transfer.copy(list(self.layers[number]), buffer)
            buffer.block = number
        return buffer
