"""The words of a picture that was drawn again: read before and after, and put back where they were lost."""
from collections.abc import Callable

import torch
from comfy.model_management import throw_exception_if_processing_interrupted

from ...messages import Message
from ...model.images.boxes import Box
from ...model.images.regions import feathered, put_back
from ...pages import compare, ocr
from ...pages.survival import Survival, around, in_words
from .images import eight_bits

FEATHER = 8  # pixels


def with_words(image: torch.Tensor, source: torch.Tensor, lines: list[str],
               seen: Callable[[compare.Comparison], None] = lambda found: None) -> tuple[torch.Tensor, Message]:
    """IMAGE (1, H, W, C) with the lines of the source (of the same size) that are wrong in it put back, and what became
    of all lines. Both are of one size and nothing moved, so what is put back is where it was. seen: takes every look,
    that of the source first."""
    rules = compare.Rules(allow_extra=True, known=ocr.known_characters())
    survival = Survival(*(_read(each, lines, rules) for each in (source, image)))
    seen(survival.before)
    seen(survival.after)
    if not survival.lost:
        return image, in_words(survival, survival.after)
    height, width = image.shape[1:3]
    mask = torch.zeros(1, height, width)
    for box in around(survival.lost, width, height):
        mask[:, box.top:box.bottom, box.left:box.right] = 1
    image = put_back(image, source[..., :image.shape[-1]], feathered(mask, FEATHER), Box(0, 0, width, height))
    again = _read(image, lines, rules)
    seen(again)
    return image, in_words(survival, again)


def _read(image: torch.Tensor, lines: list[str], rules: compare.Rules) -> compare.Comparison:
    return ocr.check(eight_bits(image)[0], lines, rules, throw_exception_if_processing_interrupted)
