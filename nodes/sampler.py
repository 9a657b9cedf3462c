"""Sampling with the right sigmas for the model and the size."""
import re

import torch
from comfy_api.latest import io

from ..messages import Message
from ..model.images import references, sizes
from .bridge.files import miniature
from .bridge.guider import guider_for, sample
from .bridge.keys import FAMILY_1, FAMILY_2
from .common import categories
from .common.checks import UNCONNECTED, check_before_run, check_finite, check_latent
from .common.guidance import (
    MAX_CFG,
    TRAINED,
    check_guidance,
    check_window,
    guidance_input,
    guided_steps,
    shift_note,
    window_inputs,
    window_note,
)
from .common.schedules import (
    cap_shift_input,
    guidance_note,
    noise_for,
    preset_input,
    sigmas_for,
    steps_input,
    variant_warning,
)
from .common.schemas import schema
from .notices import notify, show
from .seeds import seed_note

# What core's empty latents say of their scale. What was sampled has the model's own.
SCALES = ("downscale_ratio_spacial", "downscale_ratio_temporal")


def denoise_input() -> io.Float.Input:
    return io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01,
                          tooltip="Below 1: image-to-image; lower values keep more of the input latent.")


def edit_note(model, positive) -> str | None:
    """An edit model of 1.x that has nothing to edit: possible, and told. Of most files only the name says what they
    are."""
    named = re.search(r"(?<![a-z])edit(?![a-z])", model.model.label.lower())
    if model.model.family != FAMILY_1 or not (named or model.model.spec.zero_cond_t):
        return None
    if any(values.get("reference_latents") for _, values in positive):
        return None
    return Message("edit_unreferenced", "{file} is an edit model, but no reference is connected: it draws from the "
                   "prompt alone, which it was not trained for. Use Encode Edit, or a Qwen-Image model for text to "
                   "image.", file=model.model.label)


def layered_note(model, samples: torch.Tensor) -> str | None:
    """A model that paints layers, asked for one picture: possible, and told."""
    if not getattr(model.model.spec, "layered", False) or (samples.ndim == 5 and samples.shape[2] > 1):
        return None
    return Message("layered_single", "{file} is a Layered model, but the latent holds one image: no layers are made. "
                   "To take an image apart, use Layers (Qwen-Image 2).", file=model.model.label)


def pixels(model, latent: torch.Tensor) -> tuple[int, int]:
    """(width, height) of the image that a latent (..., h, w) becomes."""
    height, width = latent.shape[-2:]
    return width * model.model.pixels_per_latent, height * model.model.pixels_per_latent


def canvas_note(model, positive, samples: torch.Tensor) -> str | None:
    """Edits on a canvas that fails, or on one that is no reference's: possible, and told."""
    canvas = pixels(model, samples)
    connected = [pixels(model, latent) for _, values in positive for latent in values.get("reference_latents") or ()]
    if model.model.family == FAMILY_2 and references.off_failing_grid(canvas, connected):
        return Message("failing_grid", "Latent and reference are both {size} pixels, a size at which edits are known "
                       "to fail. Switch on Avoid the 1024 grid in Encode Edit, and use its latent.", size=_size(canvas))
    if not connected or canvas in connected:
        return None
    return Message("canvas_differs", "The latent is {canvas} pixels, but no reference has that size (they are "
                   "{references}). Such edits shift or zoom what they should keep. Use the latent of Encode Edit, with "
                   "Canvas size set to a reference.",
                   canvas=_size(canvas), references=[_size(size) for size in dict.fromkeys(connected)])


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def size_note(model, samples: torch.Tensor) -> str | None:
    """Sizes that the model was not trained on: possible, and told."""
    width, height = pixels(model, samples)
    if note := miniature.size_note(model.model.label, width, height):
        return note
    if model.model.family == FAMILY_1 or height % sizes.MULTIPLE == 0 == width % sizes.MULTIPLE:
        return None
    return Message("size_untrained", "{width} x {height} is not a multiple of {multiple} pixels; the model was not "
                   "trained on such sizes.", width=width, height=height, multiple=sizes.MULTIPLE)


