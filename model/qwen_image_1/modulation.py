"""What sigma does to the blocks of Qwen-Image 1.x: shifts, scales and gates, evaluated once per sigma.

Each block has two matrices for it, together a third of all weights (6.8 of 20.4 billion), and what they give depends on
sigma alone: 4.4 MB in bf16. So they are kept apart from the network (runtime/apart.py), which needs them on no device:
each is brought there once for all sigmas of a run, and the rows that they give wait in RAM.
"""
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PARTS = 6  # shift, scale and gate before attention, and the same before the MLP
MOST_KEPT = 256  # sigmas: 1.1 GB of RAM at the published size, in bf16
IN_USE = 2


class Modulation(NamedTuple):
    """Of one block's stream, each of (B or 1, 1, D)."""

    shift_attn: Tensor
    scale_attn: Tensor
    gate_attn: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor


class Rows:
    """The modulation of all blocks for a batch, on its device: (layers, 2, 6, B or 1, D)."""

    def __init__(self, values: Tensor):
        self.values = values

    def image(self, layer: int) -> Modulation:
        return Modulation(*self.values[layer, 0].unsqueeze(2))

    def text(self, layer: int) -> Modulation:
        return Modulation(*self.values[layer, 1].unsqueeze(2))


class ModulationTable:
    """Sigma -> the modulation of all blocks, (layers, 2, 6, D) in RAM.

    evaluate(sigmas, device, dtype) -> (layers, 2, 6, sigmas, D) is asked for what is missing.
    """

    def __init__(self, evaluate: Callable[[Sequence[float], torch.device, torch.dtype], Tensor]):
        self._evaluate = evaluate
        self._key: Hashable = None
        self._expected: tuple[float, ...] = ()
        self._kept: dict[float, Tensor] = {}
        self._in_use: dict[Hashable, Rows] = {}  # on the device: of this step, and those of sigma 0

    def begin(self, key: Hashable, expected: Iterable[float] = ()) -> None:
        """What it holds is dropped where the key is another one: the state of the weights. expected: sigmas that will
        be asked for, and are evaluated together with the first of them."""
        if key != self._key:
            self.clear()
        self._key, self._expected = key, tuple(expected)

    def clear(self) -> None:
        self._kept.clear()
        self._in_use.clear()

    def rows(self, sigmas: Sequence[float], device: torch.device, dtype: torch.dtype) -> Rows:
        """For a batch with these sigmas; one row where they are all the same."""
        wanted = tuple(sigmas) if len(set(sigmas)) > 1 else tuple(sigmas[:1])
        place = (wanted, device, dtype)
        rows = self._in_use.pop(place, None) or self._brought(wanted, device, dtype)
        self._in_use = dict([*self._in_use.items(), (place, rows)][-IN_USE:])
        return rows

    def _brought(self, wanted: Sequence[float], device: torch.device, dtype: torch.dtype) -> Rows:
        if any(kept.dtype != dtype for kept in self._kept.values()):
            self._kept.clear()
        if not self._kept.keys() >= set(wanted):
            self._evaluate_more(wanted, device, dtype)
        return Rows(torch.stack([self._kept[sigma] for sigma in wanted], dim=3).to(device, non_blocking=True))

    def _evaluate_more(self, wanted: Sequence[float], device: torch.device, dtype: torch.dtype) -> None:
        asked = list(dict.fromkeys((*wanted, *self._expected)))
        if len(self._kept.keys() | set(asked)) > MOST_KEPT:
            self._kept.clear()
            asked = asked[:max(MOST_KEPT, len(set(wanted)))]
        together = [sigma for sigma in asked if sigma not in self._kept]
        values = self._evaluate(together, device, dtype)
        self._kept |= {sigma: values[:, :, :, number].contiguous() for number, sigma in enumerate(together)}
