"""A layout -> the brief whose prompt puts each text where its box is.

Where no box was moved this is the brief that the layout was made of, and its prompt the same to the letter.
"""
from dataclasses import replace

from .arrangement import SIZES, Canvas, arranged, named
from .briefs import Brief, Element, Page
from .layout import Box, Layout
from .vocabulary import ENGLISH
from .wording import write_unlettered

MOVED = 0.002  # share of the canvas: less is what rounding does
LONG = 0.6     # of a box's width or height: it has no left or right, no top or bottom
FIRST, LAST = 0.4, 0.6  # where the middle of a page begins and ends, for the middles of boxes
EDGE, EDGE_HEIGHT = 0.93, 0.1  # a line that ends below and is lower than this stands along the edge
RELATIVE = ("", "below title", "below it", "below centre")  # words for a place that follow from another box's
IN_PANEL = ("speech", "caption", "sound")  # their role says in which panel
BY_ROW = (("top left", "top", "top right"), ("left side", "centre", "right side"),
          ("lower left", "lower third", "lower right"))


def asked_for(layout: Layout, language: str = "English") -> Brief:
    """The brief to write the prompt of (wording.py). language: of a layout without a brief, which was drawn or read."""
    if layout.brief is None:
        return _of_boxes(layout, language)
    before = {box.name: box for box in arranged(layout.brief).boxes}
    now = {box.name: box for box in layout.boxes}
    moved = {name for name, box in now.items() if name in before and is_moved(before[name], box)}
    elements = [_placed(element, now.get(name), name in moved, bool(moved)) for name, element in named(layout.brief)]
    elements += [_element(box, layout) for box in layout.boxes if box.name not in before]
    # The sentence about all numbered elements together is no longer true of one that stands elsewhere.
    arrangement = "" if any(now[name].number for name in moved) else layout.brief.layout
    return replace(layout.brief, elements=tuple(elements), layout=arrangement)


def _placed(element: Element, box: Box | None, moved: bool, another_moved: bool) -> Element:
    """None: it has no box, such as the picture that all panels share."""
    if box is None:
        return element
    anew = moved or (another_moved and element.literal and element.place in RELATIVE and element.role not in IN_PANEL)
    return replace(element, place=place_of(box) if anew else element.place, text=box.text, colour=box.colour)


def is_moved(before: Box, now: Box) -> bool:
    return any(abs(one - other) > MOVED for one, other in zip((before.x, before.y, before.w, before.h),
                                                              (now.x, now.y, now.w, now.h)))


def place_of(box: Box) -> str:
    """Key of a Language: where the box is, in words."""
    across, down = box.x + box.w / 2, box.y + box.h / 2
    column = _third(across)
    if box.w >= LONG and box.h >= LONG:
        return "main area" if box.literal else "behind"
    if box.h >= LONG:
        return ("left half", "middle", "right half")[column]
    if box.h <= EDGE_HEIGHT and box.y + box.h >= EDGE and box.w >= LONG:
        return "lower edge"
    return BY_ROW[_third(down)][1 if box.w >= LONG else column]


def _third(middle: float) -> int:
    return 0 if middle < FIRST else 2 if middle > LAST else 1


def unlettered(layout: Layout) -> str:
    """The prompt of a layout that was made of a brief, without its texts but with room where their boxes are."""
    assert layout.brief is not None
    return write_unlettered(layout.brief, [place_of(box) for box in layout.boxes if box.literal and box.text.strip()])


def _of_boxes(layout: Layout, language: str) -> Brief:
    """A page of which nothing is known but its boxes."""
    page = Page(language, style="as described", palette="", aspect_ratio="custom", width=layout.width,
                height=layout.height)
    return Brief("page", page, tuple(_element(box, layout) for box in layout.boxes if box.text.strip()))


def _element(box: Box, layout: Layout) -> Element:
    side = Canvas(layout.width, layout.height).side
    size = min(SIZES, key=lambda name: abs(SIZES[name] - box.size * layout.height / side))
    text = box.text if box.literal else " ".join(box.text.split("\n"))
    assert box.role in ENGLISH.roles
    return Element(box.role, text, place_of(box), size, box.colour, box.number, box.by)