def start_note(samples: torch.Tensor, denoise: float) -> str | None:
    """Image-to-image without an image: possible, and told."""
    if denoise == 1 or samples.any():
        return None
    return Message("denoise_of_empty", "denoise is {denoise}, but the latent is empty: the steps that lay out the "
                   "image are skipped. Set denoise to 1, or connect the latent of an image from VAE Encode (Qwen-Image "
                   "2).", denoise=f"{denoise:g}")


class QwenImage2Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2Sampler",
            display_name="Sampler (Qwen-Image 2)",
            category=categories.SAMPLING,
            description="Euler with the reference's exact sigmas for the model and the size.",
            search_aliases=["ksampler", "sample", "generate", "qwen image sampler", "turbo"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Qwen-Image 2, with or without LoRAs."),
                io.Conditioning.Input("positive", tooltip="What to draw."),
                io.Conditioning.Input("negative", optional=True, tooltip="Only needed when CFG is above 1."),
                io.Latent.Input("latent", tooltip="An empty latent, or an encoded image with denoise below 1."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                             tooltip="Noise of the first image. Image k of a batch uses seed + k."),
                preset_input(),
                steps_input(),
                io.Float.Input("cfg", default=1.0, min=1.0, max=MAX_CFG, step=0.1,
                               tooltip="1 is the official default: no guidance, one model pass per step. Above 1 the "
                                       "negative prompt is used, and each step takes twice as long."),
                denoise_input(),
                guidance_input("How CFG above 1 is computed for Qwen-Image 1.x. as trained: the guided prediction "
                               "keeps the positive one's length in each token, as the official pipelines do it. "
                               "plain: as KSampler. 2.x is always guided plainly."),
                *window_inputs(),
                cap_shift_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
            hidden=(io.Hidden.prompt,),
        )

    @check_before_run
    def validate_inputs(cls, cfg, negative=UNCONNECTED, cfg_start=0.0, cfg_end=1.0):
        if cfg is not None:
            check_guidance(cfg, negative is not UNCONNECTED)
        check_window(cfg_start, cfg_end)

    @classmethod
    def execute(cls, model, positive, latent, seed, preset, steps, cfg, denoise, negative=None, guidance=TRAINED,
                cfg_start=0.0, cfg_end=1.0, cap_shift=False):
        samples = check_latent(model, latent)
        check_finite(samples)
        latent = {name: value for name, value in latent.items() if name not in SCALES} | {"samples": samples}
        check_guidance(cfg, negative is not None)
        check_window(cfg_start, cfg_end)
        sigmas = sigmas_for(model, preset, steps, denoise, samples, cap_shift)
        guided = guided_steps(cfg_start, cfg_end, len(sigmas) - 1)
        notes = [variant_warning(model, preset), guidance_note(model, preset, cfg), shift_note(model),
                 window_note(cfg, guided, len(sigmas) - 1),
                 size_note(model, samples), edit_note(model, positive), layered_note(model, samples),
                 canvas_note(model, positive, samples), start_note(samples, denoise),
                 seed_note(cls.hidden.prompt, cls.hidden.unique_id, "positive", seed)]
        show(cls, *notes)  # before the work
        guider = guider_for(model, positive, negative, cfg, notes.append, guidance == TRAINED, (sigmas, guided))
        out = sample(guider, latent, noise_for(latent, seed), sigmas, seed)
        return io.NodeOutput({**latent, "samples": out}, ui=notify(cls, *notes))


class QwenImage2Sigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2Sigmas",
            display_name="Sigmas (Qwen-Image 2)",
            category=categories.SAMPLING,
            description="The same schedules for SamplerCustomAdvanced.",
            search_aliases=["scheduler", "sigmas", "basic scheduler", "qwen image schedule"],
            inputs=[
                io.Model.Input("model", tooltip="Only inspected: a Turbo model with a base schedule gets a warning."),
                io.Latent.Input("latent", tooltip="Its size sets the shift."),
                preset_input(),
                steps_input(),
                denoise_input(),
                cap_shift_input(),
            ],
            outputs=[io.Sigmas.Output()],
        )

    @classmethod
    def execute(cls, model, latent, preset, steps, denoise, cap_shift=False):
        samples = check_latent(model, latent)
        return io.NodeOutput(sigmas_for(model, preset, steps, denoise, samples, cap_shift),
                             ui=notify(cls, variant_warning(model, preset), shift_note(model)))
