"""Is what an image says what it should say? And which image of a batch says it best?"""
import math

import numpy as np
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.latest import io

from ..messages import Message, Refusal
from ..pages import compare, report
from .bridge.progress import loading_progress
from .common import categories
from .common.checks import UNCONNECTED, check_before_run
from .common.images import eight_bits
from .common.layouts import layout_input
from .common.schemas import schema
from .common.text_checks import Asked, check_asked, for_the_page, unreadable_note
from .notices import notify


def compare_all(images: np.ndarray, asked: Asked) -> list[compare.Comparison]:
    """Every image of a batch; the node's bar moves with each, and cancelling stops between looks and lines."""
    progress, found = loading_progress(len(images)), []
    for number, image in enumerate(images):
        found.append(asked.check(image, between=lambda done=number: progress(done, len(images))))
    progress(len(images), len(images))
    return found


def draw_all(images: np.ndarray, found: list[compare.Comparison], allow_extra: bool) -> tuple[np.ndarray, np.ndarray]:
    """Overlays (B, H, W, 3), 8 bits, and masks (B, H, W) of a batch; cancelling stops between images and lines."""
    overlays, masks = [], []
    for image, one in zip(images, found, strict=True):
        overlays.append(report.overlay(image[..., :3], one, throw_exception_if_processing_interrupted))
        masks.append(report.mask(one, *image.shape[:2], allow_extra, throw_exception_if_processing_interrupted))
    return np.stack(overlays), np.stack(masks)


class QwenImage2TextCheck(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2TextCheck",
            display_name="Text Check (Qwen-Image 2)",
            category=categories.TEXT,
            description="Reads the words in images (RapidOCR, offline) and compares them with the expected text: line "
                        "by line, with a score per image and a mask of what failed.",
            search_aliases=["ocr", "read text", "spelling check", "text accuracy", "rapidocr", "proofread"],
            inputs=[
                io.Image.Input("image", tooltip="RGB or RGBA, any size, one or many. Small images are enlarged; "
                                                "transparent ones are read on white and on black."),
                io.String.Input("expected_text", multiline=True, default="",
                                tooltip="What the image should say, one line per line, in any order. A line may be "
                                        "broken in the image. Spaces, full-width forms, kinds of dashes and quotation "
                                        "marks, and invisible characters never matter; letters, accents and digits "
                                        "always do."),
                io.Boolean.Input("match_case", default=False,
                                 tooltip="Upper and lower case must match. Off: Sale equals SALE."),
                io.Boolean.Input("match_punctuation", default=False,
                                 tooltip="Punctuation must match. Off: it only counts between two digits (1.50 is not "
                                         "150); % & @ # always count."),
                io.Float.Input("tolerance", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="The share of a line's characters that may be wrong before the line fails. "
                                       "The OCR itself errs at times; docs/text-and-layout.md says how often."),
                io.Boolean.Input("allow_extra", default=False,
                                 tooltip="The image may contain other text, such as signs in a photograph. Off: "
                                         "additional lines fail and lower the score."),
                layout_input("From a brief, Deck Outline or Layout, or Elements of core's Create Bounding Boxes. Its "
                             "texts are expected, each in its box; Expected text is not used then. Boxes count by "
                             "their area in the score."),
            ],
            outputs=[
                io.Image.Output(display_name="overlay", tooltip="Green: right. Red: wrong. Purple: outside of its box. "
                                                                "Orange: not expected. Gray: hardly readable. The "
                                                                "numbers are those of the expected lines."),
                io.String.Output(display_name="report", tooltip="JSON: every line of every image, with boxes."),
                io.Float.Output(display_name="score", is_output_list=True,
                                tooltip="One per image, 1 is perfect: 1 - wrong characters / characters."),
                io.Boolean.Output(display_name="passed", tooltip="True if every line of every image is right."),
                io.Mask.Output(display_name="mask", tooltip="1 where the text failed: for Crop for Edit. The whole "
                                                            "image if lines are missing and nothing shows where."),
                io.String.Output(display_name="failed_lines", tooltip="The expected lines that are wrong or missing in "
                                                                      "any image: for Glyph Reference."),
            ],
        )

    @check_before_run
    def validate_inputs(cls, expected_text, layout=UNCONNECTED):
        check_asked(expected_text, layout)

    @classmethod
    def execute(cls, image, expected_text, match_case, match_punctuation, tolerance, allow_extra, layout=None):
        images = eight_bits(image)
        asked = Asked.of(expected_text, layout, match_case, match_punctuation, tolerance, allow_extra)
        found = compare_all(images, asked)
        drawn, failed = draw_all(images, found, allow_extra)
        notes = [note for number, one in enumerate(found, start=1)
                 for note in (report.sentence(number, one), *report.layout_notes(number, one))]
        return io.NodeOutput(
            torch.from_numpy(drawn.astype(np.float32) / 255), report.as_json(found),
            [one.score for one in found], all(one.passed for one in found), torch.from_numpy(failed),
            report.failed_lines(found),
            ui=notify(cls, *notes, unreadable_note(asked)) | for_the_page(image, found))


class QwenImage2PickBest(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2PickBest",
            display_name="Pick Best (Qwen-Image 2)",
            category=categories.TEXT,
            description="Picks the image with the highest score; of equal ones the first. A second set of images is "
                        "only made when the first has not passed.",
            search_aliases=["best of batch", "select image", "highest score", "choose best"],
            is_input_list=True,  # or it would run once for each score
            inputs=[
                io.Image.Input("images", tooltip="A batch, or a list of images."),
                io.Float.Input("scores", force_input=True, tooltip="One per image, from Text Check."),
                io.Boolean.Input("passed", optional=True, force_input=True,
                                 tooltip="From Text Check. If true, the other images are neither made nor considered."),
                io.Image.Input("other_images", optional=True, lazy=True,
                               tooltip="More images to pick from, such as repaired ones."),
                io.Float.Input("other_scores", optional=True, force_input=True, lazy=True,
                               tooltip="One for each of the other images."),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.Int.Output(display_name="index", tooltip="Counted from 0, the other images after the first ones. "
                                                            "Image k of a batch has the sampler's seed + k."),
                io.Float.Output(display_name="score"),
            ],
        )

    @classmethod
    def check_lazy_status(cls, images, scores, passed=(False,), other_images=(), other_scores=()):
        # What is connected and not made yet comes as (None,).
        others = {"other_images": other_images, "other_scores": other_scores}
        return [] if all(passed) else [name for name, value in others.items() if value and value[0] is None]

    @classmethod
    def execute(cls, images, scores, passed=(False,), other_images=(), other_scores=()):
        if not all(passed):
            images, scores = [*images, *other_images], [*scores, *other_scores]
        singles = [image for batch in images for image in batch]
        if len(singles) != len(scores):
            raise Refusal("score_count", "Got {scores} scores for {images} images; the counts must match.",
                          scores=len(scores), images=len(singles))
        if not singles:
            raise Refusal("nothing_to_pick", "No images to pick from.")
        if not all(map(math.isfinite, scores)):
            raise Refusal("score_not_finite", "A score is NaN or infinite.")
        index = max(range(len(scores)), key=scores.__getitem__)  # the first of equal ones
        note = Message("score_of_image", "Image {number} of {all}, score {score}.", number=index + 1, all=len(scores),
                       score=f"{scores[index]:.2f}")
        return io.NodeOutput(singles[index].unsqueeze(0), index, float(scores[index]), ui=notify(cls, note))
