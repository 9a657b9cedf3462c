"""Larger pictures than the model was trained to draw: upsampled by its own weights, tile by tile in one run."""
import torch
from comfy_api.latest import io

from ..messages import Message, Refusal
from ..model.images.references import resize
from ..pages import compare, ocr
from .bridge.keys import FAMILY_2
from .bridge.pack_model import no_prompt
from .bridge.vae import family_of
from .common import categories
from .common.checks import UNCONNECTED, check_before_run, check_model, check_vae
from .common.guidance import MAX_CFG, TRAINED, check_guidance, guidance_input, shift_note
from .common.images import check_images
from .common.inputs import Control
from .common.schedules import guidance_note, preset_input, sigmas_for, steps_input, variant_warning
from .common.schemas import schema
from .common.upsampling import (
    LEAST_STRENGTH,
    MAX_SCALE,
    MAX_SIDE,
    MOST_STRENGTH,
    TILE_SIDES,
    Upsampler,
    check_scale,
    check_side,
    check_strength,
    check_tile,
    strength_words,
    target_size,
)
from .common.words import with_words
from .notices import notify, show

DEFAULT_STRENGTH = 0.3


class QwenImage2Upscale(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2Upscale",
            display_name="Upscale (Qwen-Image 2)",
            category=categories.EDITING,
            description="Enlarges a picture with the model's own weights: all tiles in one run, blended at every step, "
                        "with the source's colours and its words.",
            search_aliases=["upscale", "upsample", "hires fix", "tiled upscale", "ultimate sd upscale", "4k"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Qwen-Image 2, with or without LoRAs and control."),
                io.Conditioning.Input("positive", tooltip="What the picture shows: its prompt, or the conditioning of "
                                                          "its edit. Every tile sees all of it."),
                io.Conditioning.Input("negative", optional=True, tooltip="Only needed when CFG is above 1."),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                io.Image.Input("image", tooltip="RGB or RGBA, up to 4096 pixels along a side."),
                io.Float.Input("scale", default=2.0, min=1.0, max=MAX_SCALE, step=0.25,
                               tooltip="How many times as wide and high. Above 2 it takes several passes, each of 2 at "
                                       "most."),
                io.Int.Input("longer_side", default=0, min=0, max=MAX_SIDE,
                             tooltip="Pixels along the longer side of the result, instead of Scale. 0: Scale counts."),
                io.Float.Input("strength", default=DEFAULT_STRENGTH, min=LEAST_STRENGTH, max=MOST_STRENGTH, step=0.01,
                               tooltip="The sigma that drawing begins with. 0.1: sharpens, letters stay. 0.3: redraws "
                                       "textures and edges. 0.6: redraws shapes within their outlines. Unlike denoise "
                                       "it means the same at every size."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                             tooltip="Noise of the first image. Image k of a batch uses seed + k."),
                preset_input(),
                steps_input(),
                io.Float.Input("cfg", default=1.0, min=1.0, max=MAX_CFG, step=0.1,
                               tooltip="As on the sampler: 1 is the official default, above 1 each step takes twice as "
                                       "long."),
                io.Int.Input("tile", default=0, min=0, max=TILE_SIDES[-1], step=32,
                             tooltip="Largest side of a tile in pixels. 0: the size that memory and time allow. The "
                                     "schedule is that of a tile."),
                io.Int.Input("overlap", default=0, min=0, max=TILE_SIDES[-1] // 2, step=32,
                             tooltip="Pixels that neighbouring tiles share at least. 0: a sixth of the tile."),
                io.String.Input("expected_text", multiline=True, default="",
                                tooltip="The words of the picture, one line per line. They are read before and after; "
                                        "a line that was right and is wrong afterwards is put back from the source. "
                                        "Empty: nothing is read."),
                Control.Input("control", optional=True,
                              tooltip="From Load Control: the picture itself, in grey, guides each tile. Other "
                                      "pictures guide through Apply Control on the model."),
                io.Float.Input("control_strength", default=0.8, min=0.0, max=2.0, step=0.05, optional=True,
                               advanced=True, tooltip="Only used with Control."),
                io.Boolean.Input("tile_reference", default=False, optional=True, advanced=True,
                                 tooltip="Each tile has its part of the picture as a reference (2.x only). Keeps more "
                                         "of it; costs 2 GiB of keys and values for each tile of 1024 x 1024, in "
                                         "system RAM or recomputed every step."),
                guidance_input("As on the sampler: how CFG above 1 is computed for Qwen-Image 1.x."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="RGBA where the image was."),
                     io.String.Output(display_name="report", tooltip="Passes, tiles, colours and words.")],
        )

    @check_before_run
    def validate_inputs(cls, scale, longer_side, strength, cfg, expected_text, negative=UNCONNECTED):
        check_inputs(scale, longer_side, strength)
        if cfg is not None:
            check_guidance(cfg, negative is not UNCONNECTED)
        if expected_text and expected_text.strip():
            ocr.require()
            compare.expected_lines(expected_text)

    @classmethod
    def execute(cls, model, positive, vae, image, scale, longer_side, strength, seed, preset, steps, cfg, tile, overlap,
                expected_text, negative=None, control=None, control_strength=0.8, tile_reference=False,
                guidance=TRAINED):
        check_inputs(scale, longer_side, strength)
        check_guidance(cfg, negative is not None)
        check_parts(model, vae, [*positive, *(negative or ())], tile_reference)
        check_tile(model, tile, overlap)
        check_images(image)
        target = target_size(image.shape[2], image.shape[1], scale, longer_side)
        lines = compare.expected_lines(expected_text) if expected_text.strip() else []
        notes = [variant_warning(model, preset), guidance_note(model, preset, cfg), shift_note(model),
                 Message("upscale_strength_words", "Strength {strength}: {does}.", strength=f"{strength:g}",
                         does=strength_words(strength))]
        show(cls, *notes)  # before the work

        def report(message: Message) -> None:
            if message not in notes:
                notes.append(message)
                show(cls, *notes)

        upsampler = Upsampler(
            model, vae, positive, negative, cfg, guidance == TRAINED,
            lambda tile_latent: sigmas_for(model, preset, steps, 1.0, tile_latent), strength, tile, overlap,
            control if control_strength else None, control_strength, tile_reference, report)
        made = [one_image(upsampler, each, target, (seed + number) % 2**64, lines)
                for number, each in enumerate(image.split(1))]
        told = [note for note in notes if note]
        return io.NodeOutput(torch.cat(made), "\n".join(told), ui=notify(cls, *told))


