"""Wrong words of an image, read, edited and read again until they are right."""
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.latest import io

from ..messages import Refusal
from ..pages import repair, typeset
from ..pages.page_fonts import NOTO
from .bridge.files import fonts
from .bridge.text_encoders.families import check_clip
from .common import categories
from .common.checks import UNCONNECTED, check_before_run, check_model, check_pair, check_vae
from .common.editing import check_edit_vae
from .common.guidance import MAX_CFG, check_guidance, shift_note
from .common.images import eight_bits
from .common.inputs import RESOLUTIONS
from .common.layouts import layout_input
from .common.region_edits import RegionEditor, before_edit
from .common.schedules import guidance_note, preset_input, steps_input, variant_warning
from .common.schemas import schema
from .common.text_checks import Asked, check_asked, for_the_page, unreadable_note
from .notices import notify, show

MOST = 20  # rounds


class QwenImage2RepairText(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2RepairText",
            display_name="Repair Text (Qwen-Image 2)",
            category=categories.TEXT,
            description="Reads the words in an image, edits only those that are wrong, and reads again, until all are "
                        "right or the attempts are used up. Only what reads better is kept.",
            search_aliases=["fix text", "spelling", "repair words", "text correction", "ocr loop", "typo"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Qwen-Image 2, with or without LoRAs: one that edits."),
                io.Clip.Input("clip", tooltip="The text encoder of the model's family, with its vision part."),
                io.Vae.Input("vae", tooltip="Encodes the regions, and decodes what comes of them."),
                io.Image.Input("image", tooltip="One image, RGB or RGBA, any size."),
                io.String.Input("expected_text", multiline=True, default="",
                                tooltip="What the image should say, one line per line, as for Text Check. Not used "
                                        "with a layout."),
                io.Int.Input("attempts", default=3, min=1, max=MOST,
                             tooltip="Rounds at most. Each edits every region that failed once, with another seed."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                             tooltip="Of the first edit. Each further one uses the next seed."),
                preset_input(),
                steps_input(),
                io.Float.Input("cfg", default=1.0, min=1.0, max=MAX_CFG, step=0.1,
                               tooltip="As in Sampler: 1 for 2.x; 4 for base models of 1.x, where each step takes "
                                       "twice as long."),
                io.String.Input("negative_prompt", multiline=True, default="",
                                tooltip="What to avoid. Only used where CFG is above 1."),
                io.String.Input("instruction", multiline=True, default="",
                                tooltip="What the edit is told, instead of the built-in English. <words> stands for "
                                        "the quoted words, else they follow it. <image2> are the typeset letters."),
                io.Boolean.Input("letters", default=True,
                                 tooltip="The right words, typeset where they belong, are a second reference. Off for "
                                         "models that know one reference, such as the first edit model of 1.x."),
                io.Combo.Input("font", [NOTO, *fonts.page_choices()], default=NOTO,
                               tooltip="Of the typeset letters: best one that resembles the image's. What it lacks is "
                                       "drawn by the next that has it."),
                io.Float.Input("context", default=0.5, min=0.0, max=4.0, step=0.05, advanced=True,
                               tooltip="Margin around a region that the model sees, as a fraction of its longer side."),
                io.Combo.Input("resolution", list(RESOLUTIONS), default="1024", advanced=True,
                               tooltip="Size class that a region is scaled to for its edit."),
                io.Int.Input("feather", default=16, min=0, max=512, advanced=True,
                             tooltip="Pixels around a region over which its edit blends into the image."),
                io.Boolean.Input("match_case", default=False, advanced=True,
                                 tooltip="As in Text Check: upper and lower case must match."),
                io.Boolean.Input("match_punctuation", default=False, advanced=True,
                                 tooltip="As in Text Check: punctuation must match."),
                io.Float.Input("tolerance", default=0.0, min=0.0, max=1.0, step=0.01, advanced=True,
                               tooltip="As in Text Check: the share of a line's characters that may be wrong."),
                io.Boolean.Input("allow_extra", default=False, advanced=True,
                                 tooltip="The image may contain other text. Off: additional lines are removed."),
                layout_input("From a brief, Deck Outline or Layout, or Elements of core's Create Bounding Boxes: its "
                             "texts are expected, each in its box, and missing ones are written there."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The image itself where nothing read better."),
                io.String.Output(display_name="report", tooltip="JSON: every round, its regions with words, seed and "
                                                                "score, and the last check."),
                io.Float.Output(display_name="score", tooltip="As Text Check's."),
                io.Boolean.Output(display_name="passed"),
                io.Mask.Output(display_name="repaired", tooltip="1 where the image may have changed, feather included. "
                                                                "Everywhere else it keeps its bits."),
            ],
        )

    @check_before_run
    def validate_inputs(cls, expected_text, attempts, cfg, layout=UNCONNECTED):
        check_asked(expected_text, layout)
        check_attempts(attempts)
        if cfg is not None:
            check_guidance(cfg, negative=True)

    @classmethod
    def execute(cls, model, clip, vae, image, expected_text, attempts, seed, preset, steps, cfg, negative_prompt,
                instruction, letters, font, context, resolution, feather, match_case, match_punctuation, tolerance,
                allow_extra, layout=None):
        check_attempts(attempts)
        check_guidance(cfg, negative=True)
        check_parts(model, clip, vae)
        check_one(image)
        asked = Asked.of(expected_text, layout, match_case, match_punctuation, tolerance, allow_extra)
        page_fonts = fonts.page_fonts(font) if letters else None
        if page_fonts:
            typeset.check_letters(asked.lines, page_fonts)
        notes = [variant_warning(model, preset), guidance_note(model, preset, cfg), shift_note(model),
                 unreadable_note(asked)]
        show(cls, *notes)  # before the work
        editor = RegionEditor(model, clip, vae, instruction, negative_prompt, seed, preset, steps, cfg, context,
                              int(resolution), feather, page_fonts, notes.append)
        height, width = image.shape[1:3]
        outcome = repair.repair(
            image, lambda picture: asked.check(eight_bits(picture)[0], throw_exception_if_processing_interrupted),
            editor, lambda found: repair.failed_regions(found, width, height, allow_extra), attempts,
            lambda *state: show(cls, *notes, before_edit(state[0], attempts, *state[1:])))
        return io.NodeOutput(outcome.picture, repair.as_json(outcome, seed, feather), outcome.found.score,
                             outcome.found.passed, changed(outcome, feather, height, width),
                             ui=notify(cls, *notes, *repair.notes(outcome))
                             | for_the_page(outcome.picture, [outcome.found]))


def check_attempts(attempts: int | None) -> None:
    """None is what is linked."""
    if attempts is not None and not 1 <= attempts <= MOST:
        raise Refusal("attempts_range", "The number of attempts must be between 1 and {max}, got {attempts}.", max=MOST,
                      attempts=attempts)


def check_parts(model, clip, vae) -> None:
    check_model(model)
    check_clip(clip, reads_images=True)
    check_vae(vae)
    check_pair(clip, vae)
    check_edit_vae(vae)


def check_one(image: torch.Tensor) -> None:
    eight_bits(image[:1])
    if len(image) != 1:
        raise Refusal("repair_one_image", "Got a batch of {count} images; words are repaired in one image at a time. "
                      "Put core's Rebatch Images with batch size 1 before this node, or Pick Best.", count=len(image))


def changed(outcome: repair.Outcome, feather: int, height: int, width: int) -> torch.Tensor:
    """MASK (1, H, W): 1 where an edit was kept, with the pixels around it over which it fades."""
    mask = torch.zeros(1, height, width)
    for box in outcome.repaired:
        mask[:, max(0, box.top - feather):box.bottom + feather, max(0, box.left - feather):box.right + feather] = 1
    return mask
