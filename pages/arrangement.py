"""Rules by which a brief becomes a layout: where each of its texts stands, inside safe margins and in reading order.

What stands here agrees with the words for places in the prompt (briefs.py): a title that the prompt puts at the top is
at the top. Two text boxes never overlap; texts may lie over the picture.
"""
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .briefs import Brief, Element
from .layout import DIGITS, Box, Layout

MARGIN = 0.05  # of the shorter side, kept free of text on each edge
GAP = 0.02     # of the shorter side, between boxes
# 1 em of each size in the vocabulary, as a share of the side of the square with the canvas's area: 174, 86, 57 and 41
# pixels at 2048.
SIZES = {"huge": 0.085, "large": 0.042, "medium": 0.028, "small": 0.02}
SHRINK, SMALLEST_EM = 0.92, 0.004
LINE = 1.45  # height of a line in ems: what the tallest of the shipped fonts needs
WIDE, NARROW = 1.0, 0.62  # mean width of a Chinese and of a Latin letter in ems; bold ones reach that
BOLD = ("title", "action", "value", "sound")
HEADING = ("title", "subtitle")
CENTRED = ("action", "value", "label", "speech", "caption", "sound", "footer", "source")
INSET = {"speech": 0.12, "caption": 0.06}  # of the shorter side: what a bubble keeps free inside
MAX_TEXT = 0.8  # of the height that texts take before they are set smaller, where there is a picture to leave room for


NARROW_WORD = re.compile(r"[^\s\u2e80-\ua4cf\uf900-\ufaff\uff00-\uff60]+")  # what no line is broken in


class Area(NamedTuple):
    """Shares of the canvas, as in a Box."""

    x: float
    y: float
    w: float
    h: float

    def columns(self, count: int, gap: float) -> list["Area"]:
        width = (self.w - gap * (count - 1)) / count
        return [self._replace(x=self.x + number * (width + gap), w=width) for number in range(count)]

    def rows(self, count: int, gap: float) -> list["Area"]:
        height = (self.h - gap * (count - 1)) / count
        return [self._replace(y=self.y + number * (height + gap), h=height) for number in range(count)]

    def top(self, height: float) -> "Area":
        return self._replace(h=height)

    def bottom(self, height: float) -> "Area":
        return self._replace(y=self.y + self.h - height, h=height)

    def without_top(self, height: float) -> "Area":
        taken = min(height, self.h * 0.95)
        return self._replace(y=self.y + taken, h=self.h - taken)

    def without_bottom(self, height: float) -> "Area":
        return self._replace(h=self.h - min(height, self.h * 0.95))


