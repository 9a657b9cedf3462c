"""Texts of a layout as texts, on a page whose picture is drawn: where each stands, and in which size and colour.

Both kinds of files take them from here: text boxes of a slide, and the words of a PDF.
"""
from collections.abc import Iterator
from dataclasses import dataclass

from ..messages import Refusal
from .arrangement import INSET
from .layout import Box, Layout
from .page_fonts import Fonts
from .shaping import runs_right_to_left
from .typeset import named_colour, preview

LINE = 1.36  # ems from line to line, of Noto Sans
SMALL = 64   # pixels: the sizes of letters do not depend on the picture's


@dataclass(frozen=True)
class Lettering:
    """One text of a page. Lengths in shares of the page's width and height."""

    role: str
    text: str
    x: float
    y: float
    width: float
    height: float
    em: float  # share of the page's height
    font: str  # empty: the built-in one
    bold: bool
    colour: tuple[int, int, int]
    alignment: str  # left, centre or right
    right_to_left: bool
    columns: int


def letterings(layout: Layout, across: float = 1.0, down: float = 1.0, fonts: Fonts | None = None
               ) -> Iterator[Lettering]:
    """The texts in reading order. across, down: the picture's sides in shares of the page, centred on it (deck.placed).
    """
    sizes = letter_sizes(layout, fonts or Fonts())
    for box in layout.boxes:
        if box.literal and box.text.strip():
            inset = INSET.get(box.role, 0.0)
            width, height = box.w * across * (1 - 2 * inset), box.h * down * (1 - 2 * inset)
            backward = runs_right_to_left(box.text)
            yield Lettering(
                box.role, box.text, 0.5 + (box.x - 0.5) * across + box.w * across * inset,
                0.5 + (box.y - 0.5) * down + box.h * down * inset, width, height,
                sizes.get(box.name, box.size * layout.height) / layout.height * down, box.font, box.weight == "bold",
                named_colour(box.colour), _alignment(box, backward), backward, box.columns)


def letter_sizes(layout: Layout, fonts: Fonts) -> dict[str, float]:
    """Pixels of the layout's canvas by the names of boxes: as large as each box takes, as on a typeset page. A text
    that cannot be set here, such as one in a script without a font, has the size of its box."""
    try:
        return preview(layout, fonts, SMALL).sizes
    except Refusal:
        return {}


def _alignment(box: Box, backward: bool) -> str:
    return box.alignment if box.alignment != "start" else "right" if backward else "left"
