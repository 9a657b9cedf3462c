"""What is checked before a run, and where a run begins and ends: check_run stands around every sampler."""
import logging
import math

import comfy.samplers
import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ...messages import Message, Refusal
from ...model.checkpoints.errors import CheckpointError
from ...model.checkpoints.finite import is_finite
from .adapters.checks import check_lora_shapes, patches_of
from .adapters.shapes import tensors_of
from .keys import CACHE_LOCATION_KEY, REPORT_KEY
from .prefix_cond import condition_from, prefix_tokens
from .runtime import budget
from .runtime.prefix_placement import CacheLocation

log = logging.getLogger(__name__)


def is_latent(shape: tuple[int, ...], channels: int) -> bool:
    """Whether this is a batch of latents (B, channels, h, w); it may be empty."""
    return len(shape) == 4 and shape[1] == channels


def check_latent_shape(shape: tuple[int, ...], channels: int) -> None:
    """Raises Refusal for a latent that this model, with so many latent channels, cannot sample."""
    if not is_latent(shape, channels):
        raise Refusal("latent_shape", "The latent has shape {shape}; Qwen-Image 2 expects [batch, {channels}, "
                      "height/16, width/16]. Create it with Empty Latent (Qwen-Image 2) or VAE Encode (Qwen-Image 2).",
                      shape=str(list(shape)), channels=channels)


def check_run(executor, noise, latent_image, *args, **kwargs):
    """A run of any sampler, core's included, as ComfyUI's wrapper: what cannot work is refused before weights move."""
    guider = executor.class_obj
    model = guider.model_patcher.model
    _check_noise(noise, model.spec.channels)
    check_lora_shapes(guider.model_patcher)
    check_lora_values(guider.model_patcher)
    for cond in (cond for conds in guider.conds.values() for cond in conds):
        _check_conditioning(cond, model, len(noise))
    model.begin_run(_cached_tokens(guider, len(noise)), len(noise))
    try:
        result = executor(noise, latent_image, *args, **kwargs)
        report = guider.model_options["transformer_options"].get(REPORT_KEY, log.info)
        for sentence in filter(None, (*budget.costs(model), not_finite_note(result))):
            report(sentence)
        return result
    finally:
        model.end_run()


def not_finite_note(samples: Tensor) -> Message | None:
    """Which images of latents (B, ...) hold NaN or infinite values; they are saved as black ones."""
    wrong = [str(number) for number, one in enumerate(samples, start=1) if not torch.isfinite(one).all()]
    return Message("pictures_not_finite", "The latent of image {pictures} (of {count}) contains NaN or infinite "
                   "values; the image will be black. To find the cause, sample without LoRAs and start ComfyUI without "
                   "--fast and --fp16-unet.", pictures=wrong, count=len(samples)) if wrong else None


def _check_noise(noise: Tensor, channels: int) -> None:
    check_latent_shape(noise.shape, channels)
    if noise.shape[0] == 0:
        raise Refusal("latent_batch_empty", "The latent batch is empty. There is nothing to sample.")


def _check_conditioning(cond: dict, model, images: int) -> None:
    if "control" in cond:
        raise Refusal("controlnet", "ControlNets are not supported by Qwen-Image 2. Connect the control image as a "
                      "reference instead.")
    text = condition_from(cond, model.spec, model.process_latent_in).text
    if len(text) not in (1, images):
        raise Refusal("conditioning_count", "The conditioning holds {prompts} prompts for {images} images. It must "
                      "hold one for all images or one per image.", prompts=len(text), images=images)


def _cached_tokens(guider, images: int) -> int:
    """Tokens of all prefixes whose keys and values a run is to keep beside the model."""
    model, options = guider.model_patcher.model, guider.model_options
    if options["transformer_options"].get(CACHE_LOCATION_KEY, CacheLocation.VRAM) is not CacheLocation.VRAM:
        return 0
    # As in core's sampling_function; a guider of another class may have other rules, then everything counts.
    unguided = (type(guider) is comfy.samplers.CFGGuider and math.isclose(guider.cfg, 1.0)
                and not options.get("disable_cfg1_optimization"))
    return sum(prefix_tokens(condition_from(cond, model.spec, model.process_latent_in), model.spec, images)
               for name, conds in guider.conds.items() if not (unguided and name == "negative") for cond in conds)


def check_lora_values(patcher) -> None:
    """Refuse LoRAs with NaN or infinity, whoever loaded them: the image would be black. An adapter is read once."""
    checked = patcher.model.finite_adapters
    for key, patch, _ in patches_of(patcher):
        if isinstance(patch, WeightAdapterBase) and patch in checked:
            continue
        if not all(map(is_finite, tensors_of(patch))):
            raise CheckpointError("lora_values", "The LoRA is damaged: {tensor} contains NaN or infinity, which would "
                                  "turn the image black. Download it again, or use an earlier training checkpoint.",
                                  tensor=key)
        if isinstance(patch, WeightAdapterBase):
            checked.add(patch)
