"""Keys and values of a prefix that lie in RAM, and visit the device in turn.

While one block computes, the next one's keys and values are under way: into the other of two buffers, on a stream of
their own where the device has one (streaming.py has the same for weights).
"""
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..runtime.offload import BUFFERS, Lane, Slot, buffer_size, views
from .prefix_cache import PrefixCache


@dataclass
class PrefetchedPrefix(PrefixCache):
    """Copies are under way while a block computes only if the layers lie in pinned memory.

    release() before the layers' memory is given back: copies out of it may be under way.
    """

    lane: Lane = field(default_factory=lambda: Lane(torch.device("cpu")))
    _slots: list[Slot] = field(default_factory=list)
    _reading: Slot | None = None  # with what the block at hand reads

    def layer(self, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """One block's keys and values, valid until the next call. Asked for in their order, only the first waits."""
        if self._reading is not None:
            self.lane.after_use(self._reading)
        self._reading = self._bring(number)
        self.lane.before_use(self._reading)
        self._bring((number + 1) % len(self.layers))  # after the last block the first, of the next step
        keys, values = views(self._reading.buffer, self.layers[number])
        return keys, values

    def release(self) -> None:
        """End the copies that are under way, and give the buffers back."""
        self.lane.finish()
        self._slots, self._reading = [], None

    def _bring(self, number: int) -> Slot:
        """The buffer with a block's keys and values, or to which they are on their way."""
        if not self._slots:
            size = max(map(buffer_size, self.layers))
            self._slots = [Slot(size, self.lane) for _ in range(BUFFERS)]
        slot = next((slot for slot in self._slots if slot.block == number), None)
        if slot is None:
            slot = next(slot for slot in self._slots if slot is not self._reading)
            slot.block = None  # until the copy has been asked for
            self.lane.copy(list(self.layers[number]), slot)
            slot.block = number
        return slot
