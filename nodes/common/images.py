"""ComfyUI's IMAGE and LATENT as the nodes need them."""
import comfy.model_management
import comfy.utils
import numpy as np
import torch

from ...messages import Refusal
from ...model.images.references import MAX_REFERENCES, check_reference, over_white
from ...model.images.regions import as_masks, check_mask_count
from ...model.qwen_image_2.spec import VAESpec


def empty_latent(width: int, height: int, batch_size: int) -> dict:
    """LATENT of zeros (B, 64, height/16, width/16), as 2.x has them. It says its scale, by which samplers, core's
    included, give it the shape of their own model: (B, 16, 1, height/8, width/8) for 1.x."""
    scale = VAESpec().scale
    samples = torch.zeros((batch_size, VAESpec.latent_channels, height // scale, width // scale),
                          device=comfy.model_management.intermediate_device())
    return {"samples": samples, "downscale_ratio_spacial": scale}


def as_vae_takes(image: torch.Tensor, vae) -> torch.Tensor:
    """IMAGE (B, H, W, 3 or 4), over white where the VAE knows no transparency: that of Qwen-Image 1.x."""
    return over_white(image) if vae.output_channels == 3 else image


def with_alpha(image: torch.Tensor, alpha: torch.Tensor | None = None) -> torch.Tensor:
    """IMAGE (B, H, W, 3 or 4) -> (B, H, W, 4). alpha: ComfyUI's MASK, 1 is transparent; it wins over the image's. One
    image serves several masks, one mask several images."""
    if alpha is None:
        return image if image.shape[-1] == 4 else torch.cat([image[..., :3], torch.ones_like(image[..., :1])], -1)
    alpha = as_masks(alpha)
    check_mask_count(len(alpha), len(image))
    count, height, width = max(len(alpha), len(image)), *image.shape[1:3]
    mask = comfy.utils.common_upscale(alpha.unsqueeze(1).to(image), width, height, "bilinear", "disabled")
    opacity = 1 - mask.movedim(1, -1)
    return torch.cat([part.expand(count, -1, -1, -1) for part in (image[..., :3], opacity)], -1)


def check_images(image: torch.Tensor) -> None:
    """Raises Refusal for what is no IMAGE (B, H, W, 3 or 4). Any size and ratio will do: what a reference must be is
    asked of references alone."""
    check_channels(image)
    if 0 in image.shape:
        raise Refusal("image_empty", "The image is empty: its shape is {shape}.", shape=str(list(image.shape)))
    if not image.is_floating_point():
        raise Refusal("image_dtype", "The image has dtype {dtype}; this node expects floating-point values from 0 to "
                      "1, as core's Load Image outputs them.", dtype=str(image.dtype).removeprefix("torch."))
    if not torch.isfinite(image).all():
        raise Refusal("image_not_finite", "The image contains NaN or infinite values.")


def check_channels(image: torch.Tensor) -> None:
    """Raises Refusal for what is no batch of images; it may be empty."""
    if image.ndim != 4 or image.shape[-1] not in (3, 4):
        raise Refusal("image_channels", "The image has shape {shape}; this node accepts RGB and RGBA images.",
                      shape=str(list(image.shape)))


def eight_bits(image: torch.Tensor) -> np.ndarray:
    """IMAGE (B, H, W, 3 or 4) -> 8 bits. Raises Refusal for what is no image."""
    check_images(image)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def connected_references(images: dict | None) -> list[torch.Tensor]:
    """The connected references in order, every image of a batch as one of its own, each (H, W, C)."""
    connected = [image for image in (images or {}).values() if image is not None]
    for image in connected:
        if image.ndim != 4:
            raise Refusal("reference_shape", "A reference has shape {shape}; expected [batch, height, width, "
                          "channels], as core's Load Image outputs.", shape=str(list(image.shape)))
    references = [image for batch in connected for image in batch]
    if not references:
        raise Refusal("edit_no_reference", "No reference is connected. Connect the image to edit as Image 1.")
    if len(references) > MAX_REFERENCES:
        raise Refusal("edit_references", "Got {count} references (each image of a batch counts); Qwen-Image 2 takes at "
                      "most {max}. To edit the images of a batch one by one, put core's Rebatch Images with batch size "
                      "1 before this node.", count=len(references), max=MAX_REFERENCES)
    for number, reference in enumerate(references, start=1):
        check_reference(number, reference)
    return references
