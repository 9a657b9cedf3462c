"""Editing a part of a picture: where to cut, how the mask fades, how the part goes back.

The promise: a pixel where the soft mask is 0 leaves with the very bits it came with.

Shapes: B batch, H x W pixels, C channels. Masks are (B, H, W) in [0, 1], 1 where the picture may change.
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


def fit_mask(mask: Tensor, images: int, height: int, width: int) -> Tensor:
    """A mask (H', W') or (B', H', W') -> (images, height, width), stretched and repeated where that is meant.

    Raises ValueError for masks that say nothing usable.
    """
    mask = mask.unsqueeze(0) if mask.ndim == 2 else mask
    if len(mask) not in (1, images):
        raise Refusal("mask_count", "There are {masks} masks for {images} pictures: give one, or one for each.",
                      masks=len(mask), images=images)
    if not torch.isfinite(mask).all() or mask.min() < 0 or mask.max() > 1:
        raise Refusal("mask_range", "The mask holds values outside 0 to 1.")
    if mask.shape[1:] != (height, width):
        mask = F.interpolate(mask.unsqueeze(1).float(), (height, width), mode="bilinear").squeeze(1)
    if not mask.any():
        raise Refusal("mask_empty", "The mask is empty: paint what the edit may change, or load a PNG that is "
                      "transparent there.")
    return mask.expand(images, -1, -1)


def feathered(mask: Tensor, pixels: int) -> Tensor:
    """The mask, fading to 0 over so many pixels outside of it, linearly with the distance."""
    if pixels == 0:
        return mask
    far = np.stack([ndimage.distance_transform_edt(m == 0) for m in mask.cpu().numpy()])
    ramp = torch.from_numpy(1 - far / (pixels + 1)).clamp(min=0).to(mask)
    return torch.maximum(mask, ramp)


def box_around(mask: Tensor, context: float) -> Box:
    """The smallest box around everything above 0 in any of the masks, with `context` times its longer side as margin.

    context 0.5 adds half of that on every side, as far as the picture reaches.
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

    An RGBA picture keeps its transparency, inside the mask too where the part is RGB.
    """
    if len(part) != len(image):
        raise Refusal("edited_parts", "There are {parts} edited parts for {images} pictures: they must be as many.",
                      parts=len(part), images=len(image))
    fitted = torch.cat([resize(p, box.width, box.height) for p in part]).to(image)  # (B, h, w, 4)
    before, weight = cut(image, box), cut(mask, box).unsqueeze(-1).to(image)
    if image.shape[-1] == 4 and part.shape[-1] == 3:
        fitted[..., 3] = before[..., 3]
    after = before + (fitted[..., :image.shape[-1]] - before) * weight
    out = image.clone()
    out[:, box.top:box.bottom, box.left:box.right] = torch.where(weight > 0, after, before)
    return out


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
