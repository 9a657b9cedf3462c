"""What nodes refuse: before anything runs, and when they run."""
import functools
import inspect
from collections.abc import Callable

import comfy.sample
import torch

from ...messages import Refusal
from ...model.images import sizes
from ...model.images.references import MAX_REFERENCES
from ..bridge.pack_model import is_ours
from ..bridge.text_encoders.families import family_of as clip_family
from ..bridge.vae import QwenImage2VAE, family_of

FLUX_2_CHANNELS, FLUX_2_SCALE = 128, 16  # the one empty latent of core that does not say its scale
UNCONNECTED = object()  # default of an input that may be left out: None is one that is linked and not yet known


# ---------------------------------------------------------------- before anything runs

def check_before_run(check: Callable[..., None], names: tuple[str, ...] = ()) -> classmethod:
    """`check`, which raises Refusal, as the validate_inputs of a node: ComfyUI wants True or the message.

    ComfyUI reads from the signature which inputs are asked for. Of these it leaves out its own checks of range and
    choice, so `check` has to make them, and one that is linked, and not yet known, comes as None. names: the inputs to
    ask for where `check` takes any.
    """
    signature = _signature(("cls", *names)) if names else inspect.signature(check)

    def validate_inputs(cls, **inputs) -> bool | str:
        signature.bind(cls, **inputs)  # or it would go unnoticed that a program has left one out
        try:
            check(cls, **inputs)
        except Refusal as refusal:
            return refusal.message
        return True

    functools.update_wrapper(validate_inputs, check)
    validate_inputs.__signature__ = signature
    return classmethod(validate_inputs)


def _signature(names: tuple[str, ...]) -> inspect.Signature:
    return inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names])


def check_canvas(aspect_ratio: str | None, width: int | None, height: int | None) -> None:
    """None is what is linked."""
    if aspect_ratio is not None:
        sizes.check_ratio(aspect_ratio)
    if aspect_ratio == sizes.CUSTOM and None not in (width, height):
        sizes.check_size(width, height)


# ---------------------------------------------------------------- when a node runs

def check_no_others(links: dict) -> None:
    """links: what ComfyUI hands over beside a node's inputs, which only a program can connect."""
    if links:
        raise Refusal("input_unknown", "This node has no input {inputs}: it takes at most {max} images, image_1 to "
                      "image_{max}.", inputs=list(links), max=MAX_REFERENCES)


def check_model(model) -> None:
    if not is_ours(model):
        raise Refusal("sampler_model", "This MODEL is not a Qwen-Image 2 transformer. Load it with Load Qwen-Image 2.")


def check_latent(model, latent: dict) -> torch.Tensor:
    """The latent's samples (B, C, h, w), core's empty ones in this model's shape. Raises Refusal where they cannot be
    sampled."""
    check_model(model)
    samples = latent["samples"]
    ratio = latent.get("downscale_ratio_spacial", FLUX_2_SCALE if samples.shape[1:2] == (FLUX_2_CHANNELS,) else None)
    if ratio is not None and not samples.is_nested:  # core's empty latents say for which scale they were made
        samples = comfy.sample.fix_empty_latent_channels(model, samples, ratio, latent.get("downscale_ratio_temporal"))
    model.model.check_latent_shape(samples.shape)
    if 0 in samples.shape:
        raise Refusal("latent_empty", "The latent is empty: its shape is {shape}.", shape=str(list(samples.shape)))
    return samples


def check_finite(samples: torch.Tensor) -> None:
    """For what starts from the latent's values; who only looks at its size does not ask."""
    if not torch.isfinite(samples).all():
        raise Refusal("latent_not_finite", "The latent contains NaN or infinite values; the image would be black. Look "
                      "for the node that produced them, such as a VAE in fp16.")


def check_vae(vae, ours: bool = False) -> None:
    """Raises Refusal for the VAE of another model. ours: also for that of Qwen-Image 1.x from core's own loader."""
    if not isinstance(vae, QwenImage2VAE) if ours else family_of(vae) is None:
        raise Refusal("not_our_vae", "This VAE is not the Qwen-Image 2 VAE. Load it with Load VAE (Qwen-Image 2).")


def check_pair(clip, vae) -> str:
    """The family of both. Raises Refusal where they are of two."""
    family = clip_family(clip)
    if family_of(vae) != family:
        raise Refusal("families_mixed", "The text encoder belongs to Qwen-Image {clip}, the VAE to Qwen-Image {vae}; "
                      "together they give noise. Load both of one family.", clip=family, vae=family_of(vae))
    return family
