"""A page as data: a canvas, and boxes with a text, a place and how its letters look.

The same layout writes the prompt's words for places (places.py), draws the typeset page (typeset.py) and says where the
words must be found. Rules make one of a brief (arrangement.py); people and programs write one as JSON, or draw one in
core's Create Bounding Boxes.
"""
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np

from ..messages import Message, Refusal, and_list, count_more
from ..model.images import sizes
from .briefs import DESCRIPTIONS, Brief
from .vocabulary import ENGLISH

MAX_BOXES = 500
MAX_CHARACTERS = 10_000  # of all texts together; a prompt holds a tenth of that
MAX_JSON = 2 ** 20       # characters: 500 boxes with all fields take a quarter of that
DIGITS = 5               # of places and sizes: a hundredth of a pixel, and what is written is read again as it was
ELEMENT_GRID = 1000      # core's elements count in thousandths of the canvas
SMALLEST = 0.001         # share of the canvas, of a box's width and height
BEYOND = 0.002           # that a box may reach over the edge: what rounding does
NAMED = 4                # boxes that a message names one by one

WEIGHTS = ("regular", "bold")
ALIGNMENTS = ("start", "left", "centre", "right")
HORIZONTAL, LEFT_TO_RIGHT, RIGHT_TO_LEFT, VERTICAL = "auto", "left to right", "right to left", "vertical"
DIRECTIONS = (HORIZONTAL, LEFT_TO_RIGHT, RIGHT_TO_LEFT, VERTICAL)


