"""Letters -> glyphs and their places: ligatures, kerning, joined and reordered scripts, lines that run both ways.

HarfBuzz (uharfbuzz) shapes and python-bidi orders, both an optional extra. Without them each character is drawn by
itself, which is right for Latin, Greek, Cyrillic, Chinese and Japanese; other scripts are refused. All lengths are in
ems, the size of the letters, so that a text is shaped once and set at any size.
"""
import unicodedata
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy import ndarray

from ..messages import Refusal
from . import glyphs
from .page_fonts import Face, Fonts, font_of, pieces

if TYPE_CHECKING:
    import uharfbuzz

INSTALL = 'python -m pip install "uharfbuzz>=0.57" "python-bidi<0.7"'
LTR, RTL, TTB = "ltr", "rtl", "ttb"
REFERENCE = 200  # pixels, at which FreeType is asked for lengths
MIN_PIXELS = 1.0  # of letters on a small preview, which nobody reads
CACHED_PIXELS = 128  # glyphs of larger letters are drawn anew: they are few, and would fill the memory
# Scripts that are wrong letter by letter: Hebrew to Arabic extended, India's, Thai to Burmese, Khmer, Mongolian, forms.
COMPLEX = ((0x0590, 0x08FF), (0x0900, 0x109F), (0x1780, 0x18AF), (0x1A00, 0x1CFF), (0xA800, 0xABFF),
           (0xFB1D, 0xFDFF), (0xFE70, 0xFEFF), (0x10800, 0x11FFF), (0x1E800, 0x1EFFF))
# Punctuation in columns, where HarfBuzz is not there to ask the font for it (Unicode's vertical forms).
UPRIGHT = str.maketrans("，、。：；！？（）｛｝〔〕【】《》〈〉「」『』［］…—ー",
                        "︐︑︒︓︔︕︖︵︶︷︸︹︺︻︼︽︾︿﹀﹁﹂﹃﹄﹇﹈︙︱︱")
NO_START = set("，、。：；！？）｝〕】》〉」』］…—ー〜～·・”’%％ぁぃぅぇぉっゃゅょァィゥェォッャュョ,.;:!?)]}")
NO_END = set("（｛〔【《〈「『［“‘([{$¥￥#")


class Glyph(NamedTuple):
    face: Face
    number: int | str  # of the glyph for HarfBuzz, the character itself for FreeType
    x: float           # from the pen, to the right and up
    y: float
    advance: float     # of the pen, along the line


class Run(NamedTuple):
    """Glyphs of one direction, in the order in which they are seen."""

    glyphs: tuple[Glyph, ...]
    length: float
    level: int  # odd: from right to left


class Token(NamedTuple):
    """What no line is broken in."""

    runs: tuple[Run, ...]
    length: float
    blank: bool


class Bitmap(NamedTuple):
    ink: ndarray  # (h, w), 8 bits
    left: int     # of its first column and row from the glyph's origin, to the right and down
    top: int


@lru_cache(maxsize=1)
def available() -> bool:
    """Older versions of uharfbuzz draw no glyphs."""
    if find_spec("uharfbuzz") is None or find_spec("bidi") is None:
        return False
    import uharfbuzz
    return hasattr(uharfbuzz, "RasterDraw")


# ---------------------------------------------------------------- lines -> tokens

def tokens(line: str, faces: tuple[Face, ...], fonts: Fonts, vertical: bool, right_to_left: bool) -> list[Token]:
    """A line of text as what can be put on lines, in reading order. Raises Refusal for scripts that need the extra,
    and for characters that no font has."""
    plain = line
    if not available():
        _check_simple(line)
        line = line.translate(UPRIGHT) if vertical else line
    levels = [0] * len(line) if vertical or not available() else _levels(line, right_to_left)
    found, begin = [], 0
    for end in range(1, len(line) + 1):
        if end == len(line) or _may_break(plain[end - 1], plain[end]):
            found.append(_token(line[begin:end], levels[begin:end], faces, fonts, vertical))
            begin = end
    return found


def _check_simple(line: str) -> None:
    for character in line:
        if any(first <= ord(character) <= last for first, last in COMPLEX):
            raise Refusal("shaping_missing", "The script of {character} is set by uharfbuzz and python-bidi, which are "
                          "not installed. Run {command} with ComfyUI's Python and restart ComfyUI.",
                          character=f"{character} (U+{ord(character):04X})", command=INSTALL)


def _may_break(before: str, after: str) -> bool:
    if before.isspace() or after.isspace():
        return not (before.isspace() and after.isspace())
    if after in NO_START or before in NO_END or unicodedata.combining(after) or after in glyphs.JOINERS:
        return False
    return _is_wide(before) or _is_wide(after) or (before == "-" and after.isalpha())


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def _token(text: str, levels: list[int], faces: tuple[Face, ...], fonts: Fonts, vertical: bool) -> Token:
    runs, at = [], 0
    for face, piece in pieces(text, faces, fonts):
        begin = 0
        for end in range(1, len(piece) + 1):
            if end == len(piece) or levels[at + end] != levels[at + begin] or (
                    _script(piece[end]) not in ("", _script(piece[begin]))):
                level = levels[at + begin]
                runs.append(shaped(piece[begin:end], face, TTB if vertical else RTL if level % 2 else LTR, level))
                begin = end
        at += len(piece)
    return Token(tuple(runs), sum(run.length for run in runs), text.isspace())


@lru_cache(maxsize=65_536)
def _script(character: str) -> str:
    """Of a letter, by its name; Han and kana are set alike. Empty for what all scripts share."""
    if not character.isalpha():
        return ""
    first = unicodedata.name(character, "").split(" ")[0].split("-")[0]
    return "CJK" if first in ("HIRAGANA", "KATAKANA", "IDEOGRAPHIC") else first


