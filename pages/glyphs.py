"""Exact text set in a real font, as a picture that a model can copy letters from.

Fonts are named as people know them: by their file, and where a file holds several, by the face in brackets.
"""
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont, features

from ..messages import Message, Refusal
from .compare import is_invisible

EXTENSIONS = (".ttf", ".otf", ".ttc", ".otc")
BUILT_IN = "built-in (English)"  # Pillow's own font: always there, without accents
MAX_CHARACTERS = 20_000  # at the smallest size a page of Chinese has 40,000, which no model copies
MAX_FACES = 256        # of one collection that are offered; the largest have some fifty
MIN_LETTERS = 16   # pixels; below, a picture is no model for letters
MAX_SIDE = 4096
MAX_RATIO = 4       # longer side to shorter; a long single line is set on a higher page
LEADING = 1.4           # line to line, in heights of letters
MARGIN = 0.6
NOT_A_CHARACTER = "\U0010ffff"  # no font has it: what is drawn for it is what is drawn for anything missing
JOINERS = "\u200c\u200d"        # invisible, but they change how Persian, Hindi and others are set
INK, PAPER = (0, 0, 0), (255, 255, 255)


def system_folders() -> list[Path]:
    """Where this system keeps its fonts."""
    home = Path.home()
    if sys.platform == "win32":
        found = [Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts"),
                 Path(os.environ.get("LOCALAPPDATA", home), "Microsoft", "Windows", "Fonts")]
    elif sys.platform == "darwin":
        found = [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    else:
        shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        own = os.environ.get("XDG_DATA_HOME") or home / ".local" / "share"
        found = [Path(folder, "fonts") for folder in (own, *shared.split(":"))] + [home / ".fonts"]
    return [folder for folder in found if folder.is_dir()]


def font_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())


@cache
def faces(path: Path) -> list[str]:
    """Names of the faces in a collection, in their order; [""] for a file with one, or that cannot be read."""
    if path.suffix.lower() not in (".ttc", ".otc"):
        return [""]
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:  # such as a file that may not be read: `load` says so, if it is chosen
        return [""]
    if head[:4] != b"ttcf":
        return [""]
    names = []
    for index in range(min(int.from_bytes(head[8:12], "big"), MAX_FACES)):
        try:
            names.append(" ".join(filter(None, ImageFont.truetype(path, 10, index=index).getname())))
        except OSError:  # the file is damaged from here on
            break
    return names


def named_faces(path: Path, name: str) -> dict[str, tuple[Path, int]]:
    """Name in the menu -> file and number of the face."""
    return {f"{name} ({face})" if face else name: (path, index) for index, face in enumerate(faces(path))}


