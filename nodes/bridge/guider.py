"""What samples: ComfyUI's CFGGuider with the prompts that are computed, and its Euler."""
import math
from collections.abc import Callable, Mapping

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import latent_preview
from torch import Tensor

from ...model.qwen_image_1.spec import TransformerSpec
from .keys import REPORT_KEY

PATCH = TransformerSpec().patch


class WindowGuider(comfy.samplers.CFGGuider):
    """Guides some steps only; the others are computed as at CFG 1, so that no second pass runs in them, unless another
    node asks for both at CFG 1, too."""

    def set_window(self, sigmas: Tensor, guided: range) -> None:
        """sigmas (steps + 1,), falling; guided: the steps, from 0 on. The ends lie half-way to the next sigma: which
        step a sigma belongs to does not hang on its last bit."""
        ends = [math.inf, *((sigmas[:-1] + sigmas[1:]) / 2).tolist()]
        ends[-1] = -math.inf  # whatever is computed after the last step's start belongs to it
        self.above, self.below = ends[guided.start], ends[guided.stop]

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        """timestep: sigma (B,), the same for all."""
        inside = self.below < timestep.flatten()[0].item() <= self.above
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, self.conds.get("negative"), self.conds.get("positive"),
            self.cfg if inside else 1.0, model_options=model_options or {}, seed=seed)


def guider_for(model, positive, negative, cfg: float, report: Callable[[str], None] | None = None,
               rescale: bool = True, window: tuple[Tensor, range] | None = None) -> comfy.samplers.CFGGuider:
    """What ComfyUI samples with; at cfg 1 with the positive alone, as its own BasicGuider.

    report: takes the sentences that a run tells, which are logged otherwise. It stands in the guider's own options. A
    clone of the MODEL would do as well, but ComfyUI's clones share what they have pinned, and one that ends unpins all
    of it: gigabytes would be page-locked anew in every run.

    ComfyUI makes room for the prefix of each prompt that a guider holds, though at cfg 1 it computes only the positive:
    unless another node asks for both (disable_cfg1_optimization), as those do that replace the guidance.

    rescale: whether Qwen-Image 1.x is guided as its pipelines do it, where no other node has put a guidance of its own
    in place.

    window: sigmas of the run, and the steps that are guided; None: all.
    """
    sigmas, guided = window or ((), ())
    if cfg > 1 and 0 < len(guided) < len(sigmas) - 1:
        guider = WindowGuider(model)
        guider.set_window(sigmas, guided)
    else:
        guider = comfy.samplers.CFGGuider(model)
        cfg = cfg if window is None or guided else 1.0
    conds = {"positive": positive}
    if cfg > 1 or model.model_options.get("disable_cfg1_optimization"):
        conds["negative"] = positive if negative is None else negative
    guider.inner_set_conds(conds)
    guider.set_cfg(cfg)
    options = guider.model_options = comfy.model_patcher.create_model_options_clone(model.model_options)
    if report is not None:
        options["transformer_options"][REPORT_KEY] = report
    if rescale and model.model.rescales_guidance:
        options.setdefault("sampler_cfg_function", rescaled_guidance)
    return guider


def rescaled_guidance(arguments: Mapping) -> Tensor:
    """Guidance that keeps the positive prediction's norm in each token, as Qwen-Image 1.x's pipelines have it
    (diffusers 0.42.1, pipeline_qwenimage.py). A sampler_cfg_function of ComfyUI's: predictions (B, C, F, h, w) are
    sigma times the velocity, which leaves the ratio of norms as it is."""
    positive, negative = arguments["cond"], arguments["uncond"]
    if arguments["cond_scale"] == 1:  # outside of a window the negative was not computed
        return positive
    guided = negative + arguments["cond_scale"] * (positive - negative)
    return guided * (token_norms(positive) / token_norms(guided))


def token_norms(latent: Tensor, side: int = PATCH) -> Tensor:
    """(..., C, F, h, w) -> the norm of each token's values, at all of its places (..., 1, F, h, w)."""
    squares = latent.square().sum(-4, keepdim=True).unflatten(-1, (-1, side)).unflatten(-3, (-1, side))
    norms = squares.sum((-1, -3), keepdim=True).sqrt()
    return norms.expand_as(squares).flatten(-4, -3).flatten(-2)


def sample(guider: comfy.samplers.CFGGuider, latent: dict, noise: Tensor, sigmas: Tensor, seed: int,
           callback: Callable[[int, Tensor, Tensor, int], None] | None = None) -> Tensor:
    """Samples (B, C, h, w) of a LATENT after all sigmas (steps + 1,), with ComfyUI's preview and bar, or a callback
    that has its own."""
    samples = guider.sample(
        noise, latent["samples"], comfy.samplers.sampler_object("euler"), sigmas,
        denoise_mask=latent.get("noise_mask"), seed=seed,
        callback=callback or latent_preview.prepare_callback(guider.model_patcher, len(sigmas) - 1))
    management = comfy.model_management
    return samples.to(management.intermediate_device(), management.intermediate_dtype())
