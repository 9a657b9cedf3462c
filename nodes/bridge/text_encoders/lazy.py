"""CONDITIONING that is encoded when somebody reads it."""
from collections.abc import Callable, Sequence

import node_helpers
from torch import Tensor

from ..keys import CENTRED_KEY


class LazyConditioning(Sequence):
    """The list that `encode` makes, made when it is first read.

    At CFG 1, the default, nobody reads the negative prompt, and encoding it takes as long as the positive one.
    ComfyUI's nodes read it as the list that it stands for; sums and copies of it are plain lists. Where encoding fails
    or is interrupted, the next reader begins anew.
    """

    def __init__(self, encode: Callable[[], list]):
        self._encode: Callable[[], list] | None = encode
        self._encoded: list = []

    def _read(self) -> list:
        if self._encode is not None:
            self._encoded = self._encode()
            self._encode = None  # with all that it holds: the CLIP, and what the vision tower has seen
        return self._encoded

    @property
    def is_encoded(self) -> bool:
        return self._encode is None

    def __getitem__(self, index):
        return self._read()[index]

    def __len__(self) -> int:
        return len(self._read())

    def __add__(self, other: Sequence) -> list:
        return [*self, *other]

    def __radd__(self, other: Sequence) -> list:
        return [*other, *self]

    def copy(self) -> list:
        return list(self)

    def __reduce__(self):
        return list, (self._read(),)


def with_references(conditioning: Sequence, latents: Sequence[Tensor], centred: bool = False) -> LazyConditioning:
    """The conditioning with references, latents (1, C, ..., h, w) as VAEs give them. centred: see Condition of 2.x."""
    values = {"reference_latents": list(latents), **({CENTRED_KEY: True} if centred else {})}
    return LazyConditioning(lambda: node_helpers.conditioning_set_values(conditioning, values))
