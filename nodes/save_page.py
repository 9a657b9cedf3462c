"""A page as files for people: PNG, one PSD with layers, or a PDF."""
import json
from pathlib import Path

import torch
from comfy.cli_args import args
from comfy_api.latest import io
from numpy import ndarray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .. import atomic
from ..messages import Message, Refusal, and_list
from ..model.images.layers import alpha_over
from ..pages import deck, pdf, psd
from ..pages.layout import Layout
from .common import categories
from .common.checks import check_before_run
from .common.images import check_images, eight_bits, with_alpha
from .common.layouts import LayoutType
from .common.paths import HIDDEN, check_name, name_of, new_paths, saved
from .common.schemas import schema
from .notices import notify

PNG, PSD, PDF = FORMATS = ("png", "psd", "pdf")


class QwenImage2SavePage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2SavePage",
            display_name="Save Page (Qwen-Image 2)",
            category=categories.EDITING,
            description="Saves images as PNG or PDF, or a batch of layers as one PSD file (psd-tools) with named "
                        "layers.",
            search_aliases=["psd", "photoshop", "save layers", "export layers", "save png", "save image"],
            inputs=[
                io.Image.Input("image", tooltip="One image or a batch, RGB or RGBA. As PSD a batch is the layers of "
                                                "one page, the lowest first, as Layers has them."),
                io.String.Input("filename_prefix", default="qwen_image_2_page",
                                tooltip="Name of the files in ComfyUI's output folder; subfolders are created and a "
                                        "number is added. As in Save Image, %date:yyyy-MM-dd%, %Node.widget% and "
                                        "%width% are filled in."),
                io.Combo.Input("format", list(FORMATS), default=PNG,
                               tooltip="png: a file for each image, with the workflow inside. psd: one file, a layer "
                                       "for each image, and all of them flattened for programs that know no layers; "
                                       "needs the package psd-tools. pdf: one file, a page for each image; its words "
                                       "can be selected where the package fpdf2 is installed."),
                LayoutType.Input("layout", optional=True,
                                 tooltip="Where the texts stand, of a pdf: from a brief or Layout. Its words can then "
                                         "be selected and found."),
            ],
            is_output_node=True,
            hidden=HIDDEN,
        )

    @check_before_run
    def validate_inputs(cls, filename_prefix, format):
        check_name(filename_prefix)
        require(format)

    @classmethod
    def execute(cls, image, filename_prefix, format, layout=None):
        require(format)
        prefix = name_of(cls, filename_prefix)
        check_images(image)
        paths = (save_psd(image, prefix) if format == PSD else save_pdf(image, prefix, layout) if format == PDF else
                 save_pngs(image, prefix, workflow_of(cls)))
        return io.NodeOutput(ui={"images" if format == PNG else "files": [saved(path) for path in paths]} | notify(
            cls, Message("page_saved", "Saved {files}.", files=and_list([path.name for path in paths])),
            pdf.advice() if format == PDF else None))


def require(format: str | None) -> None:
    """Raises Refusal for files that cannot be written here; ComfyUI leaves out its own check of the choice."""
    if format not in (None, *FORMATS):
        raise Refusal("page_format", "Unknown format {format}; choose one of {known}.", format=repr(format),
                      known=list(FORMATS))
    if format == PSD:
        psd.require()


def save_psd(image: torch.Tensor, prefix: str) -> list[Path]:
    """IMAGE (L, H, W, 3 or 4), the lowest layer first -> one file."""
    layers = eight_bits(with_alpha(image))
    flattened = eight_bits(alpha_over(torch.from_numpy(layers) / 255))[0]  # as a program makes it of what is saved
    height, width = image.shape[1:3]
    with new_paths(prefix, [".psd"], width, height) as paths:
        atomic.write_by(paths[0], lambda file: psd.write_psd(file, layers, flattened))
    return paths


def save_pdf(image: torch.Tensor, prefix: str, layout: Layout | None) -> list[Path]:
    """IMAGE (B, H, W, 3 or 4) -> one file, a page for each."""
    height, width = image.shape[1:3]
    sheets = [deck.Sheet(picture, layout=layout) for picture in eight_bits(image)]
    with new_paths(prefix, [".pdf"], width, height) as paths:
        atomic.write_by(paths[0], lambda file: deck.write_pdf(file, sheets, deck.page_ratio(sheets[0].picture),
                                                             paths[0].stem))
    return paths


def save_pngs(image: torch.Tensor, prefix: str, workflow: PngInfo | None) -> list[Path]:
    """IMAGE (B, H, W, 3 or 4) -> a file for each, with numbers one after the other."""
    height, width = image.shape[1:3]
    return [save_png(picture, prefix, width, height, workflow) for picture in eight_bits(image)]


def save_png(picture: ndarray, prefix: str, width: int, height: int, workflow: PngInfo | None) -> Path:
    with new_paths(prefix, [".png"], width, height) as paths:
        atomic.write_by(paths[0], lambda file: Image.fromarray(picture).save(file, "PNG", compress_level=4,
                                                                            pnginfo=workflow))
    return paths[0]


def workflow_of(node) -> PngInfo | None:
    """What core's Save Image writes into its files, unless ComfyUI was told to leave it out: dropped onto the page, the
    file is the workflow."""
    if args.disable_metadata or not node.hidden:
        return None
    sent = node.hidden.extra_pnginfo  # whatever a client has sent
    texts = ({} if node.hidden.prompt is None else {"prompt": node.hidden.prompt}) | (
        sent if isinstance(sent, dict) else {})
    info = PngInfo()
    for name, value in texts.items():
        info.add_text(name, json.dumps(value))
    return info