@dataclass(frozen=True)
class Box:
    """One text of the page, or one part of it that is drawn. Places are shares of the canvas, from its top left."""

    name: str  # what edits and messages call it; no other box of the layout has it
    role: str  # key of a Language: title, body, picture
    text: str  # verbatim, lines separated by \n; of a picture, panel or icon a description
    x: float
    y: float
    w: float
    h: float
    size: float = 0.03  # of its letters (1 em), as a share of the canvas's height; smaller where the text needs it
    font: str = ""  # a name from the menu of fonts; empty: the page's
    weight: str = "regular"
    colour: str = ""  # #rrggbb, or a word; empty: black
    alignment: str = "start"  # start: left, or right where the text runs from right to left
    direction: str = HORIZONTAL  # auto: as its first letter runs
    columns: int = 1
    number: int = 0  # of the bullet point, data point or panel
    by: str = ""  # who says it

    @property
    def literal(self) -> bool:
        """Whether its text stands on the page; else it describes what does."""
        return self.role not in DESCRIPTIONS

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom on a canvas of this size, inside of it."""
        left, top = round(self.x * width), round(self.y * height)
        right, bottom = round((self.x + self.w) * width), round((self.y + self.h) * height)
        return max(0, left), max(0, top), min(width, max(right, left + 1)), min(height, max(bottom, top + 1))


@dataclass(frozen=True)
class Layout:
    width: int  # pixels
    height: int
    boxes: tuple[Box, ...]  # in reading order, what is behind others before them
    brief: Brief | None = field(default=None, compare=False, repr=False)  # that the rules made it of; not in the JSON

    def named(self, name: str) -> Box | None:
        return next((box for box in self.boxes if box.name == name), None)

    def to_json(self) -> str:
        """For files, for the page, and for `read`."""
        return json.dumps({"width": self.width, "height": self.height, "boxes": [_entry(box) for box in self.boxes]},
                          ensure_ascii=False, indent=1)


_DEFAULTS = {each.name: each.default for each in fields(Box)}


def _entry(box: Box) -> dict:
    """Without what is as usual."""
    values = {name: round(value, DIGITS) if isinstance(value, float) else value for name, value in asdict(box).items()}
    return {name: value for name, value in values.items() if value != _DEFAULTS[name]}


# ---------------------------------------------------------------- checks

def checked(layout: Layout) -> Layout:
    """The layout itself. Raises Refusal for boxes that nobody can draw."""
    sizes.check_size(layout.width, layout.height)
    if len(layout.boxes) > MAX_BOXES:
        raise _too_many(len(layout.boxes))
    names = [box.name for box in layout.boxes]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise Refusal("layout_names", "Two boxes of the layout are called {name}; edits would not know which. Give "
                      "each box its own name.", name=repr(twice[0]))
    characters = sum(len(box.text) for box in layout.boxes)
    if characters > MAX_CHARACTERS:
        raise Refusal("layout_long", "The texts of the layout have {count} characters; the maximum is {max}. Shorten "
                      "them.", count=f"{characters:,}", max=f"{MAX_CHARACTERS:,}")
    for box in layout.boxes:
        _check_box(box)
    return layout


def _too_many(count: int) -> Refusal:
    return Refusal("layout_boxes", "The layout has {count} boxes; a page takes at most {max}.", count=count,
                   max=MAX_BOXES)


def _check_box(box: Box) -> None:
    if box.w < SMALLEST or box.h < SMALLEST:
        raise Refusal("box_empty", "The box {name} is empty: {width} % wide and {height} % high. Give it a width and a "
                      "height.", name=repr(box.name), width=f"{100 * box.w:.4g}", height=f"{100 * box.h:.4g}")
    if min(box.x, box.y) < -BEYOND or max(box.x + box.w, box.y + box.h) > 1 + BEYOND:
        raise Refusal("box_outside", "The box {name} reaches over the edge of the page: it goes from {left} % to "
                      "{right} % across and from {top} % to {bottom} % down. Move it inside.", name=repr(box.name),
                      left=f"{100 * box.x:.4g}", right=f"{100 * (box.x + box.w):.4g}", top=f"{100 * box.y:.4g}",
                      bottom=f"{100 * (box.y + box.h):.4g}")
    for name, value, known in (("role", box.role, ENGLISH.roles), ("weight", box.weight, WEIGHTS),
                               ("alignment", box.alignment, ALIGNMENTS), ("direction", box.direction, DIRECTIONS)):
        if value not in known:
            raise Refusal("box_choice", "Box {box}: {value} is not allowed as {field}. Choose one of {known}.",
                          box=repr(box.name), field=name, value=repr(value), known=list(known))
    if not 0 < box.size <= 1 or not 1 <= box.columns <= 4 or not 0 <= box.number <= MAX_BOXES:
        raise Refusal("box_number", "The box {box} has size {size}, {columns} columns and number {number}; size is a "
                      "share of the height up to 1, columns 1 to 4.", box=repr(box.name), size=f"{box.size:.4g}",
                      columns=box.columns, number=box.number)


def overlapping(layout: Layout) -> list[tuple[Box, Box]]:
    """Pairs of text boxes that share a part of the page, nested ones among them."""
    boxes = [box for box in layout.boxes if box.literal and box.text.strip()]
    left, top, width, height = np.array([(box.x, box.y, box.w, box.h) for box in boxes]).reshape(-1, 4).T
    right, bottom = left + width - SMALLEST, top + height - SMALLEST
    shared = ((left[:, None] < right) & (left < right[:, None]) & (top[:, None] < bottom) & (top < bottom[:, None]))
    return [(boxes[one], boxes[other]) for one, other in np.argwhere(np.triu(shared, 1))]


def advice_on(layout: Layout) -> list[Message]:
    """What can be drawn, but hardly was meant."""
    notes = []
    if pairs := overlapping(layout):
        names = [Message("box_pair", "{one} and {other}", one=repr(one.name), other=repr(other.name))
                 for one, other in pairs[:NAMED]]
        notes.append(Message("boxes_overlap", "Text boxes overlap: {pairs}. Their letters run into each other; move "
                             "one.", pairs=[*names, *_more(len(pairs))]))
    if silent := [repr(box.name) for box in layout.boxes if box.literal and not box.text.strip()]:
        notes.append(Message("boxes_silent", "Boxes without text draw nothing: {names}.",
                             names=[*silent[:NAMED], *_more(len(silent))]))
    return notes


def _more(count: int) -> list[Message]:
    return [count_more(count - NAMED)] if count > NAMED else []


# ---------------------------------------------------------------- JSON

def read(text: str, width: int, height: int) -> Layout:
    """A layout from JSON: as `to_json` writes it, a list of boxes, or core's elements; the two lists say nothing of the
    canvas, which is width x height then. Raises Refusal."""
    value = _parsed(text)
    if isinstance(value, list):
        return from_list(value, width, height)
    if not isinstance(value, dict) or not isinstance(value.get("boxes"), list):
        raise Refusal("layout_json", 'This is no layout. Write an object with "width", "height" and "boxes", or a list '
                      "of boxes.")
    sides = [value.get(side, other) for side, other in (("width", width), ("height", height))]
    if not all(type(side) is int and abs(side) < 10 ** 6 for side in sides):
        raise Refusal("layout_sides", "The layout's width and height must be whole numbers of pixels.")
    return from_list(value["boxes"], *sides)


def from_list(entries: Sequence, width: int, height: int) -> Layout:
    """A layout from a list of boxes, each an object, or of core's elements. Raises Refusal."""
    if len(entries) > MAX_BOXES:
        raise _too_many(len(entries))
    if any(isinstance(entry, dict) and "bbox" in entry for entry in entries):
        return checked(Layout(width, height, tuple(_elements(entries))))
    return checked(Layout(width, height, tuple(_new_box(entry, number)
                                               for number, entry in enumerate(entries, start=1))))


