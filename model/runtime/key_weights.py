"""How much of the attention single keys get: what a reference's strength and mask are to the network.

A key of weight w counts w times in the softmax: w * exp(q k) instead of exp(q k), which is log(w) added to its logits.
That sum is not how it is computed, because a mask of numbers turns the fastest kernels off. Keys of weight 0 are left
out, and where others than 0 and 1 occur the same attention runs twice, over values that were multiplied by the
weights and over the weights themselves: numerator and denominator of the weighted softmax, up to one factor that
cancels. So any attention computes it, in its own precision, and keys of weight 1 alone cost nothing.

Shapes: B batch, Q query tokens, K key tokens, K' those that count, H heads, C channels of a head.
"""
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class KeyWeights(NamedTuple):
    """kept: which keys count (K',), in their order; None: all. factors: their weights (K',); None: all are 1."""

    kept: Tensor | None = None
    factors: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether all keys count as trained."""
        return self.kept is None and self.factors is None

    def choose(self, tokens: Tensor) -> Tensor:
        """Of keys or values (B, K, ...) those that count (B, K', ...)."""
        return tokens if self.kept is None else tokens.index_select(1, self.kept)

    def followed_by(self, count: int) -> "KeyWeights":
        """The weights with so many keys of weight 1 after them, which were not among those to choose from."""
        return self if self.factors is None else KeyWeights(self.kept, F.pad(self.factors, (0, count), value=1.0))

    def to(self, device: torch.device) -> "KeyWeights":
        return KeyWeights(*(each if each is None else each.to(device) for each in self))


PLAIN = KeyWeights()


def key_weights(weights: Tensor) -> KeyWeights:
    """weights (K,) on the CPU, 0 or more each."""
    kept = weights.nonzero().flatten()
    factors = weights[kept]
    return KeyWeights(None if len(kept) == len(weights) else kept, None if bool((factors == 1).all()) else factors)


def weighted_attention(attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor,
                       factors: Tensor | None) -> Tensor:
    """attention(q, k, v) with weights for the keys: q (B, Q, H, C), k, v (B, K', H, C) -> (B, Q, H * C)."""
    if factors is None:
        return attention(q, k, v)
    weights = factors.to(v)[:, None, None]  # (K', 1, 1)
    return attention(q, k, v * weights) / attention(q, k, weights.expand_as(v).contiguous())


@dataclass(frozen=True)
class ReferenceWeight:
    """How much of a reference is looked at. strength: from 0 on, 1 as trained; mask: (h, w) in [0, 1], 1 is looked at;
    None: all of it."""

    strength: float = 1.0
    mask: Tensor | None = None

    def of_tokens(self, grid: tuple[int, int]) -> Tensor:
        """Weights (h * w,) of a reference of so many tokens, row by row. A mask's value is the mean of its cell; what
        scaling leaves of white and black is neither."""
        if self.mask is None:
            return torch.full((grid[0] * grid[1],), self.strength)
        cells = F.interpolate(self.mask[None, None].float().cpu(), grid, mode="area").flatten()
        cells = torch.where(cells < FAINTEST, 0.0, torch.where(cells > 1 - FAINTEST, 1.0, cells))
        return self.strength * cells


FAINTEST = 8 / 255  # as a mask of an edit has it (images/regions.py)
AS_TRAINED = ReferenceWeight()
