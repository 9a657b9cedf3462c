"""Empty latents at sizes the model knows."""
import comfy.model_management
import torch
from comfy_api.latest import io

from ..messages import Message, Refusal
from ..model.images import sizes
from ..model.qwen_image_2.spec import VAESpec
from .frontend import marks, only_with, size_table


def empty_latent(width: int, height: int, batch_size: int) -> dict:
    """LATENT of zeros (B, 64, height/16, width/16)."""
    shape = (batch_size, VAESpec.latent_channels, height // VAESpec().scale, width // VAESpec().scale)
    return {"samples": torch.zeros(shape, device=comfy.model_management.intermediate_device())}


def canvas_inputs(aspect_ratio: str, size: str) -> list[io.Input]:
    """The inputs that choose a canvas, with their defaults."""
    return [
        io.Combo.Input("aspect_ratio", [*sizes.RATIOS, sizes.CUSTOM], default=aspect_ratio,
                       extra_dict=marks(sizes=size_table()),
                       tooltip="Width to height. custom: the two numbers below."),
        io.Combo.Input("size", [str(side) for side in sizes.CLASSES], default=size,
                       tooltip="Side of the square with the same area, in pixels. 2048 is the model's native "
                               "2K table: 2048x2048, 2400x1792, 2528x1696, 2752x1536 and upright."),
        io.Int.Input("width", default=1024, min=sizes.SMALLEST, max=sizes.LARGEST, step=sizes.MULTIPLE,
                     extra_dict=only_with("aspect_ratio", sizes.CUSTOM),
                     tooltip="Pixels, a multiple of 32. Only used with aspect ratio custom."),
        io.Int.Input("height", default=1024, min=sizes.SMALLEST, max=sizes.LARGEST, step=sizes.MULTIPLE,
                     extra_dict=only_with("aspect_ratio", sizes.CUSTOM),
                     tooltip="Pixels, a multiple of 32. Only used with aspect ratio custom."),
    ]


def check_canvas(aspect_ratio, width, height) -> bool | str:
    """Before anything runs; ComfyUI leaves out its own checks of these, and gives None for what is linked."""
    if aspect_ratio not in (None, sizes.CUSTOM, *sizes.RATIOS):
        return Message("ratio_unknown", "There is no aspect ratio {ratio}: choose {ratios} or {custom}.",
                       ratio=str(aspect_ratio), ratios=list(sizes.RATIOS), custom=sizes.CUSTOM)
    if aspect_ratio != sizes.CUSTOM or None in (width, height):
        return True
    try:
        sizes.check_size(width, height)
    except Refusal as refusal:
        return refusal.message
    return True


class QwenImage2EmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="QwenImage2EmptyLatent",
            display_name="Empty Latent (Qwen-Image 2)",
            category="Qwen-Image 2/latent",
            description="The canvas: an aspect ratio at one of the model's size classes, or a size of your own.",
            search_aliases=["empty latent image", "resolution", "aspect ratio", "size picker", "qwen image size"],
            inputs=[
                *canvas_inputs("1:1", "1024"),
                io.Int.Input("batch_size", default=1, min=1, max=64,
                             tooltip="Pictures at once. Picture k uses the sampler's seed + k."),
            ],
            outputs=[io.Latent.Output(display_name="latent"), io.Int.Output(display_name="width"),
                     io.Int.Output(display_name="height")],
        )

    @classmethod
    def validate_inputs(cls, aspect_ratio, width, height):
        return check_canvas(aspect_ratio, width, height)

    @classmethod
    def execute(cls, aspect_ratio, size, width, height, batch_size):
        width, height = sizes.chosen_size(aspect_ratio, int(size), width, height)
        return io.NodeOutput(empty_latent(width, height, batch_size), width, height)
