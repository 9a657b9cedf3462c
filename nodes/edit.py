"""References and an instruction -> CONDITIONING and the latent to edit on."""
import torch
from comfy_api.latest import io, ui

from ..messages import Message, Refusal
from ..model.images import sizes
from ..model.images.references import CLEAN_SIDE, named_references, off_failing_grid, resize
from ..model.qwen_image_1 import prompt as prompt_1
from .bridge.keys import FAMILY_1, FAMILY_2
from .bridge.text_encoders.families import check_clip
from .common import categories
from .common.checks import check_before_run, check_no_others, check_pair, check_vae
from .common.editing import EDIT_PLUS, TEMPLATES, check_edit_vae, conditioned
from .common.images import connected_references, empty_latent
from .common.inputs import RESOLUTIONS, reference_inputs, side_inputs
from .common.prompts import FOR_THE_METER, advice_on, trained_tokens
from .common.schemas import schema
from .frontend import ui_hints
from .notices import notify

AS_IT_IS = "as it is"
LAST, FIRST, CUSTOM = "last reference", "first reference", "custom"
# The key of what js/references.js shows in the node's `ui` output: one entry for each reference, in order.
REFERENCES = "qwen_image_2_references"
PREVIEW_SIDE = 256  # pixels, the longer one: twice what the page shows
TRAINED_REFERENCES = 3  # of 1.x


def check_target(canvas: str | None, width: int | None, height: int | None) -> None:
    """None is what is linked."""
    if canvas not in (None, LAST, FIRST, CUSTOM):
        raise Refusal("canvas_unknown", "Unknown canvas {canvas}; choose {last}, {first} or {custom}.",
                      canvas=str(canvas), last=LAST, first=FIRST, custom=CUSTOM)
    if canvas == CUSTOM and None not in (width, height):
        sizes.check_size(width, height)


def plan_sizes(references: list[torch.Tensor], resolution: str, canvas: str, width: int, height: int,
               guard: bool) -> tuple[list[tuple[int, int]], tuple[int, int], str | None]:
    """Sizes (width, height) of the references and of the canvas, and what the guard has to say."""
    check_target(canvas, width, height)
    area = None if resolution == AS_IT_IS else int(resolution)
    wanted = [sizes.reference_size(image.shape[1], image.shape[0], area) for image in references]
    target = (width, height) if canvas == CUSTOM else wanted[-1 if canvas == LAST else 0]
    if not (guard and off_failing_grid(target, wanted)):
        return wanted, target, None
    clean = (CLEAN_SIDE,) * 2
    note = Message("grid_guard", "Size changed from 1024 x 1024 to {width} x {height}, references of that size "
                   "included, because edits at exactly 1024 x 1024 are known to fail. (Avoid the 1024 grid controls "
                   "this.)", width=clean[0],
                   height=clean[1])
    return [clean if size == target else size for size in wanted], clean, note


def advice_on_references(family: str, count: int, named: set[int], labelled: bool) -> list[Message]:
    """labelled: the prompt calls them Picture 1, Picture 2, ... itself, as 1.x does."""
    advice = []
    if not named and not labelled and count > 1:
        advice.append(Message("references_unnamed", "The prompt names none of the {count} references. Refer to them as "
                              "<image1>, <image2>, ...", count=count))
    if named and family == FAMILY_1:
        advice.append(Message("references_labelled", "Qwen-Image 1.x knows its references as Picture 1, Picture 2, "
                              "...: the names <image1>, <image2>, ... in the prompt were written so."))
    if family == FAMILY_1 and count > TRAINED_REFERENCES:
        advice.append(Message("references_untrained", "{count} references; Qwen-Image 1.x was trained with at most "
                              "{max}.", count=count, max=TRAINED_REFERENCES))
    return advice


def for_the_page(images: dict, resized: list[torch.Tensor]) -> dict:
    """The references (1, H, W, 4) in order: the socket each comes from, and a small file of it in ComfyUI's temporary
    folder. What a socket holds is known to nobody before it has run: a batch is several references."""
    sockets = [socket for socket, batch in images.items() if batch is not None for _ in batch]
    files = ui.ImageSaveHelper.save_images([preview(image[0]) for image in resized], "qwen-image-2-reference",
                                           io.FolderType.temp, None, compress_level=1)
    return {REFERENCES: [{"slot": socket, "file": file} for socket, file in zip(sockets, files, strict=True)]}


