"""What a designer asks for -> a prompt, a canvas and the words to expect. The wording is in model/."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from comfy_api.latest import io

from ..messages import Message, Refusal, plural
from ..pages import briefs, wording
from ..pages.briefs import Brief, Page
from ..pages.vocabulary import ENGLISH, LANGUAGES
from .bridge.text_encoders.qwen3_vl import count_tokens
from .frontend import measured
from .latent import canvas_inputs, check_canvas
from .notices import notify
from .text import TRAINED_TOKENS

CATEGORY = "Qwen-Image 2/briefs"
PICTURE = "What is drawn besides the texts, in as many words as you like. Words in double quotes are drawn too."
VERBATIM = "Drawn exactly as written, in any script; each line on a line of its own."


def text_input(name: str, tooltip: str) -> io.Input:
    return io.String.Input(name, multiline=True, default="", tooltip=tooltip)


def line_input(name: str, tooltip: str) -> io.Input:
    return io.String.Input(name, default="", tooltip=tooltip)


def columns_input(default: int, tooltip: str) -> io.Input:
    return io.Int.Input("columns", default=default, min=1, max=briefs.MOST_COLUMNS, tooltip=tooltip)


def page_inputs(style: str, type_character: str, aspect_ratio: str, picture: str = PICTURE) -> list[io.Input]:
    """What all briefs share: the fields of a Page."""
    return [
        text_input("picture", picture),
        io.Combo.Input("language", list(LANGUAGES), default="English",
                       tooltip="Language of the prompt's own sentences. The texts may be in any."),
        io.Combo.Input("style", list(ENGLISH.styles), default=style,
                       tooltip="Look of the whole page. as described: only what the picture field says."),
        io.Combo.Input("type_character", list(ENGLISH.types), default=type_character,
                       tooltip="Character of the lettering."),
        io.String.Input("palette", default="deep blue, cream white, warm orange",
                        tooltip="Colours, separated by commas: background, lettering, accent, others. Empty: left to "
                                "the model."),
        io.Boolean.Input("transparent", default=False,
                         tooltip="Nothing behind the page; the palette's first colour is not used. The decoder's rgba "
                                 "output carries it."),
        *canvas_inputs(aspect_ratio, "2048"),
    ]


def outputs() -> list[io.Output]:
    return [
        io.String.Output(display_name="prompt"),
        io.Int.Output(display_name="width"),
        io.Int.Output(display_name="height"),
        io.String.Output(display_name="expected_text", tooltip="Every literal text of the prompt, line by line, as a "
                                                               "check of the picture expects them."),
    ]


@dataclass(frozen=True)
class Measure:
    """What a node's prompts come to, before anything is drawn."""

    tokens: int  # of the longest prompt
    texts: Sequence[str]  # the literal lines
    notes: Sequence[str]  # what was shortened or left out
    slides: str | None = None  # how many prompts there are, where there may be several


class BriefNode(io.ComfyNode):
    """What the four briefs share. Their own part: the schema, what is refused before anything runs, and `brief`."""

    @classmethod
    def brief(cls, **inputs) -> Brief:
        raise NotImplementedError

    @classmethod
    def fitted(cls, inputs: dict, count: Callable[[str], int]) -> tuple[Brief, wording.Written]:
        brief = cls.brief(**inputs)
        return brief, wording.fitted(brief, count, TRAINED_TOKENS)

    @classmethod
    def measure(cls, inputs: dict, count: Callable[[str], int]) -> Measure:
        """For the page (routes.py): what execute will say. Raises ValueError for what execute refuses."""
        _, result = cls.fitted(inputs, count)
        return Measure(result.tokens, result.texts, result.notes)

    @classmethod
    def execute(cls, **inputs):
        """The outputs, and on the node what the prompt costs and what was shortened."""
        brief, result = cls.fitted(inputs, count_tokens)
        texts = plural("text_lines", len(result.texts), "{count} line of text", "{count} lines of text")
        return io.NodeOutput(result.prompt, *brief.page.pixels, "\n".join(result.texts),
                             ui=notify(cls, Message("brief_written", "{tokens} tokens, {texts}.", tokens=result.tokens,
                                                    texts=texts),
                                     *result.notes))


def refusal(make, texts: tuple, *page) -> bool | str:
    """Before anything runs: what is wrong with the canvas and the texts of a brief."""
    return refused(lambda *made_of: wording.write(make(*made_of)), texts, *page)


def refused(write, texts: tuple, picture, palette, aspect_ratio, width, height) -> bool | str:
    """What write(page, *texts) refuses, and the canvas. What is linked is None and not yet known."""
    canvas = check_canvas(aspect_ratio, width, height)
    if canvas is not True or None in (*texts, picture, palette, aspect_ratio, width, height):
        return canvas
    try:
        page = Page(picture=picture, palette=palette, aspect_ratio=aspect_ratio, width=width, height=height)
        write(page, *texts)
    except Refusal as refusal:
        return refusal.message
    return True


