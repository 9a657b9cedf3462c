"""What samples: ComfyUI's CFGGuider with the prompts that are computed, and its Euler."""
import comfy.model_management
import comfy.samplers
import latent_preview
from torch import Tensor


def guider_for(model, positive, negative, cfg: float) -> comfy.samplers.CFGGuider:
    """What ComfyUI samples with; at cfg 1 with the positive alone, as its own BasicGuider.

    ComfyUI makes room for the prefix of each prompt that a guider holds, though at cfg 1 it computes only the positive:
    unless another node asks for both (disable_cfg1_optimization), as those do that replace the guidance.
    """
    guider = comfy.samplers.CFGGuider(model)
    conds = {"positive": positive}
    if cfg > 1 or model.model_options.get("disable_cfg1_optimization"):
        conds["negative"] = positive if negative is None else negative
    guider.inner_set_conds(conds)
    guider.set_cfg(cfg)
    return guider


def sample(guider: comfy.samplers.CFGGuider, latent: dict, noise: Tensor, sigmas: Tensor, seed: int) -> Tensor:
    """Samples (B, C, h, w) of a LATENT after all sigmas (steps + 1,), with ComfyUI's preview and bar."""
    samples = guider.sample(
        noise, latent["samples"], comfy.samplers.sampler_object("euler"), sigmas,
        denoise_mask=latent.get("noise_mask"), seed=seed,
        callback=latent_preview.prepare_callback(guider.model_patcher, len(sigmas) - 1))
    management = comfy.model_management
    return samples.to(management.intermediate_device(), management.intermediate_dtype())
