"""A layout set in real fonts: the page as a picture, the ink of its letters, and edges for a control network.

Texts are black on white unless their box has a colour that can be told from white: the page says where the words stand
and what their letters are; the colours of the picture are the prompt's.
"""
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from PIL import Image, ImageColor, ImageDraw

from ..messages import Message, Refusal, count_more
from . import glyphs, shaping
from .arrangement import INSET
from .layout import LEFT_TO_RIGHT, NAMED, RIGHT_TO_LEFT, VERTICAL, Box, Layout, advice_on
from .page_fonts import Fonts, without_emoji
from .shaping import Run, Token

GREY, WHITE = "grey", "white"
PICTURES = {GREY: (208, 208, 208), WHITE: (255, 255, 255)}
INK, PAPER = (0, 0, 0), (255, 255, 255)
MIN_CONTRAST = 60        # of 255, in brightness from the paper's: paler letters are set in black
MIN_EM = 0.002           # of the page's side, 4 pixels at 2048; what needs smaller letters is refused
STEPS = 9                # of the search for the largest size that fits: to 1 %
COLUMN_GAP = 1.2         # ems between columns of text
STROKE = 0.0025          # of the page's side, lines of panels and bubbles
BUBBLES, PANELS = ("speech", "caption"), ("panel",)
AREAS = ("picture", "icon")
WHOLE_PAGE = 0.9         # share of the page: a picture that fills it says nothing about places
# What the model draws at 2048, in pixels of 1 em: below, letters come out wrong (FIELD: reports on 2.x).
SMALLEST_DRAWN, SMALLEST_TRADITIONAL, AT = 20, 50, 2048
PREVIEW_SIDE = 768


@dataclass(frozen=True)
class Typeset:
    page: ndarray    # (H, W, 3), 8 bits
    ink: ndarray     # (H, W), 8 bits: 255 where letters are
    edges: ndarray   # (H, W), 8 bits: white lines on black
    sizes: dict[str, float]  # 1 em of each text box in pixels of the layout's canvas
    notes: tuple[Message, ...]


class Block(NamedTuple):
    """A box's text, broken into lines. Lengths in pixels of the layout's canvas."""

    lines: list[list[Token]]
    em: float
    above: float  # ems of the tallest font, above and below the line
    pitch: float  # ems from line to line
    vertical: bool
    right_to_left: bool


def typeset(layout: Layout, fonts: Fonts, picture: str = GREY, scale: float = 1.0) -> Typeset:
    """The page of a layout, scale times as large as its canvas. picture: how areas of pictures are filled, one of
    PICTURES. Raises Refusal for texts that cannot be set."""
    width, height = (max(1, round(side * scale)) for side in (layout.width, layout.height))
    page = Image.new("RGB", (width, height), PAPER)
    lines = Image.new("L", (width, height), 0)
    _draw_parts(layout, page, lines, picture)
    canvas, ink = np.array(page), np.zeros((height, width), np.uint8)
    sizes: dict[str, float] = {}
    emoji: list[str] = []
    for box in layout.boxes:
        if box.literal and (block := _block(box, layout, fonts, emoji)):
            sizes[box.name] = block.em
            _draw(box, block, canvas, ink, scale)
    notes = (*advice_on(layout), *_advice_on_sizes(layout, sizes), *_advice_on_emoji(emoji))
    return Typeset(canvas, ink, np.maximum(outline(ink), np.asarray(lines)), sizes, notes)


def preview(layout: Layout, fonts: Fonts, long_side: int = PREVIEW_SIDE, picture: str = GREY) -> Typeset:
    """The same page, its longer side at most so many pixels: what is shown while somebody types."""
    return typeset(layout, fonts, picture, min(1.0, long_side / max(layout.width, layout.height)))


# ---------------------------------------------------------------- texts -> lines

def _block(box: Box, layout: Layout, fonts: Fonts, emoji: list[str]) -> Block | None:
    """None for a box without text. Adds the emoji that it leaves out."""
    vertical, faces = box.direction == VERTICAL, fonts.faces(box.font, box.weight)
    lines = _clean(box.text, lambda character: fonts.face_for(character, faces) is not None, emoji)
    if not lines:
        return None
    backward = box.direction == RIGHT_TO_LEFT or (
        box.direction not in (VERTICAL, LEFT_TO_RIGHT) and shaping.runs_right_to_left(box.text))
    paragraphs = [shaping.tokens(line, faces, fonts, vertical, backward) for line in lines]
    used = {glyph.face for tokens in paragraphs for token in tokens for run in token.runs for glyph in run.glyphs}
    above, below = (max(part) for part in zip(*map(shaping.reach, used or faces[:1])))
    pitch = 1.25 if vertical else above + below
    return _largest(box, layout, paragraphs, Block([], box.size * layout.height, above, pitch, vertical, backward))


def _clean(text: str, drawn: Callable[[str], bool], emoji: list[str]) -> list[str]:
    lines = []
    for line in glyphs.cleaned(text):
        plain, found = without_emoji(line, drawn)
        emoji += found
        lines.append(plain)
    return lines


