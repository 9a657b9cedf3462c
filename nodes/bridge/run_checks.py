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
from .keys import CACHE_LOCATION_KEY, PASS_SHAPE_KEY, REPORT_KEY
from .runtime import budget
from .runtime.prefix_placement import CacheLocation

log = logging.getLogger(__name__)


def is_latent(shape: tuple[int, ...], channels: int) -> bool:
    """Whether this is a batch of latents (B, channels, h, w); it may be empty."""
    return len(shape) == 4 and shape[1] == channels


def check_run(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """A run of any sampler, core's included, as ComfyUI's wrapper: what cannot work is refused before weights move."""
    guider = executor.class_obj
    model = guider.model_patcher.model
    _check_noise(noise, model)
    model.check_patches(guider.model_options["transformer_options"])
    check_lora_shapes(guider.model_patcher)
    check_lora_values(guider.model_patcher)
    for cond in (cond for conds in guider.conds.values() for cond in conds):
        model.check_conditioning(cond, len(noise))
    controls = model.prepare_controls(guider.model_patcher, noise)  # their pictures are encoded here
    model.begin_run(_cached_tokens(guider, len(noise)), len(noise), sigmas.tolist(), controls,
                    guider.model_options["transformer_options"].get(PASS_SHAPE_KEY))
    try:
        result = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        report = guider.model_options["transformer_options"].get(REPORT_KEY, log.info)
        for sentence in filter(None, (*budget.run_costs(guider.model_patcher), not_finite_note(result))):
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


def _check_noise(noise: Tensor, model) -> None:
    model.check_latent_shape(noise.shape)
    if noise.shape[0] == 0:
        raise Refusal("latent_batch_empty", "The latent batch is empty. There is nothing to sample.")


def _cached_tokens(guider, images: int) -> int:
    """Tokens of all prefixes whose keys and values a run is to keep beside the model."""
    model, options = guider.model_patcher.model, guider.model_options
    if options["transformer_options"].get(CACHE_LOCATION_KEY, CacheLocation.VRAM) is not CacheLocation.VRAM:
        return 0
    # As in core's sampling_function; a guider of another class may have other rules, then everything counts.
    unguided = (type(guider) is comfy.samplers.CFGGuider and math.isclose(guider.cfg, 1.0)
                and not options.get("disable_cfg1_optimization"))
    return model.cached_tokens([cond for name, conds in guider.conds.items()
                                if not (unguided and name == "negative") for cond in conds], images)


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