class QwenImage2PosterBrief(BriefNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="QwenImage2PosterBrief",
            display_name="Poster Brief (Qwen-Image 2)",
            category=CATEGORY,
            description="The prompt of a poster, cover, menu or advertisement from its texts and its layout.",
            search_aliases=["poster", "flyer", "cover", "advertisement", "menu", "layout", "typography", "prompt"],
            inputs=measured([
                text_input("title", f"The largest text. {VERBATIM}"),
                text_input("subtitle", VERBATIM),
                text_input("body", f"Dates, places, a paragraph. {VERBATIM} The first text to be cut where the prompt "
                                   f"would exceed 1,000 tokens; the node says so."),
                line_input("call_to_action", "On a bar near the bottom, in the accent colour. Drawn as written."),
                line_input("footer", "Small, along the lower edge. Drawn exactly as written."),
                io.Combo.Input("kind", list(briefs.POSTERS), default="poster", tooltip="What the page is."),
                io.Combo.Input("title_position", list(briefs.POSTER_PLACES), default="top",
                               tooltip="Where the title stands; picture and body take the room it leaves."),
                columns_input(1, "Columns of the body."),
                *page_inputs("flat graphic", "bold sans serif", "3:4"),
            ]),
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, title, subtitle, body, call_to_action, footer, picture, palette, aspect_ratio, width,
                        height):
        return refusal(briefs.poster, (title, subtitle, body, call_to_action, footer), picture, palette, aspect_ratio,
                       width, height)

    @classmethod
    def brief(cls, title, subtitle, body, call_to_action, footer, kind, title_position, columns, **page):
        return briefs.poster(Page(**page), title, subtitle, body, call_to_action, footer, kind, title_position,
                             columns)


class QwenImage2SlideBrief(BriefNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="QwenImage2SlideBrief",
            display_name="Slide Brief (Qwen-Image 2)",
            category=CATEGORY,
            description="The prompt of a presentation slide from its title, its bullet points and its layout.",
            search_aliases=["slide", "presentation", "powerpoint", "deck", "bullet points", "keynote", "prompt"],
            inputs=measured([
                text_input("title", f"The largest text. {VERBATIM}"),
                text_input("subtitle", VERBATIM),
                text_input("bullets", "One bullet point per line, drawn exactly as written; a list marker (-, * or a "
                                      "bullet) before it is not drawn."),
                line_input("footer", "Small, along the lower edge. Drawn exactly as written."),
                io.Combo.Input("title_position", list(briefs.SLIDE_TITLES), default="top left",
                               tooltip="Where the title stands."),
                io.Combo.Input("picture_position", list(briefs.PICTURE_POSITIONS), default="right",
                               tooltip="Where the picture is drawn; the bullet points take the other side."),
                columns_input(1, "Columns of the bullet points."),
                *page_inputs("minimalist", "bold sans serif", "16:9"),
            ]),
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, title, subtitle, bullets, footer, picture, palette, aspect_ratio, width, height):
        return refusal(briefs.slide, (title, subtitle, bullets, footer), picture, palette, aspect_ratio, width, height)

    @classmethod
    def brief(cls, title, subtitle, bullets, footer, title_position, picture_position, columns, **page):
        return briefs.slide(Page(**page), title, subtitle, bullets, footer, title_position, picture_position, columns)


class QwenImage2InfographicBrief(BriefNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="QwenImage2InfographicBrief",
            display_name="Infographic Brief (Qwen-Image 2)",
            category=CATEGORY,
            description="The prompt of an infographic from figures with labels: a grid, a timeline or steps.",
            search_aliases=["infographic", "data", "chart", "timeline", "statistics", "diagram", "prompt"],
            inputs=measured([
                text_input("title", f"The largest text. {VERBATIM}"),
                text_input("subtitle", VERBATIM),
                text_input("data_points", "One per line: value | label | icon. Value and label are drawn exactly as "
                                          "written, the icon is a description. A line without a bar is a label."),
                line_input("call_to_action", "On a bar near the bottom, in the accent colour. Drawn as written."),
                line_input("source", "Small, along the lower edge. Drawn exactly as written."),
                io.Combo.Input("kind", list(briefs.INFOGRAPHICS), default="infographic", tooltip="What the page is."),
                io.Combo.Input("arrangement", list(briefs.ARRANGEMENTS), default="grid",
                               tooltip="How the data points stand: rows and columns, along a line, or joined by "
                                       "arrows."),
                columns_input(2, "Columns of the grid."),
                *page_inputs("flat graphic", "bold sans serif", "3:4"),
            ]),
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, title, subtitle, data_points, call_to_action, source, picture, palette, aspect_ratio,
                        width, height):
        return refusal(briefs.infographic, (title, subtitle, data_points, call_to_action, source), picture, palette,
                       aspect_ratio, width, height)

    @classmethod
    def brief(cls, title, subtitle, data_points, call_to_action, source, kind, arrangement, columns, **page):
        return briefs.infographic(Page(**page), title, subtitle, data_points, call_to_action, source, kind, arrangement,
                                  columns)


class QwenImage2ComicBrief(BriefNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="QwenImage2ComicBrief",
            display_name="Comic Brief (Qwen-Image 2)",
            category=CATEGORY,
            description="The prompt of a comic page from its panels: what each shows, and who says what.",
            search_aliases=["comic", "manga", "panels", "speech bubble", "storyboard", "dialogue", "prompt"],
            inputs=measured([
                text_input("title", f"The largest text. {VERBATIM}"),
                text_input("panels", "Panels, separated by empty lines. In each, a line \"Name: words\" is a speech "
                                     "bubble, \"Caption: words\" a caption box, \"Sound: words\" a drawn sound; every "
                                     "other line describes what the panel shows."),
                columns_input(2, "Panels side by side."),
                *page_inputs("comic ink", "comic lettering", "3:4"),
            ]),
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, title, panels, picture, palette, aspect_ratio, width, height):
        return refusal(briefs.comic, (title, panels), picture, palette, aspect_ratio, width, height)

    @classmethod
    def brief(cls, title, panels, columns, **page):
        return briefs.comic(Page(**page), title, panels, columns)
