"""The control network of Qwen-Image 2.1: pictures that say where things are."""
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..messages import Message, Refusal
from ..model.images.regions import as_masks
from .bridge.control import MAX_STRENGTH, AppliedControl, apply_control, in_words, load_control
from .bridge.files.folders import file_names
from .bridge.keys import FAMILY_2
from .bridge.runtime.budget import division_in_words
from .bridge.vae import family_of
from .common import categories
from .common.checks import UNCONNECTED, check_before_run, check_model, check_vae
from .common.images import check_images
from .common.inputs import Control
from .common.schemas import schema
from .notices import notify

FOLDERS = ("model_patches", "controlnet")  # Comfy-Org's place for it, and other people's


def control_files() -> list[str]:
    listed = [name for folder in FOLDERS if folder in folder_paths.folder_names_and_paths
              for name in file_names(folder) if name.lower().endswith(".safetensors")]
    return list(dict.fromkeys(listed))


def resolved(name: str) -> Path:
    for folder in FOLDERS:
        if folder in folder_paths.folder_names_and_paths and (path := folder_paths.get_full_path(folder, name)):
            return Path(path)
    raise Refusal("control_gone", "The control file {file} is no longer in models/model_patches or models/controlnet.",
                  file=name)


class QwenImage2LoadControl(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2LoadControl",
            display_name="Load Control (Qwen-Image 2)",
            category=categories.LOADERS,
            description="Loads the Fun ControlNet Union of Qwen-Image-2.1: canny, depth, pose, lines, scribble, "
                        "grayscale and inpainting in one file.",
            search_aliases=["controlnet", "control", "fun controlnet", "union", "model patch"],
            inputs=[io.Combo.Input("control_model", control_files(),
                                   tooltip="A .safetensors file in models/model_patches or models/controlnet.")],
            outputs=[Control.Output(display_name="control")],
        )

    @classmethod
    def fingerprint_inputs(cls, control_model):
        if control_model is None:  # linked
            return []
        try:
            about = resolved(control_model).stat()
        except (Refusal, OSError):  # the run itself will say so
            return []
        return [about.st_size, about.st_mtime_ns]

    @classmethod
    def execute(cls, control_model):
        control = load_control(resolved(control_model), control_model)
        size = f"{control.patcher.model_size() / 2**30:.2f}"
        return io.NodeOutput(control, ui=notify(cls, Message(
            "control_loaded", "{file}: control network, {blocks} blocks, {size} GiB.", file=control_model,
            blocks=control.spec.blocks, size=size)))


class QwenImage2ApplyControl(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        share = {"min": 0.0, "max": 1.0, "step": 0.01}
        return schema(
            node_id="QwenImage2ApplyControl",
            display_name="Apply Control (Qwen-Image 2)",
            category=categories.CONDITIONING,
            description="Makes images follow a control picture. Several add up. The KV cache of the prompt stays on.",
            search_aliases=["apply controlnet", "control", "canny", "depth", "pose", "inpaint", "union"],
            inputs=[
                io.Model.Input("model", tooltip="A Qwen-Image 2.x model, with or without LoRAs."),
                Control.Input("control", tooltip="From Load Control (Qwen-Image 2)."),
                io.Vae.Input("vae", tooltip="Encodes the pictures when a run begins, stretched to its canvas."),
                io.Image.Input("image", optional=True,
                               tooltip="The control picture: edges, depth, a skeleton, lines. One for all images, or "
                                       "one each. Nothing connected: inpainting alone."),
                io.Mask.Input("mask", optional=True, tooltip="1 is painted anew. Pixels outside are close to the "
                                                             "picture, not equal: put Stitch Edit behind."),
                io.Float.Input("strength", default=1.0, min=0.0, max=MAX_STRENGTH, step=0.05,
                               tooltip="1 as trained. 0: off."),
                io.Float.Input("start", default=0.0, tooltip="Share of the schedule at which control begins.", **share),
                io.Float.Input("end", default=1.0, tooltip="Share of the schedule at which it ends.", **share),
                io.Image.Input("inpaint_image", optional=True, tooltip="The picture that the mask belongs to."),
                io.Boolean.Input("reference_rows", default=False, optional=True, advanced=True,
                                 tooltip="With references of an edit: give them empty control channels, as VideoX-Fun "
                                         "does. Off: none, as ComfyUI does."),
            ],
            outputs=[io.Model.Output()],
        )

    @check_before_run
    def validate_inputs(cls, strength, start, end, image=UNCONNECTED, mask=UNCONNECTED, inpaint_image=UNCONNECTED):
        check_inputs(strength, start, end, *(each is not UNCONNECTED for each in (image, mask, inpaint_image)))

    @classmethod
    def execute(cls, model, control, vae, strength, start, end, image=None, mask=None, inpaint_image=None,
                reference_rows=False):
        check_inputs(strength, start, end, *(each is not None for each in (image, mask, inpaint_image)))
        check_model(model)
        check_vae(vae)
        if family_of(vae) != FAMILY_2:
            raise Refusal("control_vae", "The control network of Qwen-Image-2.1 needs the VAE of Qwen-Image 2.x; this "
                          "one is that of Qwen-Image {family}. Connect the VAE of the model.", family=family_of(vae))
        for picture in (image, inpaint_image):
            if picture is not None:
                check_images(picture)
        applied = AppliedControl(control, vae, image, None if mask is None else as_masks(mask), inpaint_image,
                                 strength, start, end, reference_rows)
        if strength == 0:
            return io.NodeOutput(model, ui=notify(cls, Message("control_off", "Strength 0: the control is off.")))
        controlled = apply_control(model, applied)
        return io.NodeOutput(controlled, ui=notify(cls, in_words(applied), *division_in_words(controlled)))


def check_inputs(strength: float | None, start: float | None, end: float | None, image: bool, mask: bool,
                 inpaint_image: bool) -> None:
    """None is what is linked. image, mask, inpaint_image: whether they are connected."""
    if strength is not None and not 0 <= strength <= MAX_STRENGTH:
        raise Refusal("control_strength", "The control's strength must be between 0 and {max}, got {strength}.",
                      max=f"{MAX_STRENGTH:g}", strength=str(strength))
    if None not in (start, end) and not 0 <= start < end <= 1:
        raise Refusal("control_window", "The control starts at {start} and ends at {end}: start must be below end, "
                      "both between 0 and 1.", start=str(start), end=str(end))
    if not image and not mask:
        raise Refusal("control_empty", "Nothing to follow: connect a control picture as Image, or a mask with the "
                      "picture that it belongs to as Inpaint image.")
    if mask and not (inpaint_image or image):
        raise Refusal("control_mask_alone", "A mask is connected without the picture that it belongs to. Connect that "
                      "as Inpaint image.")
    if inpaint_image and not mask:
        raise Refusal("control_no_mask", "Inpaint image is connected without a mask, so nothing would be kept of it. "
                      "Connect a mask, or the picture as Image.")