def _parsed(text: str) -> object:
    if len(text) > MAX_JSON:
        raise Refusal("layout_json_long", "The layout's JSON has {count} characters; the maximum is {max}.",
                      count=f"{len(text):,}", max=f"{MAX_JSON:,}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise Refusal("layout_not_json", "The layout is not valid JSON (line {line}).", line=line) from error


def _values(entry: object, name: str) -> dict:
    """The fields of a box that an entry gives, each of its own type."""
    if not isinstance(entry, dict):
        raise Refusal("box_object", "Box {name} of the layout is not an object with fields such as text, x, y, w and "
                      "h.", name=name)
    values: dict[str, str | int | float] = {}
    for key, value in entry.items():
        wanted = Box.__annotations__.get(key)
        if wanted is float and type(value) in (int, float) and abs(value) < 10 ** 9 and math.isfinite(value):
            values[key] = float(value)
        elif (wanted is str and isinstance(value, str)) or (wanted is int and type(value) is int):
            values[key] = value
        else:
            raise Refusal("box_field", "Box {name} of the layout has an invalid value for {field}. Its fields are "
                          "{known}.", name=name, field=repr(key), known=list(_DEFAULTS))
    return values


def _new_box(entry: object, number: int) -> Box:
    values = {"name": f"box {number}", "role": "text", "text": ""} | _values(entry, str(number))
    if lacking := [side for side in "xywh" if side not in values]:
        raise Refusal("box_sides", "The box {name} lacks {fields}: its place and size as shares of the page, from 0 to "
                      "1.", name=repr(values["name"]), fields=lacking)
    return Box(**values)


def _elements(entries: Sequence) -> list[Box]:
    """Core's elements: {"type": "text" or "obj", "bbox": [top, left, bottom, right] in thousandths, "text", "desc",
    "color_palette"}. Source: ComfyUI, comfy_extras/nodes_bounding_boxes.py."""
    boxes: list[Box] = []
    for number, entry in enumerate(entries, start=1):
        sides = entry.get("bbox") if isinstance(entry, dict) else None
        if not isinstance(sides, list | tuple) or len(sides) != 4 or not all(
                type(side) in (int, float) and math.isfinite(side) for side in sides):
            raise Refusal("element_bbox", 'Element {number} has no "bbox" of four numbers (top, left, bottom, right), '
                          "as Create Bounding Boxes gives it.", number=number)
        top, left, bottom, right = (side / ELEMENT_GRID for side in sides)
        height, lettered = abs(bottom - top), entry.get("type") == "text"
        text, palette = entry.get("text" if lettered else "desc"), entry.get("color_palette")
        text = text if isinstance(text, str) else ""
        colour = palette[0] if lettered and isinstance(palette, list) and palette else ""
        role = "text" if lettered else "picture"
        boxes.append(Box(f"{role} {number}", role, text, min(left, right), min(top, bottom), abs(right - left), height,
                         size=max(SMALLEST, height / (1.4 * (text.count("\n") + 1))),
                         colour=colour if isinstance(colour, str) else "", number=number))
    return boxes


# ---------------------------------------------------------------- edits

def edited(layout: Layout, text: str) -> tuple[Layout, list[Message]]:
    """The layout with what somebody has changed on the page: JSON as of a layout, whose boxes name those they stand
    for and give only what is other than before; a box with a new name and a whole place is added.

    Also says which changes have no box any more: the texts may have changed since. Raises Refusal.
    """
    value = _parsed(text) if text.strip() else []
    entries = value.get("boxes") if isinstance(value, dict) else value
    if not isinstance(entries, list):
        raise Refusal("edits_json", 'The changed boxes must be a list, or an object with "boxes".')
    if len(entries) > MAX_BOXES:
        raise _too_many(len(entries))
    boxes, lost = {box.name: box for box in layout.boxes}, []
    for number, entry in enumerate(entries, start=1):
        values = _values(entry, str(number))
        name = values.get("name", f"box {number}")
        if name in boxes:
            boxes[name] = replace(boxes[name], **values)
        elif {"x", "y", "w", "h"} <= set(values) and values.get("text"):
            boxes[name] = _new_box(entry, number)
        else:
            lost.append(repr(name))
    gone = [Message("edits_lost", "Changes of boxes that are not in this layout are left out: {names}.",
                    names=and_list([*lost[:NAMED], *_more(len(lost))]))] if lost else []
    return checked(replace(layout, boxes=tuple(boxes.values()))), gone
