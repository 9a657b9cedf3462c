"""A picture -> its layers, each with transparency: Qwen-Image-Layered."""
from collections.abc import Callable

import comfy.model_management
import torch
from comfy_api.latest import io

from ..messages import Message, Refusal
from ..model.images import sizes
from ..model.images.layers import alpha_over, distance
from ..model.images.references import resize
from ..model.qwen_image_1 import prompt as prompt_1
from ..model.qwen_image_1 import schedule
from .bridge.guider import guider_for, sample
from .bridge.keys import FAMILY_1
from .bridge.text_encoders import generation
from .bridge.text_encoders.families import check_clip, encode_together
from .bridge.text_encoders.lazy import with_references
from .bridge.vae import decode_images, encode_images, family_of
from .common import categories
from .common.checks import check_before_run, check_model, check_pair, check_vae
from .common.guidance import MAX_CFG, TRAINED, check_guidance, guidance_input, shift_note, unguided_note
from .common.images import check_images
from .common.schemas import schema
from .frontend import ui_hints
from .notices import notify, show, token_counter

FEWEST, MOST = 2, 8
RESOLUTIONS = ("640", "1024")  # all that the model was trained on
CAPTIONS = {"English": prompt_1.CAPTION_EN, "Chinese": prompt_1.CAPTION_CN}
WRITE_IT = Message("write_prompt", "write the prompt yourself")


class QwenImage2Layers(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2Layers",
            display_name="Layers (Qwen-Image 2)",
            category=categories.EDITING,
            description="Takes an image apart into RGBA layers, with Qwen-Image-Layered and its VAE.",
            search_aliases=["layered", "decompose", "rgba layers", "psd", "qwen image layered", "separate"],
            inputs=[
                io.Model.Input("model", tooltip="Qwen-Image-Layered, from Load Qwen-Image 2."),
                io.Clip.Input("clip", tooltip="The text encoder of Qwen-Image 1.x: Qwen2.5-VL."),
                io.Vae.Input("vae", tooltip="The VAE of Qwen-Image-Layered, which has transparency."),
                io.Image.Input("image", tooltip="One image, RGB or RGBA, any size. It is resized to the resolution "
                                                "below, at its own ratio."),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, default="",
                                extra_dict=ui_hints(meter=True),
                                tooltip="What the whole image shows, including what is hidden; it does not say what "
                                        "goes into which layer. Empty: the text encoder writes it."),
                io.Int.Input("layers", default=4, min=FEWEST, max=MOST,
                             tooltip="How many layers to make; time and memory grow with their number."),
                io.Combo.Input("resolution", list(RESOLUTIONS), default="640",
                               tooltip="Side of the square with the layers' area, in pixels. 640 is the official "
                                       "recommendation."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                             tooltip="Another seed, another way to take the image apart."),
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="50 is the official default."),
                io.Float.Input("cfg", default=4.0, min=1.0, max=MAX_CFG, step=0.1,
                               tooltip="4 is the official default. At 1 the negative prompt has no effect, and a step "
                                       "takes half as long."),
                io.String.Input("negative_prompt", multiline=True, dynamic_prompts=True, default=" ",
                                tooltip="What to avoid, where CFG is above 1. A space is the official default."),
                io.Combo.Input("caption_language", list(CAPTIONS), default="English", advanced=True,
                               tooltip="Language of the prompt that the text encoder writes where yours is empty."),
                guidance_input("How CFG above 1 is computed. as trained: the guided prediction keeps the positive "
                               "one's length in each token, as the model card has it (cfg_normalize). plain: without, "
                               "as KSampler and diffusers' default."),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The layers as a batch of RGBA images, the lowest "
                                                               "first."),
                io.Image.Output(display_name="composite", tooltip="All layers laid over each other, RGBA."),
                io.String.Output(display_name="prompt", tooltip="The prompt that was used: yours, or the caption."),
            ],
        )

    @check_before_run
    def validate_inputs(cls, layers, cfg):
        check_layers(layers)
        if cfg is not None:
            check_guidance(cfg, negative=True)

    @classmethod
    def execute(cls, model, clip, vae, image, prompt, layers, resolution, seed, steps, cfg, negative_prompt,
                caption_language, guidance=TRAINED):
        check_layers(layers)
        check_guidance(cfg, negative=True)
        check_parts(model, clip, vae)
        check_picture(image)
        picture = resize(image[0], *sizes.size_for_area(int(resolution), image.shape[2] / image.shape[1]))
        notes = [shift_note(model), unguided_note() if cfg == 1 else None]
        show(cls, *notes)  # before the work
        if not prompt.strip():
            prompt = written(clip, caption_language, picture, token_counter(cls))
            notes.append(Message("layers_caption", "The text encoder wrote the prompt: {caption}", caption=prompt))
            show(cls, *notes)
        condition = encode_images(vae, picture)  # (1, 16, 1, h, w)
        positive, negative = (with_references(one, [condition])
                              for one in encode_together(clip, (prompt, negative_prompt), []))
        guider = guider_for(model, positive, negative, cfg, notes.append, guidance == TRAINED)
        sigmas = schedule.layered_sigmas(steps, model.model.tokens(condition))
        noise = noise_for(condition, layers, seed)
        frames = sample(guider, {"samples": torch.zeros_like(noise)}, noise, sigmas, seed)
        made = decode_images(vae, frames[:, :, 1:])  # the first frame is the whole picture again
        composite = alpha_over(made)
        notes.append(Message("layers_distance", "The layers laid over each other differ from the image by {distance} "
                             "of 255 on average, as seen on white.", distance=f"{distance(composite, picture):.1f}"))
        return io.NodeOutput(made, composite, prompt, ui=notify(cls, *notes))


