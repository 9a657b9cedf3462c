"""What nodes that read images have in common: what is asked of the reader, and what the page shows of its answer."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from comfy_api.latest import io, ui
from numpy import ndarray

from ...messages import Message, count_more
from ...pages import compare, ocr, placement, report
from ...pages.layout import Layout
from ..bridge.progress import loading_progress
from .checks import UNCONNECTED
from .layouts import as_layout

# The key of what js/text_check.js shows in the node's `ui` output: one entry for each image.
CHECKS = "qwen_image_2_text_check"
ANY_CANVAS = 1024  # pixels, of core's elements: boxes are shares of it, and only the shares are asked for
MAX_NAMED = 10  # lines that a note names one by one


@dataclass(frozen=True)
class Asked:
    """Which lines images must show, by which rules and, with a layout, where."""

    lines: list[str]
    rules: compare.Rules
    layout: Layout | None = None

    @classmethod
    def of(cls, expected_text: str, layout, match_case: bool, match_punctuation: bool, tolerance: float,
           allow_extra: bool) -> Asked:
        """layout: as it is connected, or None. Raises Refusal where nothing is expected, or nothing can be read
        here."""
        page = None if layout is None else as_layout(layout, ANY_CANVAS, ANY_CANVAS)
        lines = compare.expected_lines(expected_text if page is None else placement.texts_of(page))
        ocr.require()
        return cls(lines, compare.Rules(match_case, match_punctuation, tolerance, allow_extra, ocr.known_characters()),
                   page)

    def places(self, width: int, height: int) -> list[placement.Place]:
        """Of each line, on an image of this size; none without a layout."""
        return placement.places_of(self.layout, self.lines, width, height) if self.layout else []

    def check(self, image: ndarray, between: Callable[[], None] = lambda: None) -> compare.Comparison:
        """image: (H, W, 3 or 4), 8 bits; between: see ocr.check."""
        return ocr.check(image, self.lines, self.rules, between, self.places(image.shape[1], image.shape[0]))


def check_asked(expected_text: str | None, layout: object) -> None:
    """Before anything runs: None is what is linked, UNCONNECTED a layout that is not."""
    ocr.require()
    if layout is UNCONNECTED and expected_text is not None:
        compare.expected_lines(expected_text)


def for_the_page(image: torch.Tensor, found: list[compare.Comparison]) -> dict:
    """The images (IMAGE), as files in ComfyUI's temporary folder, and what was found in each.

    One file after the other: sixty-four large ones take a minute, and cancelling stops between them.
    """
    progress, files = loading_progress(len(image)), []
    for number in range(len(image)):
        progress(number, len(image))
        files += ui.ImageSaveHelper.save_images(image[number:number + 1], "qwen-image-2-text-check",
                                                io.FolderType.temp, None, compress_level=1)
    height, width = image.shape[1:3]
    return {CHECKS: [{"file": file, "width": width, "height": height, "passed": one.passed,
                      "rows": report.rows(one)} for file, one in zip(files, found, strict=True)]}


def unreadable_note(asked: Asked) -> str | None:
    unknown = [number for number, line in enumerate(asked.lines, start=1)
               if compare.unreadable(line, asked.rules)]
    if not unknown:
        return None
    more = [count_more(len(unknown) - MAX_NAMED)] if len(unknown) > MAX_NAMED else []
    return Message("lines_unjudged", "Not judged: the OCR model does not read the script of the expected lines "
                   "{numbers}.", numbers=[*map(str, unknown[:MAX_NAMED]), *more])