PAGE = Area(0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Canvas:
    width: int
    height: int

    @property
    def side(self) -> float:
        return math.sqrt(self.width * self.height)

    @property
    def safe(self) -> Area:
        across, down = (MARGIN * min(self.width, self.height) / side for side in (self.width, self.height))
        return Area(across, down, 1 - 2 * across, 1 - 2 * down)

    @property
    def across(self) -> float:
        """The gap between boxes as a share of the width."""
        return GAP * min(self.width, self.height) / self.width

    @property
    def down(self) -> float:
        return GAP * min(self.width, self.height) / self.height

    def em(self, element: Element) -> float:
        """As a share of the canvas's height."""
        return SIZES[element.size] * self.side / self.height

    def lines(self, text: str, em: float, width: float) -> int:
        """How many lines a text takes in letters of em (share of the height) on a width (share of the width)."""
        letters = width * self.width / (em * self.height)
        return sum(max(1, math.ceil(ems(line) / max(letters * 0.92, 0.1))) for line in text.split("\n"))

    def height_of(self, element: Element, width: float, columns: int = 1) -> float:
        """The height that an element's text asks for."""
        em = self.em(element)
        return math.ceil(self.lines(element.text, em, width / columns) / columns) * LINE * em * 1.05

    def fitting_em(self, element: Element, area: Area, columns: int = 1) -> float:
        """The size of letters with which the text fits its area, by how wide letters are on average."""
        em = self.em(element)
        inner = 1 - 2 * INSET.get(element.role, 0.0)
        longest = max((ems(word) for word in NARROW_WORD.findall(element.text)), default=WIDE)
        while em > SMALLEST_EM and (
                math.ceil(self.lines(element.text, em, area.w * inner / columns) / columns) * LINE * em > area.h * inner
                or longest * em * self.height > area.w * inner * self.width / columns):
            em *= SHRINK
        return em


def ems(text: str) -> float:
    """About how wide a line is."""
    return sum(WIDE if unicodedata.east_asian_width(character) in "WF" else NARROW for character in text)


def arranged(brief: Brief) -> Layout:
    """The layout of a brief. Every brief has one: texts that find little room are set smaller."""
    width, height = brief.page.pixels
    canvas, elements = Canvas(width, height), named(brief)
    rule = {"slide": _slide, "comic": _comic}.get(brief.kind, _infographic if brief.layout in (
        "grid", "timeline", "steps") else _poster)
    places = rule(brief, canvas)
    boxes = tuple(_box(name, element, places[name], brief, canvas) for name, element in elements if name in places)
    return Layout(width, height, tuple(sorted(boxes, key=lambda box: box.literal)), brief)


def named(brief: Brief) -> list[tuple[str, Element]]:
    """Each element with the name of its box: title, bullet 2, speech 1 (2)."""
    found: dict[str, Element] = {}
    for element in brief.elements:
        name = f"{element.role} {element.number}" if element.number and element.role != "body" else element.role
        same = sum(other == name or other.startswith(f"{name} (") for other in found)
        found[f"{name} ({same + 1})" if same else name] = element
    return list(found.items())


def _box(name: str, element: Element, area: Area, brief: Brief, canvas: Canvas) -> Box:
    columns = brief.columns if element.role == "body" and brief.layout == "columns" else 1
    size = canvas.fitting_em(element, area, columns) if element.literal else canvas.em(element)
    at_left = any(other.role == "title" and other.place in ("top left", "left side") for other in brief.elements)
    centred = element.role in CENTRED or (element.role in HEADING and area.w > 0.6 and not at_left)
    x, y, w, h = (round(side, DIGITS) for side in area)
    return Box(name, element.role, element.text, x, y, w, h, size=round(size, DIGITS),
               weight="bold" if element.role in BOLD else "regular",
               colour=element.colour, alignment="centre" if centred else "start", columns=columns,
               number=element.number, by=element.by)


# ---------------------------------------------------------------- parts of pages

Places = dict[str, Area]


class _Page:
    """A page that is being filled: takes rows from the top and from the bottom of what is free."""

    def __init__(self, brief: Brief, canvas: Canvas):
        self.canvas, self.free, self.places = canvas, canvas.safe, Places()
        self.elements = dict(named(brief))
        self.room = MAX_TEXT * canvas.safe.h

    def there(self, *names: str) -> list[str]:
        return [name for name in names if name in self.elements]

    def heights(self, names: Sequence[str], width: float, room: float, columns: int = 1) -> list[float]:
        """What these texts ask for, less for each where that is more than the room."""
        asked = [self.canvas.height_of(self.elements[name], width, columns if name == "body" else 1)
                 for name in names]
        gaps = self.canvas.down * len(names)
        scale = min(1.0, max(room - gaps, room * 0.5) / sum(asked)) if names else 1.0
        return [height * scale for height in asked]

    def stack(self, names: Sequence[str], area: Area, room: float, from_bottom: bool = False, columns: int = 1) -> Area:
        """Places them below each other in reading order at the top or the bottom of an area; what is left of it."""
        names = self.there(*names)
        heights = self.heights(names, area.w, min(room, area.h * 0.95), columns)
        gap = min(self.canvas.down, area.h * 0.05 / max(1, len(names)))
        for name, height in reversed([*zip(names, heights)]) if from_bottom else zip(names, heights):
            self.places[name] = area.bottom(height) if from_bottom else area.top(height)
            area = area.without_bottom(height + gap) if from_bottom else area.without_top(height + gap)
        return area


def _poster(brief: Brief, canvas: Canvas) -> Places:
    page = _Page(brief, canvas)
    rest = ("action", "footer")
    title = next((element.place for element in brief.elements if element.role == "title"), None)
    place = title or next((element.place for element in brief.elements if element.role == "subtitle"), "top")
    picture = next((element.place for element in brief.elements if element.role == "picture"), "")
    free = page.stack(rest, canvas.safe, 0.25 * canvas.safe.h, from_bottom=True)
    if place in ("left side", "right side"):
        left, right = free.columns(2, canvas.across)
        own, other = (left, right) if place == "left side" else (right, left)
        below = page.stack(HEADING, own, own.h * 0.6)
        page.stack(("body",), below, below.h, from_bottom=True, columns=brief.columns)
        page.places["picture"] = other
    elif place == "centre":
        title_height = sum(page.heights(page.there("title"), free.w, free.h * 0.3))
        below = page.stack(HEADING, free.without_top(max(0.0, 0.5 - free.y - title_height / 2)), free.h * 0.35)
        page.stack(("body",), below, below.h, columns=brief.columns)
        page.places["picture"] = PAGE
    elif place == "lower third":
        above = page.stack((*HEADING, "body"), free, free.h * 0.45, from_bottom=True, columns=brief.columns)
        page.places["picture"] = above
    else:
        below = page.stack(HEADING, free, free.h * 0.4)
        if picture == "frame":
            page.stack(("body",), below, below.h, columns=brief.columns)
            page.places["picture"] = PAGE
        else:
            room = below.h if not picture else below.h * 0.6
            page.places["picture"] = page.stack(("body",), below, room, from_bottom=True, columns=brief.columns)
    return page.places


def _slide(brief: Brief, canvas: Canvas) -> Places:
    page = _Page(brief, canvas)
    place = next((element.place for element in brief.elements if element.role in HEADING), "top")
    picture = next((element.place for element in brief.elements if element.role == "picture"), "")
    points = [name for name, element in page.elements.items() if element.role == "bullet"]
    free = page.stack(("footer",), canvas.safe, 0.1, from_bottom=True)
    left, right = free.columns(2, 2 * canvas.across)
    content = {"right half": (left, right), "left half": (right, left)}.get(picture, (free, PAGE))
    if place == "left side":
        below = page.stack(HEADING, left, left.h * 0.5)
        content = {"right half": (below, right), "left half": (right, below)}.get(picture, (right, PAGE))
    elif place == "lower third":
        above = page.stack(HEADING, free, free.h * 0.36, from_bottom=True)
        content = _cut_to(content[0], above), _cut_to(content[1], above)
    elif place == "centre":
        height = sum(page.heights(page.there("title"), free.w, free.h * 0.3))
        below = page.stack(HEADING, free.without_top(max(0.0, 0.5 - free.y - height / 2)), free.h * 0.35)
        content = _cut_to(content[0], below), _cut_to(content[1], below)
    else:
        below = page.stack(HEADING, free, free.h * 0.36)
        content = _cut_to(content[0], below), _cut_to(content[1], below)
    page.places["picture"] = PAGE if picture == "behind" else content[1]
    per_column = math.ceil(len(points) / brief.columns)
    for number, column in enumerate(content[0].columns(brief.columns, canvas.across) if points else ()):
        page.stack(points[number * per_column:(number + 1) * per_column], column, column.h)
    return page.places


def _cut_to(area: Area, rows: Area) -> Area:
    """An area between the top and the bottom of another one; the whole page stays what it is."""
    return area if area == PAGE else area._replace(y=rows.y, h=rows.h)


def _infographic(brief: Brief, canvas: Canvas) -> Places:
    page = _Page(brief, canvas)
    page.places["picture"] = PAGE
    free = page.stack(("action", "source"), canvas.safe, 0.22 * canvas.safe.h, from_bottom=True)
    free = page.stack(HEADING, free, free.h * 0.32)
    count = max((element.number for element in brief.elements), default=0)
    if not count:
        return page.places
    for number, cell in enumerate(_cells(brief, canvas, free, count), start=1):
        page.places |= _data_point(page, number, cell)
    return page.places


def _data_point(page: "_Page", number: int, cell: Area) -> Places:
    """Icon, figure and label below each other in the middle of their cell; the icon takes what the texts leave."""
    words, places = page.there(f"value {number}", f"label {number}"), Places()
    icon = page.there(f"icon {number}")
    heights = page.heights(words, cell.w, cell.h * (0.6 if icon else 1.0))
    spare = cell.h - sum(heights)
    heights = [*([spare * 0.75] if icon else []), *heights]
    cell = cell.without_top((cell.h - sum(heights)) / 2)
    for name, height in zip((*icon, *words), heights):
        places[name], cell = cell.top(height), cell.without_top(height)
    return places


def _cells(brief: Brief, canvas: Canvas, free: Area, count: int) -> list[Area]:
    """One for each data point, in reading order: of a grid row by row, else along the longer side."""
    if brief.layout == "grid":
        rows = free.rows(math.ceil(count / brief.columns), _gap(canvas.down, free.h, count))
        return [cell for row in rows for cell in row.columns(brief.columns, canvas.across)][:count]
    if canvas.width > canvas.height:
        return free.columns(count, _gap(canvas.across, free.w, count))
    return free.rows(count, _gap(canvas.down, free.h, count))


def _gap(gap: float, length: float, count: int) -> float:
    """Gaps take at most a fifth."""
    return min(gap, length * 0.2 / count)


def _comic(brief: Brief, canvas: Canvas) -> Places:
    page = _Page(brief, canvas)
    free = page.stack(("title",), canvas.safe, 0.15 * canvas.safe.h)
    count = max((element.number for element in brief.elements), default=0)
    if not count:
        return page.places
    rows = free.rows(math.ceil(count / brief.columns), _gap(canvas.down, free.h, count))
    panels = [cell for row in rows for cell in row.columns(brief.columns, canvas.across)]
    for number, panel in enumerate(panels[:count], start=1):
        page.places[f"panel {number}"] = panel
        spoken = [name for name, element in page.elements.items() if element.number == number and element.literal]
        page.places |= _bubbles(spoken, page.elements, panel)
    return page.places


def _bubbles(names: Sequence[str], elements: dict[str, Element], panel: Area) -> Places:
    """Captions across the panel, bubbles left and right in turn, each below the one before, sounds at the bottom."""
    inside = Area(panel.x + 0.05 * panel.w, panel.y + 0.05 * panel.h, 0.9 * panel.w, 0.9 * panel.h)
    ordered = [name for name in names if elements[name].role != "sound"]
    ordered += [name for name in names if elements[name].role == "sound"]
    step = min(0.3 * inside.h, inside.h / max(1, len(ordered)))
    places, speakers = Places(), [elements[name].by for name in ordered if elements[name].role == "speech"]
    sides = {by: number % 2 for number, by in enumerate(dict.fromkeys(speakers))}
    for number, name in enumerate(ordered):
        element, row = elements[name], inside._replace(y=inside.y + number * step, h=step * 0.88)
        if element.role == "sound":
            row = row._replace(y=inside.y + inside.h - (len(ordered) - number) * step)
        if element.role == "speech":
            row = row._replace(w=0.68 * inside.w, x=inside.x + (0.32 * inside.w if sides[element.by] else 0.0))
        places[name] = row
    return places
