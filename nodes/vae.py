"""Images <-> latents, with transparency."""
import torch
from comfy_api.latest import io

from ..messages import Message, Refusal
from .bridge.keys import FAMILY_1, FAMILY_2
from .bridge.run_checks import not_finite_note
from .bridge.vae import decode_images, encode_images, family_of
from .common import categories
from .common.checks import check_vae
from .common.images import as_vae_takes, check_images, with_alpha
from .common.schemas import schema
from .notices import notify, show

FAMILIES = {16: FAMILY_1, 64: FAMILY_2}  # by the channels of their latents


def check_decodable(shape: tuple[int, ...], vae) -> None:
    """Raises Refusal for latents (B, C, h, w), or with an axis for frames (B, C, T, h, w), that this VAE cannot
    decode."""
    family, channels, scale = family_of(vae), vae.latent_channels, vae.spacial_compression_decode()
    other = FAMILIES.get(shape[1]) if len(shape) in (4, 5) else None
    if other not in (None, family):
        raise Refusal("vae_latent_family", "The latent has {channels} channels, as those of Qwen-Image {other} have, "
                      "but this VAE is that of Qwen-Image {family}. Connect the VAE of Qwen-Image {other}.",
                      channels=shape[1], other=other, family=family)
    if 0 in shape or shape[1:2] != (channels,) or len(shape) not in ((4, 5) if family == FAMILY_1 else (4,)):
        raise Refusal("vae_latent_shape", "The latent has shape {shape}; this VAE decodes [batch, {channels}, "
                      "height/{scale}, width/{scale}].", shape=str(list(shape)), channels=channels, scale=scale)


def cropped(image: torch.Tensor, multiple: int) -> tuple[torch.Tensor, str | None]:
    """The middle of IMAGE (B, H, W, C) with sides that are multiples, and what was cut off in words."""
    height, width = image.shape[1:3]
    rows, columns = height // multiple * multiple, width // multiple * multiple
    if not rows or not columns:
        raise Refusal("image_small", "The image is {width} x {height}; the minimum is {multiple} x {multiple} pixels.",
                      width=width, height=height, multiple=multiple)
    if (rows, columns) == (height, width):
        return image, None
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[:, top:top + rows, left:left + columns], Message(
        "image_cropped", "Center-cropped from {before} to {after}: the model works in blocks of {multiple} pixels.",
        before=f"{width} x {height}", after=f"{columns} x {rows}", multiple=multiple)


class QwenImage2VAEEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2VAEEncode",
            display_name="VAE Encode (Qwen-Image 2)",
            category=categories.LATENT,
            description="Encodes an image, transparency included, for image-to-image.",
            search_aliases=["vae encode", "image to latent", "rgba encode", "img2img"],
            inputs=[
                io.Image.Input("image", tooltip="RGB or RGBA, any size; cropped to multiples of 32 pixels."),
                io.Vae.Input("vae", tooltip="From Load Qwen-Image 2 or Load VAE (Qwen-Image 2)."),
                io.Mask.Input("alpha", optional=True,
                              tooltip="Transparency as Load Image outputs it: 1 is transparent. Without it an RGB "
                                      "image is opaque and an RGBA image keeps its own."),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(cls, image, vae, alpha=None):
        check_vae(vae)
        check_images(image)
        shown = image if alpha is None else with_alpha(image, alpha)
        # The transformers of both families take two latents at a time along each side.
        pixels, note = cropped(as_vae_takes(shown, vae), 2 * vae.spacial_compression_encode())
        return io.NodeOutput({"samples": encode_images(vae, pixels)}, ui=notify(cls, note))


class QwenImage2VAEDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2VAEDecode",
            display_name="VAE Decode (Qwen-Image 2)",
            category=categories.LATENT,
            description="Decodes to an RGB image, the RGBA image and its transparency.",
            search_aliases=["vae decode", "latent to image", "rgba decode", "alpha", "transparent"],
            inputs=[
                io.Latent.Input("samples", tooltip="From the sampler."),
                io.Vae.Input("vae", tooltip="From Load Qwen-Image 2 or Load VAE (Qwen-Image 2)."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="RGB without transparency: works with every node."),
                io.Image.Output(display_name="rgba", tooltip="With the model's transparency. Save it as PNG."),
                io.Mask.Output(display_name="alpha", tooltip="Transparency as ComfyUI counts it: 1 is transparent. For "
                                                             "Join Image with Alpha."),
            ],
        )

    @classmethod
    def execute(cls, samples, vae):
        check_vae(vae)
        latent = samples["samples"]
        check_decodable(latent.shape, vae)
        show(cls, note := not_finite_note(latent))  # before the work
        rgba = with_alpha(decode_images(vae, latent))
        return io.NodeOutput(rgba[..., :3], rgba, 1 - rgba[..., 3], ui=notify(cls, note))