def check_letters(texts: Iterable[str], fonts: Fonts) -> None:
    """Raises Refusal for a text that cannot be set in any font, before something else has begun."""
    faces = fonts.faces("", "regular")
    for text in texts:
        for line in _clean(text, lambda character: fonts.face_for(character, faces) is not None, []):
            shaping.tokens(line, faces, fonts, False, shaping.runs_right_to_left(text))


def inner(box: Box, layout: Layout) -> tuple[float, float]:
    """Width and height for text in pixels of the layout's canvas; a bubble keeps some free."""
    free = 1 - 2 * INSET.get(box.role, 0.0)
    return box.w * layout.width * free, box.h * layout.height * free


def _largest(box: Box, layout: Layout, paragraphs: list[list[Token]], block: Block) -> Block:
    """With the largest letters, up to the box's own size, with which all lines are inside."""
    width, height = inner(box, layout)
    along, across = (height, width) if block.vertical else (width, height)
    longest = max((token.length for tokens in paragraphs for token in tokens if not token.blank), default=0.0)

    def lines_at(em: float) -> list[list[Token]] | None:
        length = (along / em - COLUMN_GAP * (box.columns - 1)) / box.columns
        if longest > length:
            return None
        lines = broken(paragraphs, length)
        return lines if math.ceil(len(lines) / box.columns) * block.pitch * em <= across + 1e-6 else None

    smallest = MIN_EM * math.sqrt(layout.width * layout.height)
    too_large = max(block.em, smallest)
    lines = lines_at(too_large)
    if lines is not None:
        return block._replace(lines=lines, em=too_large)
    lines = lines_at(smallest)
    if lines is None:
        raise Refusal("text_no_fit", "The text of the box {name} does not fit at any size: {characters} characters on "
                      "{width} x {height} pixels. Enlarge the box or shorten the text.", name=repr(box.name),
                      characters=f"{len(box.text):,}", width=round(width), height=round(height))
    fits = smallest
    for _ in range(STEPS):
        middle = math.sqrt(fits * too_large)
        found = lines_at(middle)
        fits, too_large, lines = (middle, too_large, found) if found is not None else (fits, middle, lines)
    return block._replace(lines=lines, em=fits)


def broken(paragraphs: list[list[Token]], length: float) -> list[list[Token]]:
    """Each line as long as it may be, in ems; spaces at their ends are left out."""
    lines = []
    for tokens in paragraphs:
        line: list[Token] = []
        used = 0.0
        for token in tokens:
            if line and not token.blank and used + token.length > length:
                lines.append(_trimmed(line))
                line, used = [], 0.0
            if line or not token.blank:
                line.append(token)
                used += token.length
        lines.append(_trimmed(line))
    return lines


def _trimmed(line: list[Token]) -> list[Token]:
    return line[:-1] if line and line[-1].blank else line


# ---------------------------------------------------------------- lines -> ink

def _draw(box: Box, block: Block, canvas: ndarray, ink: ndarray, scale: float) -> None:
    """Letters of one box; what would leave it is cut off at its edge."""
    left, top, right, bottom = box.pixels(canvas.shape[1], canvas.shape[0])
    own = np.zeros((bottom - top, right - left), np.uint8)
    inset = INSET.get(box.role, 0.0)
    em, free = block.em * scale, ((right - left) * (1 - 2 * inset), (bottom - top) * (1 - 2 * inset))
    origin = ((right - left) * inset, (bottom - top) * inset)
    per_column = math.ceil(len(block.lines) / box.columns)
    for number, line in enumerate(block.lines):
        column, row = divmod(number, per_column)
        _draw_line(own, shaping.runs_as_seen(line), _place(box, block, em, free, origin, line, column, row, per_column),
                   em, block.vertical)
    np.maximum(ink[top:bottom, left:right], own, out=ink[top:bottom, left:right])
    share = own[..., None].astype(np.float32) / 255
    part = canvas[top:bottom, left:right]
    part[:] = (part * (1 - share) + np.array(rgb(box.colour), np.float32) * share + 0.5).astype(np.uint8)


def _place(box: Box, block: Block, em: float, free: tuple[float, float], origin: tuple[float, float],
           line: list[Token], column: int, row: int, rows: int) -> tuple[float, float]:
    """Where the pen begins a line: on the line, or of a column in its middle at the top."""
    pitch, length = block.pitch * em, sum(token.length for token in line) * em
    if block.vertical:
        across = rows * pitch
        first = free[0] - (free[0] - across) / 2 if box.alignment == "centre" else (
            across if box.alignment == "left" else free[0])
        start = (free[1] - length) / 2 if box.alignment == "centre" else 0.0
        return origin[0] + first - (row + 0.5) * pitch, origin[1] + start
    width = (free[0] - COLUMN_GAP * em * (box.columns - 1)) / box.columns
    alignment = box.alignment if box.alignment != "start" else "right" if block.right_to_left else "left"
    spare = (width - length) * {"left": 0.0, "centre": 0.5, "right": 1.0}[alignment]
    down = (free[1] - rows * pitch) / 2 if box.alignment == "centre" else 0.0
    seen = box.columns - 1 - column if block.right_to_left else column
    return (origin[0] + seen * (width + COLUMN_GAP * em) + spare,
            origin[1] + down + row * pitch + block.above * em)