def load(face: tuple[Path, int] | None, size: int, name: str) -> ImageFont.FreeTypeFont:
    """A font with letters of `size` pixels; None is the built-in one. Raises ValueError for a damaged file."""
    if face is None:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)  # the other kind is what it gives without a size
        return font
    with readable(name):
        return ImageFont.truetype(face[0], size, index=face[1])


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Around what reads a font: of a damaged one FreeType may read the head and fail at a letter."""
    try:
        yield
    except Image.DecompressionBombError as error:  # Pillow's, before it makes a bitmap of 179 million pixels and more
        raise Refusal("font_letter_huge", "The font {font} cannot be read (one of its letters is larger than any "
                      "page). Choose another one.", font=name) from error
    except OSError as error:
        raise Refusal("font_unreadable", "The font {font} cannot be read ({error}). Choose another one.", font=name,
                      error=str(error.strerror or error)) from error  # without the file's path


def clean_lines(text: str) -> list[str]:
    """The lines to set, composed (NFC), without characters that print nothing. Raises ValueError for none, or for more
    than any page takes."""
    if len(text) > MAX_CHARACTERS:
        raise Refusal("glyph_text_long", "The text has {count} characters; the maximum is {max}.",
                      count=f"{len(text):,}", max=f"{MAX_CHARACTERS:,}")
    lines = cleaned(text)
    if not lines:
        raise Refusal("glyph_text_empty", "Text is empty. Write the words to draw, one line per line.")
    return lines


def cleaned(text: str) -> list[str]:
    """The lines of a text that hold something, composed (NFC), without characters that print nothing."""
    lines = ["".join(" " if c.isspace() else c for c in line if c.isspace() or c in JOINERS or not is_invisible(c))
             .strip(" " + JOINERS) for line in unicodedata.normalize("NFC", text).splitlines()]
    return [line for line in lines if line]


def missing(font: ImageFont.FreeTypeFont, lines: list[str]) -> list[str]:
    """Characters for which the font draws what it draws for no character at all, in their order."""
    nothing = _drawn(font, NOT_A_CHARACTER)
    wanted = dict.fromkeys(character for line in lines for character in line
                           if not character.isspace() and character not in JOINERS)
    return [character for character in wanted if _drawn(font, character) == nothing]


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> tuple:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def check_glyphs(font: ImageFont.FreeTypeFont, lines: list[str], name: str) -> None:
    """Raises ValueError that names what the font cannot write, or scripts that this Pillow cannot set."""
    lacking = missing(font, lines)
    if lacking:
        listed = ", ".join(f"{character} (U+{ord(character):04X})" for character in lacking[:8])
        if len(lacking) > 8:
            listed = Message("some_more", "{some} and {count} more", some=listed, count=len(lacking) - 8)
        raise Refusal("font_glyphs", "The font {font} has no glyphs for {characters}. Choose a font that has them.",
                      font=name, characters=listed)
    if any(unicodedata.bidirectional(c) in ("R", "AL") for line in lines for c in line) and not features.check("raqm"):
        raise Refusal("pillow_raqm", "This Pillow was built without Raqm, which right-to-left text needs. Install "
                      "Pillow from PyPI.")


def render(lines: list[str], face: tuple[Path, int] | None, name: str, size: int, vertical: bool) -> ndarray:
    """Lines in black on white (H, W, 3), 8 bits, letters `size` pixels high, or smaller where the page would be too
    large. vertical: each line is a column, the first one on the right. Raises ValueError."""
    with readable(name):
        return _page(lines, face, name, size, vertical)


def _page(lines: list[str], face: tuple[Path, int] | None, name: str, size: int, vertical: bool) -> ndarray:
    while True:
        font = load(face, size, name)
        check_glyphs(font, lines, name)
        width, height = _extent(lines, font, size, vertical)
        if max(width, height) <= MAX_SIDE:
            break
        size = min(size - 1, int(size * MAX_SIDE / max(width, height)))
        if size < MIN_LETTERS:
            raise Refusal("glyph_page", "{lines} lines with up to {characters} characters do not fit on one page. Use "
                          "fewer lines, or break the long ones.", lines=len(lines), characters=max(map(len, lines)))
    page = Image.new("RGB", (max(width, -(-height // MAX_RATIO)), max(height, -(-width // MAX_RATIO))), PAPER)
    left, top = (page.width - width) // 2, (page.height - height) // 2
    pen = ImageDraw.Draw(page)
    margin, step = round(MARGIN * size), round(LEADING * size)
    for number, line in enumerate(lines):
        if vertical:
            _column(pen, line, left + width - margin - number * step - size // 2, top + margin, font, size)
        else:
            pen.text((page.width // 2, top + margin + number * step + step // 2), line, INK, font, anchor="mm")
    return np.asarray(page)


def _extent(lines: list[str], font: ImageFont.FreeTypeFont, size: int, vertical: bool) -> tuple[int, int]:
    """Width and height that the lines need, margins included."""
    margin, across = 2 * round(MARGIN * size), round(LEADING * size) * len(lines)
    if vertical:
        return across + margin, round(1.1 * size) * max(map(len, lines)) + margin
    return int(max(font.getlength(line) for line in lines)) + 1 + margin, across + margin


def _column(pen: ImageDraw.ImageDraw, line: str, middle: int, top: int, font: ImageFont.FreeTypeFont, size: int
            ) -> None:
    for number, character in enumerate(line):
        pen.text((middle, top + number * round(1.1 * size) + size // 2), character, INK, font, anchor="mm")