def check_layers(layers: int | None) -> None:
    """None is what is linked."""
    if layers is not None and not FEWEST <= layers <= MOST:
        raise Refusal("layers_range", "The number of layers must be between {min} and {max}, got {layers}.",
                      min=FEWEST, max=MOST, layers=layers)


def check_parts(model, clip, vae) -> None:
    """Raises Refusal for any but Qwen-Image-Layered, its VAE and the text encoder of its family."""
    check_model(model)
    if not getattr(model.model.spec, "layered", False):
        raise Refusal("layers_model", "{file} paints whole images and no layers. Choose Qwen-Image-Layered "
                      "(qwen_image_layered_bf16, from Comfy-Org/Qwen-Image-Layered_ComfyUI) as the model.",
                      file=model.model.label)
    check_vae(vae)
    if family_of(vae) != FAMILY_1 or vae.output_channels != 4:
        raise Refusal("layers_vae", "This VAE is that of Qwen-Image {family} with {channels} channels, which cannot "
                      "make layers. Choose the VAE of Qwen-Image-Layered, qwen_image_layered_vae.",
                      family=family_of(vae), channels=vae.output_channels)
    check_clip(clip)
    check_pair(clip, vae)


def check_picture(image: torch.Tensor) -> None:
    check_images(image)
    if len(image) != 1:
        raise Refusal("layers_one_image", "Got a batch of {count} images; they are taken apart one at a time. Put "
                      "core's Rebatch Images with batch size 1 before this node.", count=len(image))
    height, width = image.shape[1:3]
    if max(height, width) > sizes.MAX_RATIO * min(height, width):
        raise Refusal("layers_ratio", "The image is {width} x {height}: its longer side is more than {max} times the "
                      "shorter one. Crop it first.", width=width, height=height, max=sizes.MAX_RATIO)


def written(clip, language: str, picture: torch.Tensor, progress: Callable[[int], None]) -> str:
    """A prompt for the picture (1, H, W, 4). Raises Refusal where the text encoder cannot see or write."""
    check_clip(clip, reads_images=True)
    generation.check_writes(clip, sees=True, advice=WRITE_IT)
    return generation.caption(clip, CAPTIONS[language], picture, progress)


def noise_for(condition: torch.Tensor, layers: int, seed: int) -> torch.Tensor:
    """Noise (1, 16, layers + 1, h, w) in the numbers of diffusers, which draws the whole picture and its layers one
    after the other. condition: latents (1, 16, 1, h, w)."""
    _, channels, _, height, width = condition.shape
    drawn = torch.randn((1, layers + 1, channels, height, width), generator=torch.Generator().manual_seed(seed))
    return drawn.movedim(1, 2).to(comfy.model_management.intermediate_device())