def _draw_line(own: ndarray, runs: list[Run], pen: tuple[float, float], em: float, vertical: bool) -> None:
    across, down = pen
    for run in runs:
        for glyph in run.glyphs:
            _stamp(own, shaping.bitmap(glyph, em), across + glyph.x * em, down - glyph.y * em)
            across, down = (across, down + glyph.advance * em) if vertical else (across + glyph.advance * em, down)


def _stamp(own: ndarray, bitmap: shaping.Bitmap, across: float, down: float) -> None:
    left, top = round(across) + bitmap.left, round(down) + bitmap.top
    height, width = bitmap.ink.shape
    target = own[max(0, top):max(0, top + height), max(0, left):max(0, left + width)]
    if target.size:
        begin_down, begin_across = max(0, -top), max(0, -left)
        np.maximum(target, bitmap.ink[begin_down:begin_down + target.shape[0],
                                      begin_across:begin_across + target.shape[1]], out=target)


def rgb(colour: str) -> tuple[int, int, int]:
    """Of #rrggbb or of a colour's name, of which the last word counts where all of them are none ("warm orange"); black
    for what is no colour, and for what could not be read on paper."""
    found = named_colour(colour)
    brightness = 0.299 * found[0] + 0.587 * found[1] + 0.114 * found[2]
    return found if 255 - brightness >= MIN_CONTRAST else INK


def named_colour(colour: str) -> tuple[int, int, int]:
    """As above, readable on paper or not."""
    words = colour.lower().split()
    for name in ("".join(words), words[-1] if words else ""):
        try:
            return ImageColor.getrgb(name)[:3]
        except ValueError:
            continue
    return INK


# ---------------------------------------------------------------- pictures, panels, bubbles, edges

def _draw_parts(layout: Layout, page: Image.Image, lines: Image.Image, picture: str) -> None:
    """Areas that pictures fill, borders of panels, and bubbles; the borders go to `lines`, too."""
    stroke = max(1, round(STROKE * math.sqrt(page.width * page.height)))
    on_page, on_lines = ImageDraw.Draw(page), ImageDraw.Draw(lines)
    for box in layout.boxes:
        left, top, right, bottom = box.pixels(page.width, page.height)
        edge = (left, top, right - 1, bottom - 1)
        if box.role in AREAS and box.w * box.h < WHOLE_PAGE:
            on_page.rectangle(edge, PICTURES[picture])
        elif box.role in PANELS:
            on_page.rectangle(edge, PICTURES[picture], INK, stroke)
            on_lines.rectangle(edge, None, 255, stroke)
        elif box.role in BUBBLES and box.text.strip():
            round_corners = min(right - left, bottom - top) * (0.4 if box.role == "speech" else 0.0)
            on_page.rounded_rectangle(edge, round_corners, PAPER, INK, stroke)
            on_lines.rounded_rectangle(edge, round_corners, None, 255, stroke)


def outline(ink: ndarray) -> ndarray:
    """(H, W), 8 bits -> the rim of what is inked, white on black, as an edge detector draws it."""
    inside = np.pad(ink > 127, 1)
    core = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return ((inside[1:-1, 1:-1] & ~core) * 255).astype(np.uint8)


# ---------------------------------------------------------------- what is said of it

def _advice_on_sizes(layout: Layout, sizes: dict[str, float]) -> list[Message]:
    """The smallest size, where letters are below what the model draws at 2048; of a smaller canvas what they would be
    there."""
    to_2048 = AT / math.sqrt(layout.width * layout.height)
    small = [(sizes[box.name] * to_2048, box) for box in layout.boxes if box.name in sizes
             and sizes[box.name] * to_2048 < (SMALLEST_TRADITIONAL if is_traditional(box.text) else SMALLEST_DRAWN)]
    if not small:
        return []
    size, box = min(small, key=lambda pair: pair[0])
    return [Message("letters_small", "Smallest letters: {size} pixels at 2048, in the box {name}. The model draws "
                    "Latin below {latin} and traditional Chinese below {traditional} pixels poorly. Shorten the text "
                    "or enlarge the box.", size=math.floor(size), name=repr(box.name), latin=SMALLEST_DRAWN,
                    traditional=SMALLEST_TRADITIONAL)]


def is_traditional(text: str) -> bool:
    """Whether a character is in the Taiwanese standard and not in the mainland's."""
    return any(_encodes(character, "big5") and not _encodes(character, "gb2312") for character in set(text)
               if "\u4e00" <= character <= "\u9fff")


def _encodes(character: str, codec: str) -> bool:
    return len(character.encode(codec, "ignore")) == 2


def _advice_on_emoji(emoji: list[str]) -> list[Message]:
    different = list(dict.fromkeys(emoji))
    if not different:
        return []
    more = [count_more(len(different) - NAMED)] if len(different) > NAMED else []
    return [Message("emoji_left_out", "The typeset page leaves room for emoji, and does not draw them: {emoji}. The "
                    "prompt asks for them.", emoji=[*different[:NAMED], *more])]
