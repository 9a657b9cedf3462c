"""Editing a part of an image, and enlarging it: what lies outside the mask stays bit for bit."""
from typing import NamedTuple

import torch
from comfy_api.latest import io

from ..messages import Message, Refusal
from ..model.images import alignment, references, regions, sizes
from .common import categories
from .common.images import check_images
from .common.inputs import RESOLUTIONS
from .common.schemas import schema
from .notices import notify


class Region(NamedTuple):
    """What the stitch needs to know: the whole images (B, H, W, C), their soft masks (B, H, W), more than one of
    which may belong to one image, and where the parts were cut."""

    image: torch.Tensor
    mask: torch.Tensor
    box: regions.Box


RegionType = io.Custom("QWEN_IMAGE_2_REGION")


class QwenImage2CropForEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2CropForEdit",
            display_name="Crop for Edit (Qwen-Image 2)",
            category=categories.EDITING,
            description="Crops the masked region with some context, at full working resolution for the edit.",
            search_aliases=["inpaint crop", "masked edit", "crop and stitch", "region edit"],
            inputs=[
                io.Image.Input("image", tooltip="RGB or RGBA, any size."),
                io.Mask.Input("mask", tooltip="1 where the image may change. A mask of another size is stretched. One "
                                              "for all images, one per image, or several for one image."),
                io.Float.Input("context", default=0.5, min=0.0, max=4.0, step=0.05,
                               tooltip="Margin around the mask that the model sees, as a fraction of the mask's longer "
                                       "side."),
                io.Combo.Input("resolution", list(RESOLUTIONS), default="1024",
                               tooltip="Size class that the region is scaled to for the edit."),
                io.Int.Input("feather", default=16, min=0, max=512,
                             tooltip="Pixels outside the mask over which the edit blends into the image."),
            ],
            outputs=[io.Image.Output(display_name="part", tooltip="The crop, for Image 1 of Encode Edit (with "
                                                                  "Resolution 'as it is')."),
                     io.Mask.Output(display_name="part_mask"),
                     RegionType.Output(display_name="region", tooltip="For Stitch Edit.")],
        )

    @classmethod
    def execute(cls, image, mask, context, resolution, feather):
        check_images(image)
        mask = regions.fit_mask(mask, *image.shape[:3])
        soft = regions.feathered(mask, feather)
        box = regions.box_around(soft, context)
        width, height = sizes.size_for_area(int(resolution), box.width / box.height)
        part = torch.cat([references.resize(p, width, height) for p in regions.cut(image, box)])[..., :image.shape[-1]]
        part_mask = torch.nn.functional.interpolate(regions.cut(soft, box).unsqueeze(1), (height, width),
                                                    mode="bilinear").squeeze(1)
        note = Message("region", "Region: {region} pixels at left {left}, top {top} of an image of {picture}, edited "
                       "at {size}.", region=f"{box.width} x {box.height}", left=box.left,
                       top=box.top, picture=f"{image.shape[2]} x {image.shape[1]}", size=f"{width} x {height}")
        return io.NodeOutput(part, part_mask, Region(image, soft, box), ui=notify(cls, note))


class QwenImage2StitchEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2StitchEdit",
            display_name="Stitch Edit (Qwen-Image 2)",
            category=categories.EDITING,
            description="Puts an edited region back. Outside the feathered mask the image is bit-identical.",
            search_aliases=["inpaint stitch", "paste back", "uncrop", "crop and stitch"],
            inputs=[
                RegionType.Input("region", tooltip="From Crop for Edit."),
                io.Image.Input("part", tooltip="The edited crop, of any size. One per image, or several for "
                                               "one image."),
                io.Boolean.Input("align", default=False, optional=True,
                                 tooltip="Edits drift by parts of a pixel, more on another canvas. This measures the "
                                         "shift outside the mask, by phase correlation, and moves the part back before "
                                         "it goes in; at most 32 pixels."),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(cls, region, part, align=False):
        check_images(part)
        notes = []
        if align:
            part, found = alignment.aligned(region.image, part, region.mask, region.box)
            notes = [in_words(number, one) for number, one in enumerate(found, start=1)]
        return io.NodeOutput(regions.put_back(region.image, part, region.mask, region.box), ui=notify(cls, *notes))


def in_words(number: int, found: alignment.Alignment) -> Message:
    """What was measured of an edit, and done."""
    x, y = f"{found.right:.2f}", f"{found.down:.2f}"
    if found.peak < alignment.TRUSTED:
        return Message("edit_unaligned", "Edit {number} was not aligned: outside the mask it has too little in common "
                       "with its source ({peak} of 1; {least} is needed). Give Crop for Edit more context, or check "
                       "what was edited.", number=number, peak=f"{found.peak:.2f}", least=f"{alignment.TRUSTED:g}")
    if found.too_far:
        return Message("edit_too_far", "Edit {number} was not aligned: it lies {x} pixels in x and {y} in y from its "
                       "source, more than {limit}, so its composition is another. Edit it again.", number=number, x=x,
                       y=y, limit=alignment.LIMIT)
    if not found.noticed:
        return Message("edit_in_place", "Edit {number} lies on its source to {least} pixels.", number=number,
                       least=f"{alignment.UNNOTICED:g}")
    return Message("edit_aligned", "Edit {number} had moved by {x} pixels in x and {y} in y, and was moved back.",
                   number=number, x=x, y=y)


class QwenImage2ExtendCanvas(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="QwenImage2ExtendCanvas",
            display_name="Extend Canvas (Qwen-Image 2)",
            category=categories.EDITING,
            description="Extends the canvas for outpainting: the new area is mirrored, and masked for the stitch.",
            search_aliases=["outpaint", "pad image", "expand", "uncrop"],
            inputs=[io.Image.Input("image", tooltip="RGB or RGBA, any size.")] + [
                io.Int.Input(side, default=0, min=0, max=sizes.MAX_SIDE, tooltip=f"Pixels to add at the {side}.")
                for side in ("left", "top", "right", "bottom")],
            outputs=[io.Image.Output(display_name="image"),
                     io.Mask.Output(display_name="mask", tooltip="1 in the new area: for Crop for Edit.")],
        )

    @classmethod
    def execute(cls, image, left, top, right, bottom):
        if not left + top + right + bottom:
            raise Refusal("nothing_added", "No border to add. Set at least one of Left, Top, Right and Bottom.")
        check_images(image)
        return io.NodeOutput(*regions.extended(image, left, top, right, bottom))
