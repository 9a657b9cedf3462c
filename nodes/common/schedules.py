"""Presets of sigmas as nodes that sample offer them, and the noise that they start from."""
import re
from collections.abc import Sequence

import torch
from comfy_api.latest import io

from ...messages import Message, Refusal
from ...model.images.sizes import LARGEST_NATIVE
from ...model.qwen_image_1 import schedule as schedule_1
from ...model.qwen_image_2 import schedule as schedule_2
from ...model.runtime.sigmas import PIXELS_PER_TOKEN, tail, truncate_by_denoise
from ..bridge.keys import FAMILY_1
from ..bridge.lora import Loaded, few_step_adapters
from ..frontend import enabled_when
from .guidance import unguided_note

CUSTOM = "Custom"
LORA_PRESETS = schedule_1.LORA_PRESETS | schedule_2.LORA_PRESETS
FEW_STEPS = {*LORA_PRESETS, schedule_2.TURBO_PRESET}
CAPPED_TOKENS = LARGEST_NATIVE ** 2 // PIXELS_PER_TOKEN
PRESETS = [*dict.fromkeys((*schedule_2.PRESETS, *schedule_1.PRESETS)), CUSTOM]


def preset_input() -> io.Combo.Input:
    return io.Combo.Input(
        "preset", PRESETS, default="Quality 40",
        tooltip="The schedule that the weights were trained with, exact for the latent's size. Quality 50, Quality 40 "
                "and Fast 25: base models of either family. Turbo 8: Turbo model of 2.x, or its base model with a LoRA "
                "extracted from Turbo. LoRA presets: base model with that LoRA, those that say 1.x with a model of "
                "Qwen-Image 1.x. Custom: base schedule with the number of steps below.")


def steps_input() -> io.Int.Input:
    return io.Int.Input("steps", default=40, min=1, max=1000, tooltip="Only used with the preset Custom.",
                        extra_dict=enabled_when("preset", CUSTOM))


def cap_shift_input() -> io.Boolean.Input:
    return io.Boolean.Input("cap_shift", default=False, optional=True, advanced=True,
                            tooltip="Above 2048 x 2048 pixels: the shift of 2048 x 2048 instead of the formula's, "
                                    "which spends nearly all steps on noise there (a mu of 3.8 at 4096 x 4096). Off: "
                                    "the exact formula.")


def sigmas_for(model, preset: str, steps: int, denoise: float, samples: torch.Tensor,
               cap_shift: bool = False) -> torch.Tensor:
    """Sigmas (steps + 1,) for latents (B, C, ..., h, w). cap_shift: as if they were no larger than CAPPED_TOKENS."""
    family, tokens = model.model, model.model.tokens(samples)
    if cap_shift:
        tokens = min(tokens, CAPPED_TOKENS)
    if preset == CUSTOM:
        return truncate_by_denoise(lambda n: family.shift.sigmas(n, tokens), steps, denoise)
    if preset not in family.presets:
        raise Refusal("preset_family", "The preset {preset} belongs to the other family of models; {file} is a "
                      "Qwen-Image {family} model. Choose {known} or {custom}.", preset=preset, file=family.label,
                      family=family.family, known=list(family.presets), custom=CUSTOM)
    return tail(family.presets[preset](tokens), denoise)


def variant_warning(model, preset: str) -> str | None:
    """What to tell when the schedule is not the one that the weights, or the few-step adapters on them, were made
    for."""
    variant, adapters = getattr(model.model, "variant", None), few_step_adapters(model)
    if variant == "turbo" and adapters:
        return Message("adapter_on_turbo", "{lora} makes the base model fast, but {file} is a Turbo model: together "
                       "they burn the image. Load the base model, or remove the LoRA.", lora=adapters[-1].label,
                       file=model.model.label)
    if variant == "turbo" and preset != schedule_2.TURBO_PRESET:
        return Message("turbo_preset", "This is a Turbo model: the preset {preset} gives muddy images. Choose Turbo 8.",
                       preset=preset)
    if adapters:
        return adapter_warning(adapters, preset)
    if variant == "base" and preset == schedule_2.TURBO_PRESET and model.patches:
        return Message("turbo_without_lora", "On a base model Turbo 8 needs a LoRA that was extracted from Turbo, and "
                       "by their names none of the LoRAs here is one: images may stay unfinished. Choose Quality 40 or "
                       "Fast 25.")
    if variant == "base" and preset == schedule_2.TURBO_PRESET:
        return Message("base_preset", "This is a base model: Turbo 8 leaves its images unfinished. Choose Quality 40 "
                       "or Fast 25. (If the file is a renamed Turbo model, set Base or Turbo to turbo on the loader.)")
    if preset in LORA_PRESETS and not model.patches and not baked_in(model):
        return Message("preset_without_lora", "The preset {preset} is for a LoRA, but none is loaded: images stay "
                       "unfinished. Add Load LoRA with it, or choose {known}.", preset=preset,
                       known=[name for name in model.model.presets if name not in FEW_STEPS])
    return None


def adapter_warning(adapters: Sequence[Loaded], preset: str) -> str | None:
    """What to tell when the few-step adapters were trained with other sigmas than the preset's, or with others than
    each other."""
    presets = [one.kind.presets for one in adapters]
    fitting = [name for name in presets[0] if all(name in others for others in presets)]
    if len(adapters) > 1 and not fitting:
        return Message("adapters_contradict", "{lora} are few-step LoRAs with schedules of their own: together they "
                       "burn the image. Keep one.", lora=[one.label for one in adapters])
    if preset == CUSTOM or not fitting or preset in fitting:
        return None
    return Message("adapter_preset", "{lora} was trained for the preset {known}: with {preset} images stay unfinished "
                   "or burn. Choose {known}.", lora=adapters[-1].label, known=fitting, preset=preset)


def baked_in(model) -> bool:
    """Whether the file may hold a few-step LoRA already, by its name: only that says so."""
    return bool(re.search("lightning|turbo|rapid|lcm|step|distill|viggle|pruna", model.model.label.lower()))


def guidance_note(model, preset: str, cfg: float) -> str | None:
    """A model of 1.x with a CFG that it was not made for: possible, and told."""
    if model.model.family != FAMILY_1:
        return None
    if preset in schedule_1.LORA_PRESETS and cfg > 1:
        return Message("cfg_of_lora", "{preset} is made for CFG 1, but CFG is {cfg}: colours burn and each step takes "
                       "twice as long. Set CFG to 1.", preset=preset, cfg=f"{cfg:g}")
    if preset not in schedule_1.LORA_PRESETS and cfg == 1:
        return unguided_note()
    return None


def noise_for(latent: dict, seed: int) -> torch.Tensor:
    """Noise like the samples; image k is drawn with seed + k, so it equals the single image of that seed."""
    samples = latent["samples"]
    numbers = latent.get("batch_index") or range(len(samples))
    seeds = [(seed + number) % 2**64 for number in numbers]
    return torch.cat([torch.randn((1, *samples.shape[1:]), generator=torch.Generator().manual_seed(seed))
                      for seed in seeds])
