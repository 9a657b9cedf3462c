"""The fonts of a typeset page: which one draws a character, and files that are no fonts.

Two families come with the pack (assets/fonts): Noto Sans, and a subset of Noto Sans CJK. What neither has is drawn by
the user's and the system's fonts, the first one that has it.
"""
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from ..messages import Refusal
from . import glyphs

SHIPPED = Path(__file__).parents[1] / "assets" / "fonts"
NOTO = "Noto Sans (built-in)"  # the name in the menu of both families
MAX_BYTES = 2 ** 28   # of a font file; the largest collections of Chinese have 130 MB
MAX_OTHERS = 400      # of the system's fonts that are asked for a character
TRIED_SIZE = 24       # pixels, at which a font is asked what it draws for a character


@dataclass(frozen=True)
class Face:
    """A file and the number of its face in it."""

    name: str
    path: Path
    index: int = 0


def shipped(weight: str) -> tuple[Face, ...]:
    style = "Bold" if weight == "bold" else "Regular"
    return (Face(NOTO, SHIPPED / f"NotoSans-{style}.ttf"),
            Face(NOTO, SHIPPED / f"NotoSansCJKsc-{style}-Subset.otf"))


@dataclass(frozen=True)
class Fonts:
    """Where letters come from. named: what the menu offers beside the built-in fonts, in its order."""

    named: tuple[Face, ...] = ()
    chosen: str = NOTO  # for boxes without a font of their own

    def faces(self, font: str, weight: str) -> tuple[Face, ...]:
        """The faces that a box is set in, the first choice first. Raises Refusal for a name that is none."""
        name = font or self.chosen
        if name == NOTO:
            return shipped(weight)
        own = next((face for face in self.named if face.name == name), None)
        if own is None:
            raise gone(name)
        return (own, *shipped(weight))

    def face_for(self, character: str, faces: tuple[Face, ...]) -> Face | None:
        """The first of a box's faces that has the character, else the first of all others; None: no font has it."""
        found = next((face for face in faces if has(face, character)), None)
        return found or _among(self.named[:MAX_OTHERS], character)


def gone(font: str) -> Refusal:
    return Refusal("font_gone", "The font {font} no longer exists. Choose another one.", font=font)


@lru_cache(maxsize=4096)
def _among(faces: tuple[Face, ...], character: str) -> Face | None:
    """Of fonts that nobody has chosen: what cannot be read is passed over."""
    for face in faces:
        try:
            if has(face, character):
                return face
        except Refusal:
            continue
    return None


@lru_cache(maxsize=65_536)
def has(face: Face, character: str) -> bool:
    """Raises Refusal for a file that is no font."""
    with glyphs.readable(face.name):
        return not glyphs.missing(font_of(face, TRIED_SIZE), [character])


@lru_cache(maxsize=256)
def font_of(face: Face, size: float) -> ImageFont.FreeTypeFont:
    """By FreeType, characters one after the other. Raises Refusal for a file that is gone, too large or no font."""
    with glyphs.readable(face.name):
        if (size_of_file := face.path.stat().st_size) > MAX_BYTES:
            raise Refusal("font_huge", "The font {font} has {size} MB; the maximum is {max} MB. Choose another one.",
                          font=face.name, size=size_of_file >> 20, max=MAX_BYTES >> 20)
        return ImageFont.truetype(face.path, size, index=face.index, layout_engine=ImageFont.Layout.BASIC)


# ---------------------------------------------------------------- characters that no font is asked for

JOINERS = glyphs.JOINERS
EMOJI = ((0x1F000, 0x1FBFF),)
SYMBOLS = ((0x2300, 0x23FF), (0x2600, 0x27BF), (0x2B00, 0x2BFF))
# They change what stands before them into an emoji or another one, and draw nothing by themselves.
EMOJI_PARTS = ((0x200D, 0x200D), (0x20E3, 0x20E3), (0x1F3FB, 0x1F3FF), (0xE0020, 0xE007F))
FLAG_LETTERS = ((0x1F1E6, 0x1F1FF),)  # two of them are a flag
SELECTORS = ((0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
JOINER = "\u200d"


def _within(character: str, spans: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= ord(character) <= last for first, last in spans)


def without_emoji(line: str, drawn: Callable[[str], bool]) -> tuple[str, list[str]]:
    """The line with an ideographic space in place of each emoji, and the emoji: a typeset page has no colour glyphs.
    drawn: whether a font has a character; older symbols such as hearts are letters to some fonts, emoji to others."""
    text, before = "", ""
    found: list[str] = []
    for character in line:
        if _within(character, SELECTORS):
            continue
        if before and _joins(before, character, len(found[-1])):
            found[-1] += character
            before = character
        elif _within(character, EMOJI) or (_within(character, SYMBOLS) and not drawn(character)):
            found.append(character)
            text, before = text + "\u3000", character
        else:
            text, before = text + character, ""
    return text, found


def _joins(before: str, character: str, length: int) -> bool:
    """Whether the emoji that ends with `before` goes on. length: its characters so far."""
    flag = length == 1 and _within(before, FLAG_LETTERS) and _within(character, FLAG_LETTERS)
    return flag or _within(character, EMOJI_PARTS) or (before == JOINER and not character.isspace())


def name_of(character: str) -> str:
    """As people look it up: the character, its number and its name."""
    return f"{character} (U+{ord(character):04X} {unicodedata.name(character, 'without a name').lower()})"


def pieces(line: str, faces: tuple[Face, ...], fonts: Fonts) -> Iterator[tuple[Face, str]]:
    """The line cut where the font changes. Raises Refusal for a character that no font has."""
    current: Face | None = None
    text = ""
    for character in line:
        wanted = current if current and keeps(current, character) else fonts.face_for(character, faces)
        if wanted is None:
            raise Refusal("page_glyph", "No font here has the character {character}. Put a font that has it into "
                          "ComfyUI's models/fonts, or install a font package of your system such as fonts-noto-core.",
                          character=name_of(character))
        if current and wanted != current:
            yield current, text
            text = ""
        current, text = wanted, text + character
    if current:
        yield current, text


def keeps(face: Face, character: str) -> bool:
    """What is no letter by itself is drawn by the font of the letter before it: marks, punctuation, spaces."""
    if character.isspace() or character in JOINERS or unicodedata.combining(character):
        return True
    return not character.isalnum() and has(face, character)
