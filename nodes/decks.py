"""An outline -> one slide brief after the other; the pictures of all slides -> a PowerPoint file and a PDF."""
from collections.abc import Callable
from pathlib import Path

from comfy_api.latest import io

from .. import atomic
from ..messages import Message, Refusal, and_list, plural
from ..pages import briefs, deck, outline, pdf, wording
from ..pages.arrangement import arranged
from ..pages.briefs import Page
from ..pages.outline import seeds
from ..pages.places import unlettered
from .bridge.progress import loading_progress
from .bridge.text_encoders.families import count_tokens
from .common import categories
from .common.checks import UNCONNECTED, check_before_run
from .common.images import check_channels, eight_bits
from .common.layouts import LayoutType, layout_output
from .common.page_nodes import PageNode, line_input, page_inputs, page_of, texts_checked
from .common.paths import HIDDEN, check_name, name_of, new_paths, saved
from .common.prompts import TRAINED_TOKENS, Measure
from .common.rows import filled_in, row_input
from .common.schemas import schema
from .frontend import measured_inputs
from .notices import notify

FILES = {"PPTX and PDF": (".pptx", ".pdf"), "PPTX": (".pptx",), "PDF": (".pdf",)}
BY_PICTURES = "as the pictures"
IN_PICTURE, EDITABLE = TEXT = ("in the picture", "editable")
OUTLINE = """# The harbour at night
A short tour
Picture: a harbour at night, seen from the water
> Welcome everyone.

## Who works here
Picture: a tug boat under a crane
- Pilots
- Tug crews
- Crane drivers
> About four hundred people in each shift.
"""


class QwenImage2DeckOutline(PageNode):
    validate_inputs = texts_checked("outline", "footer")

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2DeckOutline",
            display_name="Deck Outline (Qwen-Image 2)",
            category=categories.DECKS,
            description="Writes the prompts of a whole presentation from a Markdown outline, with one style for all "
                        "slides. Connected nodes run once per slide.",
            search_aliases=["slides", "presentation", "powerpoint", "deck", "markdown", "outline", "keynote"],
            inputs=measured_inputs([
                io.String.Input("outline", multiline=True, default=OUTLINE,
                                tooltip="# starts the deck, ## each further slide. Below it: - bullet points, > "
                                        "speaker notes, Picture: what is drawn, Layout: such as title top, picture "
                                        "left, 2 columns, Footer: its own footer, Seed: its own seed; a plain line "
                                        "before the bullet points is the subtitle. Texts are drawn exactly "
                                        "as written."),
                line_input("footer", "Small, along the lower edge of every slide without a Footer: line. Drawn exactly "
                                     "as written."),
                io.Combo.Input("title_position", list(briefs.SLIDE_TITLES), default="top left",
                               tooltip="Position of the titles, unless a Layout: line says otherwise. A # slide's "
                                       "title is centered."),
                io.Combo.Input("picture_position", list(briefs.PICTURE_POSITIONS), default="right",
                               tooltip="Position of the pictures, unless a Layout: line says otherwise. A # slide's "
                                       "picture is behind the text."),
                *page_inputs("minimalist", "bold sans serif", "16:9",
                             picture="What is drawn on every slide without a Picture: line, besides the texts. Words "
                                     "in double quotes are drawn too."),
                # Optional, or programs that run an older workflow would have to give it.
                # Fixed, or a slide could not be drawn anew without the others.
                io.Int.Input("seed", default=0, min=0, max=outline.SEEDS - 1, optional=True,
                             control_after_generate=io.ControlAfterGenerate.fixed,
                             tooltip="Seed of the first slide; each further slide uses the next seed, or that of its "
                                     "Seed: line."),
                row_input(),
                io.Combo.Input("text", list(TEXT), default=IN_PICTURE, optional=True,
                               tooltip="editable: the prompts ask for slides without text, with room for it. Save Deck "
                                       "then writes the texts into the file, with Text set to editable there too."),
            ]),
            outputs=[
                io.String.Output(display_name="prompt", is_output_list=True, tooltip="One per slide."),
                io.Int.Output(display_name="width", is_output_list=True),
                io.Int.Output(display_name="height", is_output_list=True),
                io.String.Output(display_name="expected_text", is_output_list=True,
                                 tooltip="Every text of each slide, one line per line: for Text Check and Save Deck."),
                io.String.Output(display_name="notes", is_output_list=True,
                                 tooltip="Speaker notes, for Save Deck; empty for slides without."),
                io.Int.Output(display_name="slides", tooltip="Number of slides."),
                io.Int.Output(display_name="seed", is_output_list=True, tooltip="One per slide, for Sampler."),
                layout_output(is_output_list=True),
            ],
        )

    @classmethod
    def write(cls, page: Page, **texts: str) -> None:
        slides = outline.read(texts["outline"])
        outline.of_each(slides, lambda slide: wording.write(outline.brief(slide, page, texts["footer"])))

    @classmethod
    def measure(cls, inputs: dict, count: Callable[[str], int]) -> Measure:
        return measure(*fitted(inputs, count))

    @classmethod
    def execute(cls, seed=0, row=None, text=IN_PICTURE, **inputs):
        inputs = filled_in(cls, inputs, row)
        slides, written = fitted(inputs, count_tokens)
        found = measure(slides, written)
        width, height = page_of(inputs)[0].pixels
        layouts = [arranged(result.brief) for result in written]
        prompts = [unlettered(layout) if text == EDITABLE else result.prompt
                   for layout, result in zip(layouts, written)]
        return io.NodeOutput(
            prompts, [width] * len(slides), [height] * len(slides),
            ["\n".join(result.texts) for result in written], ["\n".join(slide.notes) for slide in slides], len(slides),
            seeds(slides, seed), layouts,
            ui=notify(cls, Message("deck_written", "{slides}; the longest prompt has {tokens} tokens.",
                                   tokens=found.tokens, slides=found.slides), *found.notes))


