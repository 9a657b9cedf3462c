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
