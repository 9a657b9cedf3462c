"""Text boxes of a PowerPoint slide, by python-pptx, from the texts of a layout."""
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from .lettering import Lettering

if TYPE_CHECKING:
    from pptx.shapes.autoshape import Shape
    from pptx.slide import Slide

POINTS = 72          # per inch
FONT = "Noto Sans"   # for boxes without a font; PowerPoint takes another where it is not installed
TITLE_ONLY = 5       # number of that layout in python-pptx's own template
NUMBER = (0.92, 0.94, 0.06, 0.04)  # x, y, width, height of the slide's number, shares of the page


def add_texts(slide: "Slide", texts: list[Lettering], width: int, height: int,
              clean: Callable[[str], str]) -> None:
    """The texts on a slide of the layout TITLE_ONLY; the first title is its title. width, height: of the page in EMU.
    clean: makes any text one that XML can hold."""
    from pptx.util import Emu
    title = next((text for text in texts if text.role == "title"), None)
    placeholder = cast("Shape", slide.shapes.title)  # the layout has one
    for text in texts:
        shape = placeholder if text is title else slide.shapes.add_textbox(Emu(0), Emu(0), Emu(0), Emu(0))
        shape.left, shape.top = Emu(round(text.x * width)), Emu(round(text.y * height))
        shape.width, shape.height = Emu(round(text.width * width)), Emu(round(text.height * height))
        _write(shape, text, height, clean)
    if title is None:
        placeholder._element.getparent().remove(placeholder._element)
    _add_number(slide, width, height)


def _write(shape: "Shape", text: Lettering, height: int, clean: Callable[[str], str]) -> None:
    from pptx.dml.color import RGBColor
    from pptx.enum.text import MSO_ANCHOR, MSO_AUTO_SIZE, PP_ALIGN
    from pptx.util import Emu
    frame = shape.text_frame
    frame.margin_left = frame.margin_right = frame.margin_top = frame.margin_bottom = Emu(0)
    frame.word_wrap, frame.auto_size = True, MSO_AUTO_SIZE.TEXT_TO_FIT_SHAPE
    frame.vertical_anchor = MSO_ANCHOR.MIDDLE if text.alignment == "centre" else MSO_ANCHOR.TOP
    if text.columns > 1:
        frame._txBody.bodyPr.set("numCol", str(text.columns))  # python-pptx has no name for it
    frame.text = clean(text.text)
    sides = {"left": PP_ALIGN.LEFT, "centre": PP_ALIGN.CENTER, "right": PP_ALIGN.RIGHT}
    for paragraph in frame.paragraphs:
        paragraph.alignment, paragraph.line_spacing = sides[text.alignment], 1.0
        if text.right_to_left:
            paragraph._p.get_or_add_pPr().set("rtl", "1")
        for run in paragraph.runs:
            font = run.font
            font.name, font.bold, font.size = text.font or FONT, text.bold, Emu(round(text.em * height))
            font.color.rgb = RGBColor(*text.colour)


def _add_number(slide: "Slide", width: int, height: int) -> None:
    """A field that PowerPoint keeps up to date where slides are moved."""
    from pptx.enum.text import PP_ALIGN
    from pptx.oxml import parse_xml
    from pptx.oxml.ns import nsdecls
    from pptx.util import Emu
    left, top, across, down = (Emu(round(share * side)) for share, side in zip(NUMBER, (width, height, width, height)))
    shape = slide.shapes.add_textbox(left, top, across, down)
    shape.name = "Slide number"
    paragraph = shape.text_frame.paragraphs[0]
    paragraph.alignment = PP_ALIGN.RIGHT
    paragraph._p.append(parse_xml(f'<a:fld {nsdecls("a")} id="{{B6F15528-21DE-4FAA-801E-634DDDAF4B2B}}" '
                                  'type="slidenum"><a:rPr sz="1000"/><a:t>‹#›</a:t></a:fld>'))
