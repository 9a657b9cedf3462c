"""The built-in checkpoint: a very small Qwen-Image 2 that draws simple posters, for trying workflows and for tests.

Transformer and VAE are files in assets/miniature. The text encoder has frozen random weights (a transformer learns
to read any encoder that keeps words apart), so it is drawn when first wanted, in less than a second, and kept below
ComfyUI's user folder: the pack writes nowhere outside of ComfyUI.
"""
import json
import logging
from pathlib import Path

import folder_paths
import safetensors.torch
import torch
from torch import nn

from .... import atomic
from ....messages import Message
from ....model.checkpoints import matching, seeded_init
from ....model.checkpoints.errors import CheckpointError
from ....model.images import sizes
from ....model.language import key_maps
from ....model.language.qwen3_vl import TextEncoderSpec, VisionSpec
from ..text_encoders.qwen3_vl import Qwen3VL

log = logging.getLogger(__name__)

NAME = "miniature"  # in the loaders' menus
FOLDER = Path(__file__).resolve().parents[3] / "assets" / "miniature"
FILES = {"diffusion_models": "diffusion_models/qwen_image_2_miniature_bf16.safetensors",
         "vae": "vae/qwen_image_2_miniature_vae_bf16.safetensors"}
SIZES = {name: f"{width} x {height}" for name, (width, height) in zip(("square", "wide", "tall"), sizes.MINIATURE)}
ABOUT = Message("miniature_about", "This is the miniature that ships with the pack, not Qwen-Image. It draws only "
                "simple posters of {square}, {wide} or {tall} pixels, for trying workflows.", square=SIZES["square"],
                wide=SIZES["wide"], tall=SIZES["tall"])

SEED = 2
GAIN = 0.5  # below 1, what a token says itself stays louder than what the random layers add to it
TEXT_ENCODER_SPEC = TextEncoderSpec(
    layers=2, dim=128, mlp_dim=256, heads=4, kv_heads=2, head_dim=32, mrope_section=(8, 4, 4), lm_head=False,
    vision=VisionSpec(depth=2, dim=64, mlp_dim=128, heads=4, deepstack_layers=(0,)))
# Stands in the name of the file that is drawn from these and by model/checkpoints/seeded_init.py. Whoever changes what
# the file holds gives another version, or users keep the old file: a test knows the values that belong to the version.
TEXT_ENCODER_VERSION = "d36795a42cb7344d"


def path(folder: str) -> Path:
    """The file for one of ComfyUI's model folders."""
    return text_encoder() if folder == "text_encoders" else FOLDER / FILES[folder]


def size_note(label: str, width: int, height: int) -> str | None:
    """What to tell about an image size, where the model is the miniature."""
    if label != NAME or (width, height) in sizes.MINIATURE:
        return None
    return Message("miniature_size", "The miniature was trained only at {square}, {wide} and {tall} pixels; {width} x "
                   "{height} will not work. Set Aspect ratio to custom, or choose real model files in the loader.",
                   width=width, height=height, square=SIZES["square"], wide=SIZES["wide"], tall=SIZES["tall"])


def text_encoder() -> Path:
    """The drawn text encoder, a file like the official one. Written when it is not there yet."""
    name = f"miniature_text_encoder_{TEXT_ENCODER_VERSION}.safetensors"
    path = Path(folder_paths.get_system_user_directory("qwen_image_2")) / name  # one that no HTTP route serves
    if not path.exists():
        log.info("Drawing the miniature's text encoder (once): %s", path)
        try:
            _write(path)
        except atomic.WriteError as failed:
            raise CheckpointError("miniature_write", "The miniature's text encoder (40 MB) could not be written to "
                                  "{folder}: {error}. Make room there, or start ComfyUI with another --user-directory.",
                                  folder=str(path.parent), error=str(failed.__cause__)) from failed
    return path


def _write(path: Path) -> None:
    module = Qwen3VL(TEXT_ENCODER_SPEC, None, torch.device("meta"), nn)
    shapes = {key_maps.COMFY.back(name): shape for name, shape in matching.shapes(module).items()}
    drawn = seeded_init.random_state_dict(shapes, SEED, GAIN)
    atomic.write_bytes(path, safetensors.torch.save(drawn, {"format": "pt", "config": json.dumps(_config())}))


def _config() -> dict:
    """What shapes cannot tell, under the names of a Hugging Face configuration."""
    spec = TEXT_ENCODER_SPEC
    return {"text_config": {"rope_parameters": {"rope_theta": spec.rope_theta,
                                                "mrope_section": list(spec.mrope_section)}},
            "vision_config": {"num_heads": spec.vision.heads,
                              "deepstack_visual_indexes": list(spec.vision.deepstack_layers)}}
