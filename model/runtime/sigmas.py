"""Formulas of sigma schedules: flow matching, sigma 1 is noise and 0 is the image. Families keep presets and constants.

Source: diffusers 0.42.1, FlowMatchEulerDiscreteScheduler with dynamic, exponential shifting.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...messages import Refusal

PIXELS_PER_TOKEN = 16 * 16


@dataclass(frozen=True)
class DynamicShift:
    """A shift towards noise that grows linearly with the number of target tokens (scheduler_config.json)."""

    base_shift: float
    max_shift: float
    base_tokens: int
    max_tokens: int
    terminal: float  # the last sigma before 0: a schedule is stretched to end there

    def mu(self, tokens: int) -> float:
        """tokens: of the target, an area of 16 x 16 pixels each."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return self.base_shift + slope * (tokens - self.base_tokens)

    def sigmas(self, steps: int, tokens: int) -> Tensor:
        """The official schedule of a base model (steps + 1,): shift by size, then stretch to the terminal sigma."""
        return self.ending(shifted(linear_times(steps), self.mu(tokens)))

    def ending(self, sigmas: Tensor) -> Tensor:
        """Shifted times, stretched to the terminal sigma, and 0."""
        # A single step has nothing to stretch (and the reference divides 0 by 0 there).
        return with_zero(stretched(sigmas, self.terminal) if len(sigmas) > 1 else sigmas)

    def unstretched(self, times: Tensor | Sequence[float], tokens: int) -> Tensor:
        """These times shifted by size (times + 1,), without the stretch."""
        return with_zero(shifted(torch.as_tensor(times, dtype=torch.float64), self.mu(tokens)))


def shifted(t: Tensor, mu: float) -> Tensor:
    """Move unshifted times t in (0, 1] towards noise."""
    return math.exp(mu) / (math.exp(mu) + (1 / t - 1))


def stretched(sigmas: Tensor, terminal: float) -> Tensor:
    """Stretch a falling schedule from 1 so that it ends at `terminal`."""
    return 1 - (1 - sigmas) * (1 - terminal) / (1 - sigmas[-1])


def with_zero(sigmas: Tensor | Sequence[float]) -> Tensor:
    """The last step goes to the image itself; float32 (steps + 1,)."""
    falling = torch.as_tensor(sigmas, dtype=torch.float64)
    return torch.cat([falling, falling.new_zeros(1)]).float()


def linear_times(steps: int) -> Tensor:
    if steps < 1:
        raise Refusal("steps_min", "Steps must be at least 1, got {steps}.", steps=steps)
    return torch.linspace(1, 1 / steps, steps, dtype=torch.float64)


def _check_denoise(denoise: float) -> None:
    if not 0 < denoise <= 1:
        raise Refusal("denoise_range", "denoise must be above 0 and at most 1, got {denoise}.", denoise=str(denoise))


def truncate_by_denoise(sigmas_for: Callable[[int], Tensor], steps: int, denoise: float) -> Tensor:
    """The last `steps` steps of a schedule that would take steps / denoise: image-to-image keeps 1 - denoise.

    sigmas_for(n) gives the n-step schedule. denoise in (0, 1].
    """
    _check_denoise(denoise)
    return sigmas_for(int(steps / denoise))[-(steps + 1):]


def tail(sigmas: Tensor, denoise: float) -> Tensor:
    """The end of a schedule of fixed length that covers about `denoise` of its steps, at least one."""
    _check_denoise(denoise)
    return sigmas[-(max(1, round((len(sigmas) - 1) * denoise)) + 1):]


def beginning_at(sigmas: Tensor, start: float) -> Tensor:
    """The part of a schedule below a sigma, begun there: image-to-image whose strength does not depend on the size."""
    return torch.cat([sigmas.new_tensor([start]), sigmas[sigmas < start]])
