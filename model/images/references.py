"""Rules of editing: what can be a reference, how it is resized, which canvas fails, which references a prompt names.

Source: diffusers 0.42.1, pipeline_qwenimage21.py. One resize serves text encoder and VAE, so that both see the very
same image; the canvas follows a reference, because any other canvas shifts the edit.
"""
import re
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...messages import Message, Refusal
from .sizes import MAX_RATIO

MAX_REFERENCES = 10
MAX_DIGITS = 9  # of a reference's number that are looked at

# An edit on this grid gives noise or a near-copy of a reference of the same size, in three independent
# implementations (ComfyUI issue 16435, diffusers issue 14824); 992 and 1056 are clean.
FAILING_SIDE, CLEAN_SIDE = 1024, 1056


def check_reference(number: int, image: Tensor) -> None:
    """Refuse an image (H, W, C) that cannot be a reference, by its number."""
    height, width, channels = image.shape
    if channels not in (3, 4):
        raise Refusal("reference_channels", "Reference {number} has {channels} channels; references are RGB or RGBA.",
                      number=number, channels=channels)
    if not height or not width:
        raise Refusal("reference_empty", "Reference {number} is empty ({width} x {height} pixels).", number=number,
                      width=width, height=height)
    if max(height, width) > MAX_RATIO * min(height, width):
        raise Refusal("reference_ratio", "Reference {number} is {width} x {height}: its longer side is more than {max} "
                      "times the shorter one. Crop it first.", number=number, width=width, height=height,
                      max=MAX_RATIO)
    if not image.is_floating_point():
        raise Refusal("reference_dtype", "Reference {number} has dtype {dtype}; references are floating-point values "
                      "from 0 to 1, as core's Load Image outputs them.", number=number,
                      dtype=str(image.dtype).removeprefix("torch."))
    if not torch.isfinite(image).all():
        raise Refusal("reference_not_finite", "Reference {number} contains NaN or infinite values.", number=number)


def resize(image: Tensor, width: int, height: int) -> Tensor:
    """Image (H, W, 3 or 4) in [0, 1] -> RGBA (1, height, width, 4), Lanczos in 8 bits as the reference does it."""
    values = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    rgba = Image.fromarray(values).convert("RGBA")  # of three or four channels
    resized = rgba.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(resized).astype(np.float32) / 255).unsqueeze(0)


def over_white(image: Tensor) -> Tensor:
    """IMAGE (B, H, W, 3 or 4) in [0, 1] -> RGB (B, H, W, 3), transparency composited over white, as in
    training."""
    if image.shape[-1] == 3:
        return image
    colour, alpha = image[..., :3], image[..., 3:4]
    return ((colour * alpha + (1 - alpha)) * 255).round() / 255  # in 8 bits, as the reference composes


def off_failing_grid(canvas: tuple[int, int], references: Sequence[tuple[int, int]]) -> bool:
    """Whether this canvas is the one that is known to fail with one of these reference sizes."""
    failing = (FAILING_SIDE, FAILING_SIDE)
    return canvas == failing and failing in references


def named_references(prompt: str, count: int) -> set[int]:
    """Numbers of the references that the prompt names as <image1>, ... Raises ValueError for one that is not there."""
    # Of a number without end the first digits tell enough; Python turns no more than 4,300 of them into a number.
    named = {int(digits.lstrip("0")[:MAX_DIGITS] or 0) for digits in re.findall(r"<image(\d+)>", prompt)}
    missing = sorted(number for number in named if not 1 <= number <= count)
    if missing:
        there = (Message("images_only_one", "only <image1>") if count == 1 else
                 Message("images_range", "<image1> to <image{count}>", count=count))
        raise Refusal("reference_unknown", "The prompt names <image{number}>, but the references are {references}.",
                      number=missing[0], references=there)
    return named


def check_no_image_token(prompt: str) -> None:
    """Refuse a prompt with an image token of its own: the text encoders would put a reference in its place."""
    if "<|image_pad|>" in prompt:
        raise Refusal("image_pad_token", "The prompt contains the token <|image_pad|>, which is reserved for reference "
                      "images. Remove it.")