def _levels(line: str, right_to_left: bool) -> list[int]:
    """The embedding level of each character: odd from right to left. Source: Unicode's UAX 9, by python-bidi."""
    if not right_to_left and not any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in line):
        return [0] * len(line)
    from bidi import algorithm
    storage = algorithm.get_empty_storage()
    storage["base_level"], storage["base_dir"] = int(right_to_left), "R" if right_to_left else "L"
    algorithm.get_embedding_levels(line, storage, False, False)
    for step in (algorithm.explicit_embed_and_overrides, algorithm.resolve_weak_types,
                 algorithm.resolve_neutral_types, algorithm.resolve_implicit_levels):
        step(storage, False)
    kept = iter(entry["level"] for entry in storage["chars"])
    levels, last = [], int(right_to_left)
    for character in line:
        if unicodedata.bidirectional(character) not in algorithm.X9_REMOVED:  # those have gone from the storage
            last = next(kept)
        levels.append(last)
    return levels


def runs_as_seen(line: list[Token]) -> list[Run]:
    """The runs of a line from left to right (rule L2 of UAX 9)."""
    runs = [run for token in line for run in token.runs]
    for level in range(max((run.level for run in runs), default=0), 0, -1):
        begin = 0
        while begin < len(runs):
            end = begin
            while end < len(runs) and runs[end].level >= level:
                end += 1
            runs[begin:end] = runs[begin:end][::-1]
            begin = end + 1
    return runs


def runs_right_to_left(text: str) -> bool:
    """As its first letter runs."""
    first = next((unicodedata.bidirectional(character) for character in text
                  if unicodedata.bidirectional(character) in ("L", "R", "AL")), "L")
    return first != "L"


# ---------------------------------------------------------------- runs -> glyphs

@lru_cache(maxsize=32_768)
def shaped(text: str, face: Face, direction: str, level: int) -> Run:
    found = _by_harfbuzz(text, face, direction) if available() else _letter_by_letter(text, face, direction)
    return Run(tuple(found), sum(glyph.advance for glyph in found), level)


def _by_harfbuzz(text: str, face: Face, direction: str) -> list[Glyph]:
    import uharfbuzz
    font = _harfbuzz_font(face)
    buffer = uharfbuzz.Buffer()
    buffer.add_str(text)
    buffer.guess_segment_properties()
    buffer.direction = direction
    uharfbuzz.shape(font, buffer)
    em = font.face.upem
    return [Glyph(face, info.codepoint, place.x_offset / em, place.y_offset / em,
                  (-place.y_advance if direction == TTB else place.x_advance) / em)
            for info, place in zip(buffer.glyph_infos, buffer.glyph_positions)]


@lru_cache(maxsize=64)
def _harfbuzz_font(face: Face) -> "uharfbuzz.Font":
    """FreeType has read the file before: it refuses what is no font in words."""
    import uharfbuzz
    font_of(face, REFERENCE)
    return uharfbuzz.Font(uharfbuzz.Face(uharfbuzz.Blob.from_file_path(str(face.path)), face.index))


def _letter_by_letter(text: str, face: Face, direction: str) -> list[Glyph]:
    font, found = font_of(face, REFERENCE), []
    with glyphs.readable(face.name):
        for character in text:
            wide_space = character == "\u3000"  # which a Latin font may lack
            character = " " if wide_space else character
            advance = 1.0 if wide_space else font.getlength(character) / REFERENCE
            found.append(Glyph(face, character, -advance / 2, -0.88, 1.0) if direction == TTB
                         else Glyph(face, character, 0.0, 0.0, advance))
    return found


@lru_cache(maxsize=1024)
def reach(face: Face) -> tuple[float, float]:
    """How far the letters of a face reach above and below the line, in ems."""
    ascent, descent = font_of(face, REFERENCE).getmetrics()
    return ascent / REFERENCE, descent / REFERENCE


# ---------------------------------------------------------------- glyphs -> ink

def bitmap(glyph: Glyph, pixels: float) -> Bitmap:
    """The glyph at a size of letters."""
    draw = _cached if pixels <= CACHED_PIXELS else _drawn
    return draw(glyph.face, glyph.number, max(MIN_PIXELS, round(pixels * 4) / 4))


def _drawn(face: Face, number: int | str, pixels: float) -> Bitmap:
    if isinstance(number, str):
        with glyphs.readable(face.name):
            mask, (left, top) = font_of(face, pixels).getmask2(number, "L", anchor="ls")
        return Bitmap(np.frombuffer(bytes(mask), np.uint8).reshape(mask.size[::-1]), left, top)
    return _rasterized(face, number, pixels)


_cached = lru_cache(maxsize=4096)(_drawn)


def _rasterized(face: Face, number: int, pixels: float) -> Bitmap:
    import uharfbuzz
    font, pen = _harfbuzz_font(face), uharfbuzz.RasterDraw()
    scale = pixels / font.face.upem
    pen.transform = (scale, 0, 0, scale, 0, 0)
    pen.draw_glyph(font, number)
    image = pen.render()
    if image is None or not image.extents.width or not image.extents.height:
        return Bitmap(np.zeros((0, 0), np.uint8), 0, 0)
    extents = image.extents  # rows from the bottom up
    ink = np.frombuffer(image.buffer, np.uint8).reshape(extents.height, extents.stride)[::-1, :extents.width]
    return Bitmap(ink, extents.x_origin, -(extents.y_origin + extents.height))
