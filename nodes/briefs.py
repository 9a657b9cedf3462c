"""What a designer asks for -> a prompt, a canvas and the words to expect. The wording is in pages/."""
from collections.abc import Callable

from comfy_api.latest import io

from ..messages import Message, plural
from ..pages import briefs, wording
from ..pages.arrangement import arranged
from ..pages.briefs import Brief, Page
from ..pages.layout import Layout
from .bridge.text_encoders.families import count_tokens
from .common import categories
from .common.layouts import layout_output
from .common.page_nodes import PageNode, line_input, page_inputs, page_of, text_input, texts_checked
from .common.prompts import TRAINED_TOKENS, Measure
from .common.rows import filled_in, row_input
from .common.schemas import schema
from .frontend import measured_inputs
from .notices import notify

VERBATIM = "Drawn exactly as written, in any script; each line on a line of its own."


def columns_input(default: int, tooltip: str) -> io.Input:
    return io.Int.Input("columns", default=default, min=1, max=briefs.MAX_COLUMNS, tooltip=tooltip)


def outputs() -> list[io.Output]:
    return [
        io.String.Output(display_name="prompt"),
        io.Int.Output(display_name="width"),
        io.Int.Output(display_name="height"),
        io.String.Output(display_name="expected_text", tooltip="Every text the image should show, one line per line: "
                                                               "for Text Check."),
        layout_output(),
    ]


class BriefNode(PageNode):
    """What the four briefs share. Their own part: the schema, the texts that are checked, and `make`."""

    make: Callable[..., Brief]  # of pages/briefs.py: takes the Page and, by their names, the node's other inputs

    @classmethod
    def write(cls, page: Page, **texts: str) -> None:
        wording.write(cls.make(page, **texts))

    @classmethod
    def fitted(cls, inputs: dict, count: Callable[[str], int]) -> tuple[Brief, wording.Written]:
        page, others = page_of(inputs)
        brief = cls.make(page, **others)
        return brief, wording.fitted(brief, count, TRAINED_TOKENS)

    @classmethod
    def measure(cls, inputs: dict, count: Callable[[str], int]) -> Measure:
        _, result = cls.fitted(inputs, count)
        return Measure(result.tokens, result.texts, result.notes)

    @classmethod
    def layout(cls, inputs: dict, count: Callable[[str], int]) -> Layout:
        """For the page (routes.py): what execute will give."""
        return arranged(cls.fitted(inputs, count)[1].brief)

    @classmethod
    def execute(cls, row=None, **inputs):
        """The outputs, and on the node what the prompt costs and what was shortened."""
        brief, result = cls.fitted(filled_in(cls, inputs, row), count_tokens)
        texts = plural("text_lines", len(result.texts), "{count} line of text", "{count} lines of text")
        return io.NodeOutput(result.prompt, *brief.page.pixels, "\n".join(result.texts), arranged(result.brief),
                             ui=notify(cls, Message("brief_written", "{tokens} tokens, {texts}.", tokens=result.tokens,
                                                    texts=texts),
                                     *result.notes))


class QwenImage2PosterBrief(BriefNode):
    make = staticmethod(briefs.poster)
    validate_inputs = texts_checked("title", "subtitle", "body", "call_to_action", "footer")

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2PosterBrief",
            display_name="Poster Brief (Qwen-Image 2)",
            category=categories.BRIEFS,
            description="Writes the prompt of a poster, cover, menu or advertisement from its texts and its layout.",
            search_aliases=["poster", "flyer", "cover", "advertisement", "menu", "layout", "typography", "prompt"],
            inputs=measured_inputs([
                text_input("title", f"The largest text. {VERBATIM}"),
                text_input("subtitle", VERBATIM),
                text_input("body", f"Dates, places, a paragraph. {VERBATIM} The first text to be cut where the prompt "
                                   f"would exceed 1,000 tokens; the node says so."),
                line_input("call_to_action", "On a bar near the bottom, in the accent colour. Drawn as written."),
                line_input("footer", "Small, along the lower edge. Drawn exactly as written."),
                io.Combo.Input("kind", list(briefs.POSTERS), default="poster", tooltip="What the page is."),
                io.Combo.Input("title_position", list(briefs.POSTER_PLACES), default="top",
                               tooltip="Position of the title; picture and body use the remaining space."),
                columns_input(1, "Columns of the body."),
                *page_inputs("flat graphic", "bold sans serif", "3:4"),
                row_input(),
            ], laid_out=True),
            outputs=outputs(),
        )