def one_image(upsampler: Upsampler, image: torch.Tensor, target: tuple[int, int], seed: int,
              lines: list[str]) -> torch.Tensor:
    """IMAGE (1, H, W, C) -> (1, H', W', C), with the words that it had."""
    made = upsampler.enlarged(image, target, seed)
    if lines:
        made, message = with_words(made, resize(image[0], *target), lines)
        upsampler.report(message)
    return made


def check_inputs(scale: float | None, longer_side: int | None, strength: float | None) -> None:
    """None is what is linked."""
    if longer_side is not None:
        check_side(longer_side)
    if longer_side == 0 and scale is not None:
        check_scale(scale)
    if strength is not None:
        check_strength(strength)


def check_parts(model, vae, conditionings: list, tile_reference: bool) -> None:
    """Raises Refusal for parts of two families, and for what tiles cannot have."""
    check_model(model)
    check_vae(vae)
    family = model.model.family
    if family_of(vae) != family:
        raise Refusal("upscale_vae", "The model is Qwen-Image {model}, the VAE is that of Qwen-Image {vae}. Connect "
                      "the VAE of the model.", model=family, vae=family_of(vae))
    if not conditionings:
        raise no_prompt()
    if tile_reference and family != FAMILY_2:
        raise Refusal("upscale_reference_family", "Tile reference is switched on, but this is a Qwen-Image 1.x model, "
                      "which has no place for it in a prompt without references. Switch it off.")
    if family != FAMILY_2 and any("control" in values for _, values in conditionings):
        raise Refusal("upscale_controlnet", "A ControlNet of Qwen-Image 1.x is applied to the prompt; it sees the "
                      "whole picture and cannot guide tiles. Connect the prompt without it.")
    if getattr(model.model.spec, "layered", False):
        raise Refusal("upscale_layered", "{file} paints layers and no single picture. Choose another model to "
                      "enlarge it.", file=model.model.label)