def fitted(inputs: dict, count: Callable[[str], int]) -> tuple[list[outline.Slide], list[wording.Written]]:
    page, others = page_of(inputs)
    slides = outline.read(others.pop("outline"))
    return slides, outline.of_each(slides, lambda slide: wording.fitted(
        outline.brief(slide, page, **others), count, TRAINED_TOKENS))


def measure(slides: list[outline.Slide], written: list[wording.Written]) -> Measure:
    notes = [Message("slide_note", "{slide}: {note}", slide=slide.name, note=note)
             for slide, result in zip(slides, written) for note in result.notes]
    return Measure(max(result.tokens for result in written), [text for result in written for text in result.texts],
                   notes, plural("slides", len(slides), "{count} slide", "{count} slides"))


class QwenImage2SaveDeck(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2SaveDeck",
            display_name="Save Deck (Qwen-Image 2)",
            category=categories.DECKS,
            description="Saves all images as one presentation: PowerPoint (python-pptx), with the words as alternative "
                        "text and in the notes, or PDF.",
            search_aliases=["pptx", "powerpoint", "pdf", "presentation", "slides", "export"],
            is_input_list=True,  # all slides at once
            inputs=[
                io.Image.Input("images", tooltip="A list, a batch, or a list of batches; one page per image."),
                io.String.Input("filename_prefix", default="qwen_image_2_deck",
                                tooltip="Name of the files in ComfyUI's output folder; subfolders are created and a "
                                        "number is added. As in Save Image, %date:yyyy-MM-dd%, %Node.widget% and "
                                        "%width% are filled in."),
                io.Combo.Input("files", list(FILES), default="PPTX and PDF",
                               tooltip="PPTX needs the package python-pptx, see docs/text-and-layout.md. In a PDF "
                                       "transparent parts are white; its words can be selected where the package fpdf2 "
                                       "is installed."),
                io.Combo.Input("page", [BY_PICTURES, *deck.PAGES], default=BY_PICTURES,
                               tooltip="Width to height of the pages. as the pictures: 16:9 or 4:3 if the first image "
                                       "is close to it, else its own ratio. Images of another ratio are shown whole, "
                                       "on white."),
                io.String.Input("texts", optional=True, force_input=True,
                                tooltip="The words in the images: Expected text of Deck Outline."),
                io.String.Input("notes", optional=True, force_input=True,
                                tooltip="The speaker notes: Notes of Deck Outline."),
                io.Combo.Input("text", list(TEXT), default=IN_PICTURE, optional=True,
                               tooltip="editable: PPTX gets text boxes and PDF real text on the images, which must "
                                       "have been drawn without text: set Text of Deck Outline to editable too."),
                LayoutType.Input("layouts", optional=True,
                                 tooltip="Where the texts stand: Layout of Deck Outline. For editable text, and for "
                                         "words of a PDF that can be selected in their place."),
            ],
            is_output_node=True,
            hidden=HIDDEN,
        )

    @check_before_run
    def validate_inputs(cls, filename_prefix, files, text=(IN_PICTURE,), layouts=UNCONNECTED):
        # Lists of one, as in execute.
        check_name(filename_prefix[0])
        require(files[0])
        require_editable(text[0], files[0], layouts is not UNCONNECTED)

    @classmethod
    def execute(cls, images, filename_prefix, files, page, texts=(), notes=(), text=(IN_PICTURE,), layouts=()):
        require(files[0])
        require_editable(text[0], files[0], bool(layouts))
        prefix, suffixes = name_of(cls, filename_prefix[0]), FILES[files[0]]
        sheets, unlike = sheets_of(images, texts, notes, layouts, text[0] == EDITABLE)
        ratio = deck.PAGES.get(page[0]) or deck.page_ratio(sheets[0].picture)
        paths = save(sheets, prefix, suffixes, ratio)
        return io.NodeOutput(ui={"files": [saved(path) for path in paths]} | notify(
            cls, Message("deck_saved", "Saved {files}: {pages}.", files=and_list([path.name for path in paths]),
                         pages=plural("pages", len(sheets), "{count} page", "{count} pages")), *unlike,
            pdf.advice() if ".pdf" in suffixes else None))


