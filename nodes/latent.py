"""Empty latents at sizes the model knows."""
from comfy_api.latest import io

from ..model.images import sizes
from .common import categories
from .common.checks import check_before_run, check_canvas
from .common.images import empty_latent
from .common.inputs import canvas_inputs
from .common.schemas import schema
from .notices import notify


class QwenImage2EmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2EmptyLatent",
            display_name="Empty Latent (Qwen-Image 2)",
            category=categories.LATENT,
            description="An empty latent: an aspect ratio at one of the model's size classes, or a custom size.",
            search_aliases=["empty latent image", "resolution", "aspect ratio", "size picker", "qwen image size"],
            inputs=[
                *canvas_inputs("1:1", "1024"),
                io.Int.Input("batch_size", default=1, min=1, max=64,
                             tooltip="Images per run. Image k uses the sampler's seed + k."),
            ],
            outputs=[io.Latent.Output(display_name="latent"), io.Int.Output(display_name="width"),
                     io.Int.Output(display_name="height")],
        )

    @check_before_run
    def validate_inputs(cls, aspect_ratio, width, height):
        check_canvas(aspect_ratio, width, height)

    @classmethod
    def execute(cls, aspect_ratio, size, width, height, batch_size):
        width, height = sizes.chosen_size(aspect_ratio, int(size), width, height)
        return io.NodeOutput(empty_latent(width, height, batch_size), width, height,
                             ui=notify(cls, sizes.large_note(width, height)))
