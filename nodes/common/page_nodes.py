"""What the four briefs and Deck Outline share: the fields of a Page, and prompts that are written from them."""
from collections.abc import Callable
from dataclasses import fields

from comfy_api.latest import io

from ...pages.briefs import Page
from ...pages.vocabulary import ENGLISH, LANGUAGES
from .checks import check_before_run, check_canvas
from .inputs import canvas_inputs
from .prompts import Measure

PICTURE = "What is drawn besides the texts, in as many words as you like. Words in double quotes are drawn too."
# The fields of a Page that can be wrong; the others are chosen from a list.
CANVAS = ("picture", "palette", "aspect_ratio", "width", "height")


def text_input(name: str, tooltip: str) -> io.Input:
    return io.String.Input(name, multiline=True, default="", tooltip=tooltip)


def line_input(name: str, tooltip: str) -> io.Input:
    return io.String.Input(name, default="", tooltip=tooltip)


def page_inputs(style: str, type_character: str, aspect_ratio: str, picture: str = PICTURE) -> list[io.Input]:
    """The fields of a Page."""
    return [
        text_input("picture", picture),
        io.Combo.Input("language", list(LANGUAGES), default="English",
                       tooltip="Language of the prompt's own sentences. The texts may be in any language."),
        io.Combo.Input("style", list(ENGLISH.styles), default=style,
                       tooltip="Look of the whole page. as described: only what the picture description says."),
        io.Combo.Input("type_character", list(ENGLISH.types), default=type_character,
                       tooltip="Typeface style of the lettering."),
        io.String.Input("palette", default="deep blue, cream white, warm orange",
                        tooltip="Colors, separated by commas: background, lettering, accent, others. Empty: the model "
                                "chooses."),
        io.Boolean.Input("transparent", default=False,
                         tooltip="No background; the palette's first color is not used. The transparency is in the "
                                 "RGBA output of VAE Decode."),
        *canvas_inputs(aspect_ratio, "2048"),
    ]


def page_of(inputs: dict) -> tuple[Page, dict]:
    """The Page among a node's inputs, and the inputs that are no field of it."""
    names = {field.name for field in fields(Page)}
    page = Page(**{name: value for name, value in inputs.items() if name in names})
    return page, {name: value for name, value in inputs.items() if name not in names}


class PageNode(io.ComfyNode):
    """A node that writes prompts from a Page and from texts, which are checked before anything runs."""

    @classmethod
    def write(cls, page: Page, **texts: str) -> None:
        """Write the prompts from the node's texts alone. Raises Refusal where one cannot be written."""
        raise NotImplementedError

    @classmethod
    def measure(cls, inputs: dict, count: Callable[[str], int]) -> Measure:
        """For the page (routes.py): what execute will say. Raises ValueError for what execute refuses."""
        raise NotImplementedError


def _check(node: type[PageNode], **inputs) -> None:
    check_canvas(inputs["aspect_ratio"], inputs["width"], inputs["height"])
    if None not in inputs.values():  # else something is linked, and not yet known
        page, texts = page_of(inputs)
        node.write(page, **texts)


def texts_checked(*texts: str) -> classmethod:
    """The validate_inputs of a PageNode. texts: its inputs whose words are drawn."""
    return check_before_run(_check, (*texts, *CANVAS))
