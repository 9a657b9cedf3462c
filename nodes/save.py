"""Saving a loaded model in its weight format, as the official files are."""
import contextlib
import shutil
from pathlib import Path

from comfy_api.latest import io

from ..messages import Message, Refusal
from .bridge.loading import diffusion_network
from .bridge.progress import loading_progress
from .bridge.quant import quantize
from .bridge.text_encoders.families import check_clip, text_network
from .common import categories
from .common.checks import check_before_run
from .common.paths import HIDDEN, check_name, name_of, new_paths
from .common.schemas import schema
from .notices import notify

# Below ComfyUI's output folder; its loaders look there too.
FOLDERS = {"model": "diffusion_models", "clip": "clip"}


class QwenImage2SaveQuantized(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="QwenImage2SaveQuantized",
            display_name="Save Quantized (Qwen-Image 2)",
            category=categories.LOADERS,
            description="Saves a loaded model, in the Weight format of its loader and with its LoRAs baked in, as one "
                        "file with the official names. The loaders offer it at once.",
            search_aliases=["quantize", "export model", "save checkpoint", "int8", "fp8", "nvfp4"],
            inputs=[
                io.Model.Input("model", optional=True, tooltip="The transformer."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder."),
                io.String.Input("filename_prefix", default="qwen_image_2_int8_convrot",
                                tooltip="Name of the file, in diffusion_models or clip below ComfyUI's output folder; "
                                        "a number is added. As in Save Image, %date:yyyy-MM-dd% and %Node.widget% are "
                                        "filled in."),
            ],
            is_output_node=True,
            hidden=HIDDEN,
        )

    @check_before_run
    def validate_inputs(cls, filename_prefix):
        check_name(filename_prefix)

    @classmethod
    def execute(cls, filename_prefix, model=None, clip=None):
        filename_prefix = name_of(cls, filename_prefix)
        if model is None and clip is None:
            raise Refusal("nothing_to_save", "Nothing to save. Connect a model, a text encoder, or both.")
        networks = {}
        if model is not None:
            networks["model"] = diffusion_network(model)
        if clip is not None:
            check_clip(clip)
            networks["clip"] = text_network(clip)
        # Everything that can be refused, before anything is unloaded or written.
        for part, network in networks.items():
            quantize.check(network, f"The {part} {filename_prefix}")
        with contextlib.ExitStack() as held:
            paths = {part: held.enter_context(new_paths(f"{FOLDERS[part]}/{filename_prefix}", [".safetensors"]))[0]
                     for part in networks}
            require_room({paths[part]: network.size for part, network in networks.items()})
            for part, network in networks.items():
                quantize.save(paths[part], network, loading_progress(1))
        return io.NodeOutput(ui=notify(cls, *(in_words(part, path) for part, path in paths.items())))


def require_room(files: dict[Path, int]) -> None:
    """files: their sizes in bytes. Raises Refusal where those of one disk do not fit together."""
    by_disk: dict[int, list[Path]] = {}
    for path in files:
        by_disk.setdefault(path.parent.stat().st_dev, []).append(path)
    for paths in by_disk.values():
        free, needed = shutil.disk_usage(paths[0].parent).free, sum(files[path] for path in paths)
        if free < needed:
            names = ", ".join(f"{path.parent.name}/{path.name}" for path in paths)
            raise Refusal("disk_room", "Not enough disk space in ComfyUI's output folder: {free} free, {needed} needed "
                          "for {files}.", free=in_bytes(free), needed=in_bytes(needed), files=names)


def in_bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def in_words(part: str, path: Path) -> str:
    return Message("model_saved", "Saved {file} ({size}) into {folder} below ComfyUI's output folder.",
                   file=path.name, size=in_bytes(path.stat().st_size), folder=FOLDERS[part])