class QwenImage2SlideBrief(BriefNode):
    make = staticmethod(briefs.slide)
    validate_inputs = texts_checked("title", "subtitle", "bullets", "footer")

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2SlideBrief",
            display_name="Slide Brief (Qwen-Image 2)",
            category=categories.BRIEFS,
            description="Writes the prompt of a presentation slide from its title, its bullet points and its layout.",
            search_aliases=["slide", "presentation", "powerpoint", "deck", "bullet points", "keynote", "prompt"],
            inputs=measured_inputs([
                text_input("title", f"The largest text. {VERBATIM}"),
                text_input("subtitle", VERBATIM),
                text_input("bullets", "One bullet point per line, drawn exactly as written; a list marker (-, * or a "
                                      "bullet) before it is not drawn."),
                line_input("footer", "Small, along the lower edge. Drawn exactly as written."),
                io.Combo.Input("title_position", list(briefs.SLIDE_TITLES), default="top left",
                               tooltip="Position of the title."),
                io.Combo.Input("picture_position", list(briefs.PICTURE_POSITIONS), default="right",
                               tooltip="Position of the picture; the bullet points use the other side."),
                columns_input(1, "Columns of the bullet points."),
                *page_inputs("minimalist", "bold sans serif", "16:9"),
                row_input(),
            ], laid_out=True),
            outputs=outputs(),
        )


class QwenImage2InfographicBrief(BriefNode):
    make = staticmethod(briefs.infographic)
    validate_inputs = texts_checked("title", "subtitle", "data_points", "call_to_action", "source")

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2InfographicBrief",
            display_name="Infographic Brief (Qwen-Image 2)",
            category=categories.BRIEFS,
            description="Writes the prompt of an infographic from figures with labels: a grid, a timeline or steps.",
            search_aliases=["infographic", "data", "chart", "timeline", "statistics", "diagram", "prompt"],
            inputs=measured_inputs([
                text_input("title", f"The largest text. {VERBATIM}"),
                text_input("subtitle", VERBATIM),
                text_input("data_points", "One per line: value | label | icon. Value and label are drawn exactly as "
                                          "written, the icon is a description. A line without a bar is a label."),
                line_input("call_to_action", "On a bar near the bottom, in the accent colour. Drawn as written."),
                line_input("source", "Small, along the lower edge. Drawn exactly as written."),
                io.Combo.Input("kind", list(briefs.INFOGRAPHICS), default="infographic", tooltip="What the page is."),
                io.Combo.Input("arrangement", list(briefs.ARRANGEMENTS), default="grid",
                               tooltip="Arrangement of the data points: rows and columns, along a line, or joined by "
                                       "arrows."),
                columns_input(2, "Columns of the grid."),
                *page_inputs("flat graphic", "bold sans serif", "3:4"),
                row_input(),
            ], laid_out=True),
            outputs=outputs(),
        )


class QwenImage2ComicBrief(BriefNode):
    make = staticmethod(briefs.comic)
    validate_inputs = texts_checked("title", "panels")

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2ComicBrief",
            display_name="Comic Brief (Qwen-Image 2)",
            category=categories.BRIEFS,
            description="Writes the prompt of a comic page from its panels: what each shows, and who says what.",
            search_aliases=["comic", "manga", "panels", "speech bubble", "storyboard", "dialogue", "prompt"],
            inputs=measured_inputs([
                text_input("title", f"The largest text. {VERBATIM}"),
                text_input("panels", "Panels, separated by empty lines. In each, a line \"Name: words\" is a speech "
                                     "bubble, \"Caption: words\" a caption box, \"Sound: words\" a drawn sound; every "
                                     "other line describes what the panel shows."),
                columns_input(2, "Panels side by side."),
                *page_inputs("comic ink", "comic lettering", "3:4"),
                row_input(),
            ], laid_out=True),
            outputs=outputs(),
        )
