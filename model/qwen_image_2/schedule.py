"""Sigmas of Qwen-Image 2.x: flow matching, sigma 1 is noise and 0 is the image.

Sources: scheduler_config.json of Qwen-Image-2.1 with diffusers 0.42.1, FlowMatchEulerDiscreteScheduler (base);
the Turbo checkpoint's sample_sigmas; model cards of the few-step LoRAs (lightx2v Lightning, Viggle, Pruna).
"""
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...messages import Refusal

PIXELS_PER_TOKEN = 16 * 16

# scheduler_config.json: the shift grows linearly with the number of target tokens.
BASE_TOKENS, MAX_TOKENS = 256, 8192
BASE_SHIFT, MAX_SHIFT = 0.5, 0.9
TERMINAL_SIGMA = 0.02

TURBO_SIGMAS = (1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568)


def compute_mu(tokens: int) -> float:
    """mu for a target of `tokens` latents (width/16 * height/16)."""
    return BASE_SHIFT + (MAX_SHIFT - BASE_SHIFT) * (tokens - BASE_TOKENS) / (MAX_TOKENS - BASE_TOKENS)


def shifted(t: Tensor, mu: float) -> Tensor:
    """Move unshifted times t in (0, 1] towards noise."""
    return math.exp(mu) / (math.exp(mu) + (1 / t - 1))


def stretched(sigmas: Tensor) -> Tensor:
    """Stretch a falling schedule from 1 so that it ends at TERMINAL_SIGMA."""
    return 1 - (1 - sigmas) * (1 - TERMINAL_SIGMA) / (1 - sigmas[-1])


def with_zero(sigmas: Tensor | Sequence[float]) -> Tensor:
    """The last step goes to the image itself; float32 (steps + 1,)."""
    falling = torch.as_tensor(sigmas, dtype=torch.float64)
    return torch.cat([falling, falling.new_zeros(1)]).float()


def linear_times(steps: int) -> Tensor:
    if steps < 1:
        raise Refusal("steps_min", "Steps must be at least 1, got {steps}.", steps=steps)
    return torch.linspace(1, 1 / steps, steps, dtype=torch.float64)


def base_sigmas(steps: int, tokens: int) -> Tensor:
    """The official schedule of the base model: shift by size, then stretch to the terminal sigma."""
    sigmas = shifted(linear_times(steps), compute_mu(tokens))
    # A single step has nothing to stretch (and the reference divides 0 by 0 there).
    return with_zero(stretched(sigmas) if steps > 1 else sigmas)


def turbo_sigmas() -> Tensor:
    """The Turbo checkpoint's 8 steps, the same at every size."""
    return with_zero(TURBO_SIGMAS)


def shifted_sigmas(times: Tensor | Sequence[float], tokens: int) -> Tensor:
    """Shift by size without the stretch, as Lightning (evenly spaced times) and Viggle (its own) were trained."""
    return with_zero(shifted(torch.as_tensor(times, dtype=torch.float64), compute_mu(tokens)))


# Name -> sigmas for a target of so many tokens. The LoRAs run on the base model.
PRESETS: dict[str, Callable[[int], Tensor]] = {
    "Quality 40": lambda tokens: base_sigmas(40, tokens),
    "Fast 25": lambda tokens: base_sigmas(25, tokens),
    "Turbo 8": lambda tokens: turbo_sigmas(),
    "Lightning LoRA 4": lambda tokens: shifted_sigmas(linear_times(4), tokens),
    "Viggle LoRA 4": lambda tokens: shifted_sigmas(linear_times(4), tokens),
    "Viggle LoRA 6": lambda tokens: shifted_sigmas((1, 0.9375, 0.875, 0.75, 0.5, 0.25), tokens),
    "Pruna LoRA 5": lambda tokens: with_zero((1, 0.94, 6 / 7, 2 / 3, 0.4)),
    "Pruna LoRA 8": lambda tokens: with_zero((1, 14 / 15, 6 / 7, 10 / 13, 2 / 3, 6 / 11, 0.4, 2 / 9)),
}
TURBO_PRESET = "Turbo 8"


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
