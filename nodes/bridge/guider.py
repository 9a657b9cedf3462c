"""What samples: ComfyUI's CFGGuider with the prompts that are computed, and its Euler."""
from collections.abc import Callable

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import latent_preview
from torch import Tensor

from .keys import REPORT_KEY


def guider_for(model, positive, negative, cfg: float,
               report: Callable[[str], None] | None = None) -> comfy.samplers.CFGGuider:
    """What ComfyUI samples with; at cfg 1 with the positive alone, as its own BasicGuider.

    report: takes the sentences that a run tells, which are logged otherwise. It stands in the guider's own options. A
    clone of the MODEL would do as well, but ComfyUI's clones share what they have pinned, and one that ends unpins all
    of it: gigabytes would be page-locked anew in every run.

    ComfyUI makes room for the prefix of each prompt that a guider holds, though at cfg 1 it computes only the positive:
    unless another node asks for both (disable_cfg1_optimization), as those do that replace the guidance.
    """
    guider = comfy.samplers.CFGGuider(model)
    conds = {"positive": positive}
    if cfg > 1 or model.model_options.get("disable_cfg1_optimization"):
        conds["negative"] = positive if negative is None else negative
    guider.inner_set_conds(conds)
    guider.set_cfg(cfg)
    if report is not None:
        guider.model_options = comfy.model_patcher.create_model_options_clone(model.model_options)
        guider.model_options["transformer_options"][REPORT_KEY] = report
    return guider


def sample(guider: comfy.samplers.CFGGuider, latent: dict, noise: Tensor, sigmas: Tensor, seed: int) -> Tensor:
    """Samples (B, C, h, w) of a LATENT after all sigmas (steps + 1,), with ComfyUI's preview and bar."""
    samples = guider.sample(
        noise, latent["samples"], comfy.samplers.sampler_object("euler"), sigmas,
        denoise_mask=latent.get("noise_mask"), seed=seed,
        callback=latent_preview.prepare_callback(guider.model_patcher, len(sigmas) - 1))
    management = comfy.model_management
    return samples.to(management.intermediate_device(), management.intermediate_dtype())
