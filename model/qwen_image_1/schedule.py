"""Sigmas of Qwen-Image 1.x: flow matching, sigma 1 is noise and 0 is the image.

Sources: scheduler_config.json of Qwen-Image and Qwen-Image-Edit (base); the scripts of the few-step LoRAs (lightx2v
Lightning, Wuli Turbo), which fix the shift at 3 and do not stretch.
"""
import math
from collections.abc import Callable

from torch import Tensor

from ..checkpoints.few_step import FewStep
from ..runtime.sigmas import DynamicShift, linear_times, shifted, with_zero

SHIFT = DynamicShift(base_shift=0.5, max_shift=0.9, base_tokens=256, max_tokens=8192, terminal=0.02)
LORA_SHIFT = 3.0


def lora_sigmas(steps: int) -> Tensor:
    """Of a few-step LoRA (steps + 1,), the same at every size."""
    return with_zero(shifted(linear_times(steps), math.log(LORA_SHIFT)))


def layered_sigmas(steps: int, condition_tokens: int) -> Tensor:
    """Of Layered (steps + 1,): the shift grows with the root of the tokens of the picture that is taken apart.

    Its times begin at 1 and end one step before 0, and it is stretched as the base schedule is.
    """
    return SHIFT.ending(shifted(linear_times(steps), math.sqrt(condition_tokens / 256)))


# Name -> sigmas for a target of so many tokens. Edit-2509 and 2511 were published with 40 steps, the others with 50.
# The LoRAs run on the base models.
PRESETS: dict[str, Callable[[int], Tensor]] = {
    "Quality 50": lambda tokens: SHIFT.sigmas(50, tokens),
    "Quality 40": lambda tokens: SHIFT.sigmas(40, tokens),
    "Fast 25": lambda tokens: SHIFT.sigmas(25, tokens),
    "Lightning LoRA 4 (1.x)": lambda tokens: lora_sigmas(4),
    "Lightning LoRA 8 (1.x)": lambda tokens: lora_sigmas(8),
    "Turbo LoRA 2 (1.x)": lambda tokens: lora_sigmas(2),
    "Turbo LoRA 4 (1.x)": lambda tokens: lora_sigmas(4),
}
LORA_PRESETS = frozenset(name for name in PRESETS if "LoRA" in name)

# The few-step LoRAs by their publishers' names: lightx2v's for all models of the family, and Wuli's.
FEW_STEP: tuple[FewStep, ...] = (
    *(FewStep(("lightning",), steps, (f"Lightning LoRA {steps} (1.x)",)) for steps in (4, 8)),
    FewStep(("qwen image", "lightning"), None, ("Lightning LoRA 4 (1.x)", "Lightning LoRA 8 (1.x)")),
    *(FewStep(("turbo lora",), steps, (f"Turbo LoRA {steps} (1.x)",)) for steps in (2, 4)),
    FewStep(("turbo lora",), None, ("Turbo LoRA 2 (1.x)", "Turbo LoRA 4 (1.x)")),
)
