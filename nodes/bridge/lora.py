"""A LoRA file on a MODEL, by ComfyUI's own adapters and patches."""
import re
from pathlib import Path
from typing import NamedTuple

import comfy.lora
from safetensors import SafetensorError, safe_open

from ...model.checkpoints.checkpoint import aligned
from ...model.checkpoints.files import check_is_no_text
from ...model.qwen_image_2 import lora
from ...model.qwen_image_2.lora import LoraError
from .run_checks import check_lora_shapes

# What follows a matrix's name in an adapter's tensors.
_PART = re.compile(r"[._](lora_[AB]|lora_up|lora_down|lora_mid|lora|lora_linear_layer|alpha|dora_scale|hada_\w+|"
                   r"lokr_\w+|diff(_b)?|set_weight|w_norm|b_norm|reshape_weight|oft_blocks|rescale|[ab][12])(\..+)?$")


class Applied(NamedTuple):
    model: object          # the MODEL, a clone
    matrices: int          # that it changes
    unused: list[str]      # names in the file that mean nothing here


def apply(model, path: Path, label: str, strength: float) -> Applied:
    """Raises LoraError or CheckpointError where nothing of the file fits."""
    state = lora.normalised(*_read(path, label), label)
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(state, names, log_missing=False)
    clone = model.clone()
    done = clone.add_patches(patches, strength)
    if not done:
        raise LoraError("lora_no_match", "{file} changes no matrix of this model: it was made for another one, or is "
                        "no LoRA (its first tensor is {tensor}).", file=label, tensor=next(iter(state), "missing"))
    check_lora_shapes(clone)
    return Applied(clone, len(done), sorted({name for name in state if _PART.sub("", name) not in names}))


def _read(path: Path, label: str) -> tuple[dict, dict]:
    try:
        with safe_open(path, "pt") as file:
            state = {name: aligned(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return state, file.metadata() or {}
    except SafetensorError as error:
        check_is_no_text(path)
        raise LoraError("lora_damaged", "{file} is no intact .safetensors file ({error}): download it again.",
                        file=label, error=str(error)) from error
