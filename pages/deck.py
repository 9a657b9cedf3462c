"""Pictures and their texts -> a PowerPoint file or a PDF, one page per picture.

python-pptx is an optional extra, so it is imported when a file is written and not before. So is fpdf2 (pdf.py): without
it the words of a PDF are only in its pictures.
"""
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, BinaryIO

from numpy import ndarray
from PIL import Image

from ..messages import Message, Refusal, plural
from . import pdf
from .briefs import LINE_BREAKS
from .layout import Layout
from .lettering import Lettering, letterings
from .slide_texts import TITLE_ONLY, add_texts

if TYPE_CHECKING:
    from pptx.presentation import Presentation
    from pptx.slide import SlideLayout

INSTALL = "python -m pip install python-pptx"
PAGES = {"16:9": 16 / 9, "4:3": 4 / 3}
LONGER_SIDE = 13 + 1 / 3  # inches, of PowerPoint's own 16:9 pages; a 4:3 page is as high as those
EMU = 914_400             # per inch
MAX_CUT = 0.02           # of a picture, to fill its page: the model's 2752 x 1536 is 0.8 % wider than 16:9
NARROWEST = 10            # longer side of a page to shorter; PowerPoint refuses sides below an inch
PAGE_PIXELS = 2 ** 24      # of a PDF page that is mostly margin; a picture that is larger by itself keeps its size
PDF_QUALITY = 95          # JPEG's, and no coarser colours: both would show around letters
WHITE = (255, 255, 255)
# What XML cannot hold, and the control characters that it can: nobody has seen them.
NOT_FOR_XML = re.compile("[^\t\n\u0020-\u007e\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Sheet:
    """One page of a deck."""

    picture: ndarray  # (H, W, 3 or 4), 8 bits
    text: str = ""    # the literal lines of the picture
    notes: str = ""   # what the speaker says
    layout: Layout | None = None  # where the texts stand
    editable: bool = False  # the picture was drawn without its texts, and they are written on it

    @property
    def spoken(self) -> str:
        """The notes of the page: the speaker's, then the picture's text."""
        text = f"Text of the slide:\n{self.text}" if self.text and not self.editable else ""
        return "\n\n".join(part for part in (self.notes, text) if part)


def require() -> None:
    """Raises ValueError with the install command where python-pptx is not there."""
    if find_spec("pptx") is None:
        raise Refusal("pptx_missing", "PowerPoint files need python-pptx, which is not installed. Run {command} with "
                      "ComfyUI's Python and restart ComfyUI, or choose PDF.", command=INSTALL)


def texts_for(pictures: int, found: int) -> Message:
    return _for_pictures(plural("texts", found, "{count} text", "{count} texts"), pictures, found)


def notes_for(pictures: int, found: int) -> Message:
    return _for_pictures(plural("notes", found, "{count} note", "{count} notes"), pictures, found)


def layouts_for(pictures: int, found: int) -> Message:
    return _for_pictures(plural("layouts", found, "{count} layout", "{count} layouts"), pictures, found)


def _for_pictures(words: Message, pictures: int, found: int) -> Message:
    what = (Message("deck_without", "the last images have none") if found < pictures else
            Message("deck_unused", "the last ones were not used"))
    return Message("deck_mismatch", "Got {words} for {pictures}: {what}.", words=words,
                   pictures=plural("pictures", pictures, "{count} image", "{count} images"), what=what)


def shared_out(words: Sequence, batches: list[int], unlike: Callable[[int, int], Message]) -> tuple:
    """One text for each picture, and what `unlike` says of (pictures, texts) where there are too few or too many.

    As many texts as batches: one for all pictures of a batch, which share a prompt. Else one for each picture.
    """
    if len(words) == len(batches):
        words = [text for text, pictures in zip(words, batches) for _ in range(pictures)]
    pictures = sum(batches)
    shared = [text or "" for text in [*words, *[""] * pictures][:pictures]]
    if len(words) in (0, pictures):
        return (shared,)
    return shared, unlike(pictures, len(words))


# ---------------------------------------------------------------- pages

def page_ratio(picture: ndarray) -> float:
    """Width to height of a deck's pages by its first picture: 16:9 or 4:3 where that is close, else its own."""
    ratio = picture.shape[1] / picture.shape[0]
    return next((page for page in PAGES.values() if _cut(ratio, page) <= MAX_CUT),
                min(max(ratio, 1 / NARROWEST), NARROWEST))


def page_inches(ratio: float) -> tuple[float, float]:
    if ratio == PAGES["4:3"]:
        return 10.0, 7.5
    return (LONGER_SIDE, LONGER_SIDE / ratio) if ratio >= 1 else (LONGER_SIDE * ratio, LONGER_SIDE)


def _cut(picture: float, page: float) -> float:
    """The share of a picture that is outside where it fills a page; both as width to height."""
    return 1 - min(picture / page, page / picture)


def placed(picture: ndarray, ratio: float) -> tuple[float, float]:
    """Width and height of the picture in shares of the page, centred. Above 1 where it fills the page and its edges
    are cut; below 1 where that would cut more than MAX_CUT, so that the whole picture is shown."""
    wider = picture.shape[1] / picture.shape[0] / ratio  # 1: same shape
    if _cut(wider, 1) <= MAX_CUT:
        return max(1.0, wider), max(1.0, 1 / wider)
    return min(1.0, wider), min(1.0, 1 / wider)


# ---------------------------------------------------------------- files

def write_pptx(file: BinaryIO, sheets: Iterable[Sheet], ratio: float, title: str) -> None:
    require()
    import pptx
    from pptx.util import Emu
    deck = pptx.Presentation()
    across, down = page_inches(ratio)
    page = deck.slide_width, deck.slide_height = Emu(round(across * EMU)), Emu(round(down * EMU))
    # The template that comes with python-pptx names its own author.
    deck.core_properties.title, deck.core_properties.author = _for_xml(title), ""
    deck.core_properties.last_modified_by = ""
    blank = min(deck.slide_layouts, key=lambda layout: len(layout.placeholders))
    for sheet in sheets:
        _add_slide(deck, blank, sheet, ratio, page)
    deck.save(file)


def _add_slide(deck: "Presentation", blank: "SlideLayout", sheet: Sheet, ratio: float, page: tuple[int, int]) -> None:
    """page: width and height in EMU."""
    layout = sheet.layout if sheet.editable else None  # its texts are written, not drawn
    slide = deck.slides.add_slide(blank if layout is None else deck.slide_layouts[TITLE_ONLY])
    across, down = placed(sheet.picture, ratio)
    width, height = (round(side * min(1.0, share)) for side, share in zip(page, (across, down)))
    shape = slide.shapes.add_picture(_png(sheet.picture), (page[0] - width) // 2, (page[1] - height) // 2, width,
                                     height)
    # What is cut stays in the file, and PowerPoint's own crop tool shows it.
    shape.crop_left = shape.crop_right = max(0.0, 1 - 1 / across) / 2
    shape.crop_top = shape.crop_bottom = max(0.0, 1 - 1 / down) / 2
    # python-pptx has no name for the alt text.
    said = sheet.text if layout is None else _described(layout)
    shape._element._nvXxPr.cNvPr.set("descr", _for_xml(said))
    if layout is not None:
        slide.shapes._spTree.insert(2, shape._element)  # behind the title, which the slide brings along
        add_texts(slide, _words(sheet, ratio), *page, _for_xml)
    if sheet.spoken:
        slide.notes_slide.notes_text_frame.text = _for_xml(sheet.spoken)


def _png(picture: ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=4)
    file.seek(0)
    return file


def _for_xml(text: str) -> str:
    """The lines as their author saw them, whichever system ended them; python-pptx would write the end of a Windows
    line as the letters _x000D_. Control characters and lone surrogates cannot be written in any way."""
    return NOT_FOR_XML.sub("\ufffd", LINE_BREAKS.sub("\n", text))


def _described(layout: Layout) -> str:
    return "\n".join(box.text for box in layout.boxes if not box.literal and box.text.strip())


def _words(sheet: Sheet, ratio: float) -> list[Lettering]:
    """The texts of a page where they stand; without a layout all together, so that they can be found."""
    if sheet.layout is not None:
        return list(letterings(sheet.layout, *placed(sheet.picture, ratio)))
    lines = sheet.text.split("\n")
    if not sheet.text.strip():
        return []
    em = min(0.03, 0.6 / len(lines))
    return [Lettering("text", sheet.text, 0.05, 0.05, 0.9, 0.9, em, "", False, (0, 0, 0), "left", False, 1)]


def write_pdf(file: BinaryIO, sheets: Iterable[Sheet], ratio: float, title: str) -> None:
    """Pages with words that can be selected where fpdf2 is installed, else of pictures alone."""
    if not pdf.is_installed():
        write_pictures(file, sheets, ratio, title)
        return
    pdf.write_pdf(file, (_pdf_sheet(sheet, ratio) for sheet in sheets), page_inches(ratio), title)


def _pdf_sheet(sheet: Sheet, ratio: float) -> pdf.Sheet:
    words = tuple(_words(sheet, ratio))
    heading = next((word.text for word in words if word.role == "title"), words[0].text if words else "")
    return pdf.Sheet(_page(sheet.picture, ratio), words, heading.split("\n")[0],
                     visible=sheet.editable and sheet.layout is not None)


def write_pictures(file: BinaryIO, sheets: Iterable[Sheet], ratio: float, title: str) -> None:
    """Pages of one size, whatever their pictures' are: a page's resolution follows from its picture. One after the
    other, so that one page at a time is in memory; file must be readable, because each goes after what is there."""
    for number, sheet in enumerate(sheets):
        page = _page(sheet.picture, ratio)
        width, _ = page_inches(ratio)
        page.save(file, "PDF", append=number > 0, resolution=page.width / width, title=title, quality=PDF_QUALITY,
                  subsampling=0)


def _page(picture: ndarray, ratio: float) -> Image.Image:
    """The page at its picture's own resolution. Nothing is resampled but a picture that is so unlike the page that its
    white margins would take PAGE_PIXELS. Transparent parts are white, as in PowerPoint."""
    across, down = placed(picture, ratio)
    image = Image.fromarray(picture)
    size = round(image.width / across), round(image.height / down)
    shrunk = math.sqrt(max(PAGE_PIXELS, image.width * image.height) / (max(1, size[0]) * max(1, size[1])))
    if shrunk < 1:
        image = image.resize([max(1, int(side * shrunk)) for side in image.size], Image.Resampling.LANCZOS)
        size = int(size[0] * shrunk), int(size[1] * shrunk)
    page = Image.new("RGB", [max(1, side) for side in size], WHITE)
    corner = (page.width - image.width) // 2, (page.height - image.height) // 2
    page.paste(image.convert("RGB"), corner, image if image.mode == "RGBA" else None)
    return page


WRITERS: dict[str, Callable[[BinaryIO, Iterable[Sheet], float, str], None]] = {
    ".pptx": write_pptx, ".pdf": write_pdf}