def require(files: str | None) -> None:
    """Raises ValueError for files that cannot be written here; ComfyUI leaves out its own check of the choice."""
    if files not in (None, *FILES):
        raise Refusal("deck_files", "Unknown file type {files}; choose {known}.", files=repr(files),
                      known=", ".join(FILES))
    if ".pptx" in FILES.get(files, ()):
        deck.require()


def require_editable(text: str | None, files: str | None, laid_out: bool) -> None:
    """Raises Refusal for editable text that nobody knows the place of, or that cannot be written here."""
    if text not in (None, *TEXT):
        raise Refusal("deck_text", "Unknown choice {text}; choose {known}.", text=repr(text), known=", ".join(TEXT))
    if text != EDITABLE:
        return
    if not laid_out:
        raise Refusal("deck_no_layouts", "Editable text needs the layouts of the slides, and none are connected. "
                      "Connect Layout of Deck Outline to Layouts, or set Text to {choice}.", choice=repr(IN_PICTURE))
    if ".pdf" in FILES.get(files, ()):
        pdf.require()


def sheets_of(images: list, texts, notes, layouts, editable: bool) -> tuple[list[deck.Sheet], list[str]]:
    """Every picture of a list of batches with its text and notes, and sentences about what does not match."""
    for batch in images:
        check_channels(batch)
    batches = [len(batch) for batch in images]
    if not sum(batches):
        raise Refusal("deck_empty", "No images to save.")
    texts, *unlike = deck.shared_out(texts, batches, deck.texts_for)
    notes, *more = deck.shared_out(notes, batches, deck.notes_for)
    layouts, *others = deck.shared_out(layouts, batches, deck.layouts_for) if layouts else ([None] * sum(batches),)
    pictures = (eight_bits(picture.unsqueeze(0))[0] for batch in images for picture in batch)
    return [deck.Sheet(*sheet, layout or None, editable) for *sheet, layout in zip(pictures, texts, notes, layouts)], [
        *unlike, *more, *others]


def save(sheets: list[deck.Sheet], prefix: str, suffixes: tuple[str, ...], ratio: float) -> list[Path]:
    """One file of each kind, all with the same unused number; each is whole or not there."""
    progress, done = loading_progress(len(sheets) * len(suffixes)), 0
    height, width = sheets[0].picture.shape[:2]

    def watched():
        nonlocal done
        for sheet in sheets:
            progress(done, len(sheets) * len(suffixes))
            yield sheet
            done += 1

    with new_paths(prefix, suffixes, width, height) as paths:
        for path in paths:
            atomic.write_by(path, lambda file, write=deck.WRITERS[path.suffix], title=path.stem: write(
                file, watched(), ratio, title))
    return paths
