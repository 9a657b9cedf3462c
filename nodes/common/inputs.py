"""Inputs that several nodes have."""
from comfy_api.latest import io

from ...model.images import sizes
from ...model.images.references import MAX_REFERENCES
from ..frontend import enabled_when, size_table, ui_hints

Control = io.Custom("QWEN_IMAGE_2_CONTROL")
RESOLUTIONS = ("128", "256", "512", "768", "1024", "1280", "1536", "2048")


def canvas_inputs(aspect_ratio: str, size: str) -> list[io.Input]:
    """The inputs that choose a canvas, with their defaults."""
    return [
        io.Combo.Input("aspect_ratio", [*sizes.RATIOS, sizes.CUSTOM], default=aspect_ratio,
                       extra_dict=ui_hints(sizes=size_table()),
                       tooltip="Width to height. custom: uses width and height below."),
        io.Combo.Input("size", [str(side) for side in sizes.CLASSES], default=size,
                       tooltip="Side of the square with the same area, in pixels. 2048 is the model's native "
                               "2K table of 2.x: 2048x2048, 2400x1792, 2528x1696, 2752x1536 and upright; 1328 is the "
                               "official table of 1.x: 1328x1328, 1472x1104, 1584x1056, 1664x928 and upright. 3584 and "
                               "4096 are above all that the models were trained on: better draw at 2048 and use "
                               "Upscale."),
        *side_inputs("aspect_ratio", sizes.CUSTOM, "Only used with aspect ratio custom."),
    ]


def side_inputs(choice: str, custom: str, when: str) -> list[io.Input]:
    """Width and height of the user's own, used where the input `choice` is `custom`; when: that in words."""
    return [io.Int.Input(side, default=1024, min=sizes.MIN_SIDE, max=sizes.MAX_SIDE, step=sizes.STEP,
                         extra_dict=enabled_when(choice, custom),
                         tooltip=f"Pixels, a multiple of 16 (2.x: better of 32). {when}")
            for side in ("width", "height")]


def reference_inputs(tooltip: str, optional: bool = False) -> io.Autogrow.Input:
    """`images`: image_1, image_2 and so on, as many as the model takes."""
    names = [f"image_{number}" for number in range(1, MAX_REFERENCES + 1)]
    image = io.Image.Input("image", tooltip=tooltip)
    return io.Autogrow.Input("images", optional=optional,
                             template=io.Autogrow.TemplateNames(image, names=names, min=0 if optional else 1))
