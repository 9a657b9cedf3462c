"""Sigmas of Qwen-Image 2.x: flow matching, sigma 1 is noise and 0 is the image.

Sources: scheduler_config.json of Qwen-Image-2.1 (base); the Turbo checkpoint's sample_sigmas; model cards of the
few-step LoRAs (lightx2v/Qwen-Image-2.1-Lightning, Viggle/Qwen-Image-2.1-viggle-turbo, PrunaAI/P-Q-Image-2.1 and
t8star/Pruna-Qwen-Image-2.1-Comfy, Comfy-Org/Qwen-Image-2.1 and nynxz/Qwen-Image-2.1 for the extracted Turbo).
"""
from collections.abc import Callable, Iterator

from torch import Tensor

from ..checkpoints.few_step import FewStep
from ..runtime.sigmas import DynamicShift, linear_times, with_zero

# scheduler_config.json
SHIFT = DynamicShift(base_shift=0.5, max_shift=0.9, base_tokens=256, max_tokens=8192, terminal=0.02)

TURBO_SIGMAS = (1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568)


def turbo_sigmas() -> Tensor:
    """The Turbo checkpoint's 8 steps, the same at every size."""
    return with_zero(TURBO_SIGMAS)


# Name -> sigmas for a target of so many tokens. The LoRAs run on the base model. Lightning (evenly spaced times) and
# Viggle (its own) were trained with the shift alone.
PRESETS: dict[str, Callable[[int], Tensor]] = {
    "Quality 40": lambda tokens: SHIFT.sigmas(40, tokens),
    "Quality 50": lambda tokens: SHIFT.sigmas(50, tokens),
    "Fast 25": lambda tokens: SHIFT.sigmas(25, tokens),
    "Turbo 8": lambda tokens: turbo_sigmas(),
    "Lightning LoRA 4": lambda tokens: SHIFT.unstretched(linear_times(4), tokens),
    "Viggle LoRA 4": lambda tokens: SHIFT.unstretched(linear_times(4), tokens),
    "Viggle LoRA 6": lambda tokens: SHIFT.unstretched((1, 0.9375, 0.875, 0.75, 0.5, 0.25), tokens),
    "Pruna LoRA 5": lambda tokens: with_zero((1, 0.94, 6 / 7, 2 / 3, 0.4)),
    "Pruna LoRA 8": lambda tokens: with_zero((1, 14 / 15, 6 / 7, 10 / 13, 2 / 3, 6 / 11, 0.4, 2 / 9)),
}
TURBO_PRESET = "Turbo 8"
LORA_PRESETS = frozenset(name for name in PRESETS if "LoRA" in name)


def _pruna() -> Iterator[FewStep]:
    """v0.1 was trained with an alpha of 128 that its files leave out; the publisher's files for ComfyUI need none. Its
    repository has had several names. The sigmas of v0.2, six steps, are not published."""
    for name in ("p qwen image", "p q image", "pruna"):
        for steps in (5, 8):
            yield FewStep((name, "comfy"), steps, (f"Pruna LoRA {steps}",))
            yield FewStep((name,), steps, (f"Pruna LoRA {steps}",), alpha=128)
        yield FewStep((name,), 6, ())
        yield FewStep((name,), None, ("Pruna LoRA 5", "Pruna LoRA 8"))


# The few-step LoRAs, the most telling names first. Viggle's hybrid ends on the base model, which no preset does.
FEW_STEP: tuple[FewStep, ...] = (
    *(FewStep(("viggle", "hybrid"), steps, ()) for steps in (None, 9)),
    FewStep(("viggle",), 4, ("Viggle LoRA 4",)),
    FewStep(("viggle",), 6, ("Viggle LoRA 6",)),
    FewStep(("viggle",), None, ("Viggle LoRA 4", "Viggle LoRA 6")),
    *_pruna(),
    FewStep(("lightning",), 4, ("Lightning LoRA 4",)),
    FewStep(("qwen image", "lightning"), None, ("Lightning LoRA 4",)),
    *(FewStep(("turbo lora",), steps, (TURBO_PRESET,)) for steps in (None, 8)),  # the Turbo model's difference
)