def preview(image: torch.Tensor) -> torch.Tensor:
    """(H, W, 4), its longer side at most PREVIEW_SIDE."""
    height, width = image.shape[:2]
    shrunk = min(1, PREVIEW_SIDE / max(height, width))
    return resize(image, round(width * shrunk), round(height * shrunk))[0]


class QwenImage2EditEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2EditEncode",
            display_name="Encode Edit (Qwen-Image 2)",
            category=categories.CONDITIONING,
            description="Encodes an edit instruction with one to ten reference images, and outputs the latent to edit.",
            search_aliases=["image edit", "edit prompt", "reference image", "qwen image edit", "instruction"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder: Qwen3-VL of Qwen-Image 2.x, or Qwen2.5-VL of 1.x."),
                io.Vae.Input("vae", tooltip="Required: encodes the references for the transformer."),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True,
                                extra_dict=ui_hints(meter=True, references="images"),
                                tooltip="What to change. Refer to several references as <image1>, <image2>, ..."),
                io.String.Input("negative_prompt", multiline=True, dynamic_prompts=True, default="",
                                tooltip="What to avoid. Only used, and only encoded, where the sampler's CFG is above "
                                        "1."),
                reference_inputs("RGB or RGBA, any size. Every picture of a batch is used."),
                io.Combo.Input("resolution", [*RESOLUTIONS, AS_IT_IS], default="1024",
                               tooltip="Size class that each reference is resized to, at its own ratio. as it is: only "
                                       "cropped to multiples of 32."),
                io.Combo.Input("canvas", [LAST, FIRST, CUSTOM], default=LAST,
                               tooltip="Size of the result. The model's own rule is the last reference; any size other "
                                       "than that of the edited image shifts or zooms the edit."),
                *side_inputs("canvas", CUSTOM, "Only used with canvas custom."),
                io.Boolean.Input("grid_guard", default=True, advanced=True,
                                 tooltip="Edits at exactly 1024 x 1024 with a reference of that size give noise or a "
                                         "near-copy. This moves them to 1056 x 1056 and says so."),
                io.Int.Input("batch_size", default=1, min=1, max=64, advanced=True,
                             tooltip="Images per run. Image k uses the sampler's seed + k."),
                io.Combo.Input("edit_model", list(TEMPLATES), default=EDIT_PLUS, optional=True, advanced=True,
                               tooltip="Which edit model of Qwen-Image 1.x the prompt is for, since its files do not "
                                       "say. Edit Plus: one to three references. Edit: the model of August 2025, one "
                                       "reference. 2.x does not ask."),
                io.Boolean.Input("centre_references", default=False, optional=True, advanced=True,
                                 tooltip="2.x, where a reference has an odd number of rows or columns of 16 pixels and "
                                         "the canvas an even one, or the other way round: places its centre on the "
                                         "canvas's, as ComfyUI's own Qwen-Image 2.1 does. Off: half a token beside it, "
                                         "as trained. Sizes that are multiples of 32 do not ask."),
            ],
            outputs=[io.Conditioning.Output(display_name="positive"), io.Conditioning.Output(display_name="negative"),
                     io.Latent.Output(display_name="latent")],
        )

    @check_before_run
    def validate_inputs(cls, canvas, width, height, images=None):
        """images: ComfyUI hands inputs that grow to every check that there is. How many images they hold, and so
        which of them a prompt may name, is known to nobody before they have run."""
        check_target(canvas, width, height)

    @classmethod
    def execute(cls, clip, vae, prompt, negative_prompt, images, resolution, canvas, width, height, grid_guard,
                batch_size, edit_model=EDIT_PLUS, centre_references=False, **others):
        check_no_others(others)
        check_clip(clip, reads_images=True)
        check_vae(vae)
        family = check_pair(clip, vae)
        check_edit_vae(vae)
        references = connected_references(images)
        named = named_references(prompt, len(references))
        labelled = family == FAMILY_1 and prompt_1.has_labels(prompt)
        wanted, target, note = plan_sizes(references, resolution, canvas, width, height,
                                          grid_guard and family == FAMILY_2)
        resized = [resize(image, *size) for image, size in zip(references, wanted)]
        positive, negative = conditioned(clip, vae, (prompt, negative_prompt), references, resized, edit_model,
                                         centre_references)
        notes = (advice_on(prompt), note, *advice_on_references(family, len(references), named, labelled))
        return io.NodeOutput(list(positive), negative, empty_latent(*target, batch_size),
                             ui=notify(cls, *notes) | for_the_page(images, resized)
                             | {FOR_THE_METER: [trained_tokens(family)]})
