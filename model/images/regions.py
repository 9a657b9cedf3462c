"""Editing a part of an image: where to cut, how the mask fades, how the part goes back.

The promise: a pixel where the soft mask is 0 leaves with the very bits it came with.

Shapes: B batch, H x W pixels, C channels. Masks are (B, H, W) in [0, 1], 1 where the image may change. One image
serves several masks and several edited parts; one mask serves several images.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ...messages import Refusal
from .boxes import Box
from .references import resize

# Fainter values are what scaling and compression leave behind. They would count as mask, and a single one in a corner
# would make the whole image the region.
FAINTEST = 8 / 255
# How far a mask may lie outside 0 to 1: bicubic scaling overshoots. Half-way between two pixels its weights
# (-0.094, 0.594, 0.594, -0.094 in PyTorch) have the absolute sum 1.375, over both axes 1.89, so that a mask in [0, 1]
# stays in [-0.445, 1.445].
OVERSHOOT = 0.45


def as_masks(mask: Tensor) -> Tensor:
    """A mask (H, W), (B, H, W) or (B, 1, H, W), of numbers or bool -> (B, H, W), fp32, in [0, 1].

    Raises Refusal for what is no mask; what lies a little outside of 0 to 1 is clamped.
    """
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask.squeeze(1)
    if mask.ndim not in (2, 3) or not mask.numel():
        raise Refusal("mask_shape", "The mask has shape {shape}; expected [height, width] or [batch, height, width], "
                      "not empty. Core's Convert Image to Mask converts an image.",
                      shape=str(list(mask.shape)))
    mask = mask.reshape(-1, *mask.shape[-2:]).float()
    if not torch.isfinite(mask).all() or mask.min() < -OVERSHOOT or mask.max() > 1 + OVERSHOOT:
        raise Refusal("mask_range", "The mask contains values outside 0 to 1. Normalize it, or make a new one.")
    return mask.clamp(0, 1)


def fit_mask(mask: Tensor, images: int, height: int, width: int) -> Tensor:
    """A mask, see as_masks -> (B, height, width), stretched, and 0 where it is fainter than FAINTEST.

    B: the number of masks where there is one image, else that of the images.
    Raises Refusal for masks that say nothing usable.
    """
    mask = as_masks(mask)
    check_mask_count(len(mask), images)
    if mask.shape[1:] != (height, width):
        mask = F.interpolate(mask.unsqueeze(1), (height, width), mode="bilinear").squeeze(1)
    mask = torch.where(mask < FAINTEST, 0, mask)
    if not mask.any():
        raise Refusal("mask_empty", "The mask is empty (values below {faintest} do not count). Paint what the edit may "
                      "change, or load a PNG that is transparent there.", faintest=f"{FAINTEST:.2f}")
    return mask.expand(max(images, len(mask)), -1, -1)


def check_mask_count(masks: int, images: int) -> None:
    """Raises Refusal where it cannot be said which mask is whose."""
    if masks != images and 1 not in (masks, images):
        raise Refusal("mask_count", "Got {masks} masks for {images} images: connect one mask for all, one per image, "
                      "or several for one image. Get Image from Batch takes single images out of a batch, Repeat Image "
                      "Batch repeats them.", masks=masks, images=images)


def feathered(mask: Tensor, pixels: int) -> Tensor:
    """The mask, fading to 0 over so many pixels outside of it, linearly with the distance between pixels' centres.

    What is nearer than pixels + 1 belongs to the feather: with 1 the four neighbours of a pixel get 0.5, the diagonal
    ones, 1.41 away, 0.29.
    """
    if pixels == 0:
        return mask
    far = np.stack([ndimage.distance_transform_edt(m == 0) for m in mask.cpu().numpy()])
    ramp = torch.from_numpy(1 - far / (pixels + 1)).clamp(min=0).to(mask)
    return torch.maximum(mask, ramp)


def box_around(mask: Tensor, context: float) -> Box:
    """The smallest box around everything above 0 in any of the masks, with `context` times its longer side as margin.

    context 0.5 adds half of that on every side, as far as the image reaches.
    """
    seen = mask.amax(0) > 0
    rows, columns = torch.nonzero(seen.any(1)).flatten(), torch.nonzero(seen.any(0)).flatten()
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    margin = math.ceil(context * max(bottom - top, right - left))
    height, width = seen.shape
    return Box(max(0, left - margin), max(0, top - margin), min(width, right + margin), min(height, bottom + margin))


def cut(image: Tensor, box: Box) -> Tensor:
    """The box of IMAGE (B, H, W, C) or mask (B, H, W)."""
    return image[:, box.top:box.bottom, box.left:box.right]


def put_back(image: Tensor, part: Tensor, mask: Tensor, box: Box) -> Tensor:
    """Blend `part` (B, h, w, 3 or 4; any size, it is resized to the box) into IMAGE by the soft mask (B, H, W).

    One image takes several parts, and several masks; one mask serves several images. The result has as many
    images as there are of the most. An RGBA image keeps its transparency, inside the mask too where the part is
    RGB. Raises Refusal where it cannot be said which part belongs to which image or mask.
    """
    check_parts(len(part), len(image), len(mask))
    image = image.expand(max(len(part), len(image), len(mask)), -1, -1, -1)
    fitted = torch.cat([resize(p, box.width, box.height) for p in part]).to(image)  # (B, h, w, 4)
    before, weight = cut(image, box), cut(mask, box).unsqueeze(-1).to(image)
    fitted = fitted.expand(len(image), -1, -1, -1)
    if image.shape[-1] == 4 and part.shape[-1] == 3:
        fitted = torch.cat([fitted[..., :3], before[..., 3:]], -1)
    after = before + (fitted[..., :image.shape[-1]] - before) * weight
    out = image.clone()
    out[:, box.top:box.bottom, box.left:box.right] = torch.where(weight > 0, after, before)
    return out


def check_parts(parts: int, images: int, masks: int) -> None:
    """Raises Refusal where it cannot be said which part is whose. One part for several images is refused: it is what
    an edit makes that has taken the images of a batch for its references, and belongs to one of them."""
    if parts != images and images != 1:
        raise Refusal("edited_parts", "Got {parts} edited crops for {images} images; the counts must match, or there "
                      "must be one image for all. To edit the images of a batch one by one, put core's Rebatch Images "
                      "with batch size 1 before Crop for Edit (Qwen-Image 2).", parts=parts, images=images)
    if parts != masks and 1 not in (parts, masks):
        raise Refusal("edited_masks", "Got {parts} edited crops for {masks} masks of one image; the counts must match, "
                      "or there must be one crop for all. Set Batch size of Encode Edit to {masks}.", parts=parts,
                      masks=masks)


def extended(image: Tensor, left: int, top: int, right: int, bottom: int) -> tuple[Tensor, Tensor]:
    """IMAGE (B, H, W, C) on a larger canvas, the new area mirrored, and the mask (B, H', W') that is 1 there."""
    height, width = image.shape[1:3]
    columns = _mirrored(-left, width + right, width)
    rows = _mirrored(-top, height + bottom, height)
    mask = torch.ones(len(image), len(rows), len(columns), device=image.device)
    mask[:, top:top + height, left:left + width] = 0
    return image[:, rows][:, :, columns], mask


def _mirrored(start: int, end: int, length: int) -> Tensor:
    """Positions start ... end - 1 reflected into [0, length), as often as it takes; edge pixels are not repeated."""
    period = max(1, 2 * (length - 1))
    position = torch.arange(start, end) % period
    return torch.minimum(position, period - position).clamp(max=length - 1)
