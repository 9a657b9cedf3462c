"""CFG, and what is told of it and of a model's sampling, where a node samples."""
import comfy.model_sampling
import torch
from comfy_api.latest import io

from ...messages import Message, Refusal

TRAINED, PLAIN = "as trained", "plain"
MAX_CFG = 30.0


def guidance_input(tooltip: str) -> io.Combo.Input:
    return io.Combo.Input("guidance", [TRAINED, PLAIN], default=TRAINED, optional=True, advanced=True, tooltip=tooltip)


def check_guidance(cfg: float, negative: bool) -> None:
    """negative: whether a negative prompt is connected."""
    if not 1 <= cfg <= MAX_CFG:
        raise Refusal("cfg_range", "CFG must be between 1 and {max}, got {cfg}.", cfg=str(cfg), max=f"{MAX_CFG:g}")
    if cfg > 1 and not negative:
        raise Refusal("cfg_negative", "CFG is {cfg}, but no negative prompt is connected. Connect one, or set CFG "
                      "to 1.", cfg=str(cfg))


def window_inputs() -> list[io.Input]:
    """The shares of the steps between which CFG above 1 is in force."""
    share = {"min": 0.0, "max": 1.0, "step": 0.01, "optional": True, "advanced": True}
    return [io.Float.Input("cfg_start", default=0.0, tooltip="Share of the steps at which CFG begins. Before it a step "
                                                             "is one pass, as with CFG 1.", **share),
            io.Float.Input("cfg_end", default=1.0, tooltip="Share of the steps at which CFG ends: 0.25 of 40 steps "
                                                           "guides the first ten. After it a step is one pass, as with "
                                                           "CFG 1, and takes half as long.", **share)]


def check_window(start: float | None, end: float | None) -> None:
    """None is what is linked."""
    if None not in (start, end) and not 0 <= start < end <= 1:
        raise Refusal("cfg_window", "CFG starts at {start} and ends at {end} of the steps: the start must be below the "
                      "end, both between 0 and 1.", start=str(start), end=str(end))


def guided_steps(start: float, end: float, steps: int) -> range:
    """The steps (of so many, from 0 on) between two shares of them. Two windows that meet share none and miss none."""
    return range(round(start * steps), round(end * steps))


def window_note(cfg: float, guided: range, steps: int) -> Message | None:
    """What a window makes of a run; nothing where all steps are guided, or none was to be."""
    if cfg == 1 or len(guided) == steps:
        return None
    if not guided:
        return Message("cfg_window_empty", "CFG is {cfg}, but its window is narrower than one of {steps} steps: "
                       "nothing is guided. Set CFG start and CFG end further apart.", cfg=f"{cfg:g}", steps=steps)
    return Message("cfg_window_steps", "CFG {cfg} guides steps {first} to {last} of {steps}; the others are one pass "
                   "each.", cfg=f"{cfg:g}", first=guided.start + 1, last=guided.stop, steps=steps)


def unguided_note() -> Message:
    return Message("cfg_of_base", "CFG is 1. Base models of Qwen-Image 1.x are made for CFG 4 with a negative "
                   "prompt; without it images stay flat. (Models with few-step weights inside, such as Rapid-AIO, "
                   "run at CFG 1 with a LoRA preset.)")


def shift_note(model) -> str | None:
    """What another node has done to the model's sampling, such as core's ModelSamplingAuraFlow: told."""
    changed = model.object_patches.get("model_sampling")
    if changed is None:
        return None
    half = torch.tensor([0.5])
    if isinstance(changed, comfy.model_sampling.CONST) and torch.equal(changed.timestep(half), half):
        return Message("shift_unused", "Another node (such as ModelSamplingAuraFlow) sets the model's shift. It has no "
                       "effect here: the sigmas follow preset and size. Remove that node, or sample with core's "
                       "KSampler.")
    return Message("sampling_changed", "Another node (such as ModelSamplingSD3) sets a sampling type that Qwen-Image 2 "
                   "does not support: images would be noise. Remove that node.")
