"""Exact words as a picture, for edits that must copy them."""
import numpy as np
import torch
from comfy_api.latest import io

from ..messages import Message, plural
from ..pages import glyphs
from ..pages.quotation import quote
from ..pages.vocabulary import ENGLISH
from .bridge.files import fonts
from .common import categories
from .common.schemas import schema
from .notices import notify

HORIZONTAL, VERTICAL = "horizontal", "vertical"


class QwenImage2GlyphReference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2GlyphReference",
            display_name="Glyph Reference (Qwen-Image 2)",
            category=categories.TEXT,
            description='Renders exact words in a real font, black on white: a reference for Encode Edit ("the words '
                        'exactly as in <image2>").',
            search_aliases=["render text", "text image", "font", "typography", "glyphs", "lettering"],
            inputs=[
                io.String.Input("text", multiline=True, default="",
                                tooltip="The words, one line per line. Invisible characters are left out."),
                io.Combo.Input("font", list(fonts.choices()), default=glyphs.BUILT_IN,
                               tooltip="Font files from ComfyUI's models/fonts folder, and the system's fonts. A font "
                                       "that lacks one of the characters is refused. Chinese needs a Chinese font."),
                io.Int.Input("letter_height", default=96, min=glyphs.MIN_LETTERS, max=512,
                             tooltip="In pixels; reduced if the page would exceed 4096 pixels."),
                io.Combo.Input("direction", [HORIZONTAL, VERTICAL], default=HORIZONTAL,
                               tooltip="vertical: each line is a column of upright characters; the first column is on "
                                       "the right."),
            ],
            outputs=[io.Image.Output(display_name="image"),
                     io.String.Output(display_name="quoted", tooltip="The lines in quotation marks, for the prompt; "
                                                                     "the marks are of a kind that the line itself "
                                                                     "does not contain.")],
        )

    @classmethod
    def execute(cls, text, font, letter_height, direction):
        lines = glyphs.clean_lines(text)
        quoted = ", ".join(quote(line, ENGLISH.pairs) for line in lines)  # before the work
        page = glyphs.render(lines, fonts.resolve(font), font, letter_height, direction == VERTICAL)
        note = Message("glyph_lines", "{lines} on {width} x {height} pixels.", width=page.shape[1],
                       height=page.shape[0], lines=plural("lines", len(lines), "{count} line", "{count} lines"))
        return io.NodeOutput(torch.from_numpy(page.astype(np.float32) / 255).unsqueeze(0),
                             quoted, ui=notify(cls, note))
