"""The layout of a page: its boxes as they are or as somebody has moved them, typeset in real fonts."""
import numpy as np
import torch
from comfy_api.latest import io
from numpy import ndarray

from ..messages import Message, plural
from ..model.images import sizes
from ..pages import typeset, wording
from ..pages.page_fonts import NOTO
from ..pages.places import asked_for
from ..pages.vocabulary import LANGUAGES
from .bridge.files import fonts
from .bridge.text_encoders.families import count_tokens
from .common import categories
from .common.checks import UNCONNECTED, check_before_run
from .common.layouts import layout_from, layout_input, layout_output
from .common.prompts import TRAINED_TOKENS
from .common.schemas import schema
from .frontend import saved_inputs, ui_hints
from .notices import notify


class QwenImage2Layout(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2Layout",
            display_name="Layout (Qwen-Image 2)",
            category=categories.BRIEFS,
            description="Sets the texts of a page in real fonts: as a reference for Encode Edit (\"the page laid out "
                        "as in <image1>\"), and as edges for Apply Control. Boxes can be moved; the prompt follows.",
            search_aliases=["layout", "boxes", "typeset", "page", "bounding boxes", "regions", "typography"],
            inputs=saved_inputs([
                layout_input("From a brief or Deck Outline, or Elements of core's Create Bounding Boxes. Nothing "
                             "connected: Boxes is the whole layout."),
                io.String.Input("boxes", multiline=True, default="", extra_dict=ui_hints(boxes_of="layout"),
                                tooltip="JSON. With a layout connected: a list of what differs from it, each entry "
                                        "with the name of its box and new values, such as y. Without: the whole "
                                        "layout, in the form of the output Boxes."),
                io.Combo.Input("font", [NOTO, *fonts.page_choices()], default=NOTO,
                               tooltip="For boxes without a font of their own: Noto Sans (Latin, Greek, Cyrillic, "
                                       "Chinese, Japanese), files in ComfyUI's models/fonts, and the system's fonts. "
                                       "What a font lacks is drawn by the next that has it."),
                io.Combo.Input("picture", list(typeset.PICTURES), default=typeset.GREY,
                               tooltip="Areas of pictures on the page: gray, or white as the paper."),
                *(io.Int.Input(side, default=1024, min=sizes.MIN_SIDE, max=sizes.MAX_SIDE, step=sizes.STEP,
                               tooltip="Pixels, a multiple of 16. Only used for boxes that come without a canvas: a "
                                       "list, or Elements of Create Bounding Boxes.") for side in ("width", "height")),
                io.Combo.Input("language", list(LANGUAGES), default="English",
                               tooltip="Language of the prompt's own sentences, for a layout without a brief."),
            ]),
            outputs=[
                layout_output(),
                io.Image.Output(display_name="page", tooltip="The typeset page, for Encode Edit."),
                io.Mask.Output(display_name="glyphs", tooltip="1 where letters are."),
                io.String.Output(display_name="boxes", tooltip="The whole layout as JSON."),
                io.Image.Output(display_name="edges", tooltip="Outlines of letters, panels and bubbles, white on "
                                                              "black: for Apply Control."),
                io.String.Output(display_name="prompt", tooltip="With words for the places of boxes that were moved; "
                                                                "else the brief's prompt to the letter."),
                io.Int.Output(display_name="width"),
                io.Int.Output(display_name="height"),
            ],
        )

    @check_before_run
    def validate_inputs(cls, boxes, width, height, layout=UNCONNECTED):
        if layout is UNCONNECTED and None not in (boxes, width, height):
            layout_from(None, boxes, width, height)

    @classmethod
    def execute(cls, boxes, font, picture, width, height, language, layout=None):
        layout, lost = layout_from(layout, boxes, width, height)
        page = typeset.typeset(layout, fonts.page_fonts(font), picture)
        asked = wording.fitted(asked_for(layout, language), count_tokens, TRAINED_TOKENS)
        said = Message("layout_set", "{boxes} on {width} x {height} pixels.", width=layout.width, height=layout.height,
                       boxes=plural("boxes", len(layout.boxes), "{count} box", "{count} boxes"))
        edges = np.repeat(page.edges[..., None], 3, -1)
        return io.NodeOutput(layout, as_tensor(page.page), as_tensor(page.ink), layout.to_json(), as_tensor(edges),
                             asked.prompt, layout.width, layout.height,
                             ui=notify(cls, said, *lost, *page.notes, *asked.notes))


def as_tensor(picture: ndarray) -> torch.Tensor:
    """8 bits (H, W) or (H, W, 3) -> MASK or IMAGE of one."""
    return torch.from_numpy(picture.astype(np.float32) / 255).unsqueeze(0)
