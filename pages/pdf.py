"""Pages with a picture and words as a PDF: the words can be selected and found, drawn in the picture or written on it.

fpdf2 is an optional extra, so it is imported when a file is written and not before.
"""
import io
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from ..messages import Message, Refusal
from .lettering import LINE, Lettering
from .page_fonts import NOTO, shipped

if TYPE_CHECKING:
    from fpdf import FPDF

INSTALL = "python -m pip install fpdf2"
POINTS = 72  # per inch
QUALITY = 95  # JPEG's, and no coarser colours: both would show around letters
STYLES = {"": "regular", "B": "bold"}
ALIGNMENTS = {"left": "L", "centre": "C", "right": "R"}


@dataclass(frozen=True)
class Sheet:
    """One page: its picture, which fills it, and its words."""

    picture: Image.Image  # RGB
    words: tuple[Lettering, ...]
    title: str  # for the bookmarks
    visible: bool  # whether the words are written, or lie unseen on those of the picture


def is_installed() -> bool:
    return find_spec("fpdf") is not None


def require() -> None:
    """Raises Refusal with the install command where fpdf2 is not there."""
    if not is_installed():
        raise Refusal("pdf_missing", "PDF files with text need fpdf2, which is not installed. Run {command} with "
                      "ComfyUI's Python and restart ComfyUI.", command=INSTALL)


def advice() -> Message | None:
    """What is said of a file that was written without fpdf2."""
    if is_installed():
        return None
    return Message("pdf_pictures_only", "The words of the PDF are only in its pictures: run {command} with ComfyUI's "
                   "Python and restart ComfyUI to make them selectable.", command=INSTALL)


def write_pdf(file: BinaryIO, sheets: Iterable[Sheet], inches: tuple[float, float], title: str) -> None:
    """Pages of one size. Fonts are embedded, as far as they are used; a picture is kept as JPEG until the file is
    written."""
    require()
    from fpdf import FPDF
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it reports each table that a subset loses
    width, height = (side * POINTS for side in inches)
    document = FPDF(unit="pt", format=(width, height))
    document.set_auto_page_break(False)
    document.set_margin(0)
    document.c_margin = 0
    document.set_title(title)
    for style, weight in STYLES.items():
        latin, cjk = shipped(weight)
        document.add_font(NOTO, style, latin.path)
        document.add_font("CJK", style, cjk.path)
    document.set_fallback_fonts(["CJK"], exact_match=False)
    for sheet in sheets:
        document.add_page()
        document.image(_jpeg(sheet.picture), 0, 0, width, height)
        if sheet.title:
            document.set_font(NOTO, size=1)
            document.start_section(sheet.title)
        _write(document, sheet, width, height)
    file.write(document.output())


def _write(document: "FPDF", sheet: Sheet, width: float, height: float) -> None:
    from fpdf.enums import TextMode
    with document.local_context(text_mode=TextMode.FILL if sheet.visible else TextMode.INVISIBLE):
        for words in sheet.words:
            em = words.em * height
            document.set_font(NOTO, "B" if words.bold else "", em)
            document.set_text_color(*words.colour)
            document.set_xy(words.x * width, words.y * height)
            document.multi_cell(words.width * width, LINE * em, words.text, align=ALIGNMENTS[words.alignment])


def _jpeg(picture: Image.Image) -> io.BytesIO:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=QUALITY, subsampling=0)
    content.seek(0)
    return content
