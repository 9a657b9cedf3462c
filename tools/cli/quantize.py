"""`dev.py quantize`: a checkpoint -> its weights in another format, as QwenImage2SaveQuantized writes them."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ...messages import Refusal
from ...model.checkpoints import known_files
from ...model.checkpoints.checkpoint import Checkpoint
from ...model.checkpoints.files import open_checkpoint
from ...model.checkpoints.matching import Detected
from ...model.language import qwen2_5_vl, qwen3_vl
from ...model.qwen_image_1 import detect as detect_1
from ...model.qwen_image_2 import detect as detect_2
from .errors import UserError

# Short names for a shell.
FORMATS = {"fp8": "fp8", "int8": "int8 (ConvRot)", "4-bit": "4-bit (nvfp4)"}


def text_encoder_in(checkpoint: Checkpoint) -> Detected | None:
    """The text encoder of either family; None: another file. Raises CheckpointError for a damaged one."""
    if qwen2_5_vl.is_text_encoder(checkpoint):
        return qwen2_5_vl.detect_text_encoder(checkpoint)
    return qwen3_vl.detect_text_encoder(checkpoint) if known_files.is_text_encoder(checkpoint.tensors) else None


def transformer_in(checkpoint: Checkpoint) -> Detected:
    """The transformer of either family. Raises CheckpointError for another file."""
    family = detect_1 if detect_1.is_transformer(checkpoint) else detect_2
    return family.detect_transformer(checkpoint)


def quantize(comfyui: Path, file: Path, target: str, out: Path) -> None:
    """Write `out`, which must not exist. Raises UserError for a file that is neither transformer nor text encoder."""
    _import_comfyui(comfyui)
    from ...nodes.bridge import loading
    from ...nodes.bridge.quant import quantize
    from ...nodes.bridge.text_encoders import families
    try:
        if text_encoder_in(open_checkpoint(file)):
            network = families.text_network(families.load_text_encoder(file, file.name, FORMATS[target]))
        else:
            network = loading.diffusion_network(loading.load_model(file, file.name, loading.AUTO, FORMATS[target]))
        quantize.save(out, network, lambda done, total: None)
    except Refusal as error:
        raise UserError(str(error)) from error


def _import_comfyui(comfyui: Path) -> None:
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args
    args.cpu = not torch.cuda.is_available()
    args.disable_dynamic_vram = True
