"""LoRA files in the form that ComfyUI's loader and this transformer share.

Trainers that work on Comfy-Org's files (ai-toolkit, musubi) adapt the MLP's gate and projection as one matrix,
img_mlp.gate_up; here they are two. Some files keep their scale in their metadata alone, where ComfyUI does not look.
"""
import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ...messages import Refusal
from .key_maps import FUSED_MLP, SPLIT_MLP

METADATA = "lora_adapter_metadata"  # PEFT's settings as diffusers writes them
# What PEFT itself and OneTrainer begin names with -> what ComfyUI knows.
PREFIXES = {"base_model.model.": "", "lora_transformer_": "lora_unet_"}

_FUSED = re.compile(r"(?P<before>.*)img_mlp(?P<dot>[._])gate_up(?P<part>[._].+)")
# Parts of an adapter with a row for each row of the matrix; both halves share the others.
_ROWS = re.compile(r"[._](lora_B(\.\w+)?(\.weight)?|lora_up\.weight|lora\.up\.weight|lora_linear_layer\.up\.weight|"
                   r"hada_w[12]_a|lokr_w1(_a)?|diff|dora_scale)")
_SHARED = re.compile(r"[._](lora_A(\.\w+)?(\.weight)?|lora_down\.weight|lora\.down\.weight|"
                     r"lora_linear_layer\.down\.weight|hada_w[12]_b|lokr_w1_b|lokr_w2(_[ab])?|alpha)")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.\w+)?(\.weight)?")  # PEFT's name of DoRA's scale
_UP = re.compile(r"(?P<module>.+)\.lora_B(\.default)?\.weight")


class LoraError(Refusal):
    """A LoRA that cannot be used as it is. The message is one sentence for the user."""


def normalised(state: Mapping[str, Tensor], metadata: Mapping[str, str], label: str) -> dict[str, Tensor]:
    """A LoRA file's tensors and metadata -> tensors by the names that ComfyUI finds for this transformer."""
    state = dict(_renamed(name, tensor) for name, tensor in state.items())
    return split_mlp(state | _scales(state, metadata, label), label)


def _renamed(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    for theirs, known in PREFIXES.items():
        if name.startswith(theirs):
            name = known + name.removeprefix(theirs)
    if found := _MAGNITUDE.fullmatch(name):
        return f"{found['module']}.dora_scale", tensor.reshape(-1, 1)
    return name, tensor


def split_mlp(state: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    """Adapters of the fused MLP matrix -> one for the gate and one for the projection, its rows' halves."""
    out = {}
    for name, tensor in state.items():
        found = _FUSED.fullmatch(name)
        if found is None:
            out[name] = tensor
            continue
        for half, value in zip(SPLIT_MLP, _halves(found["part"], tensor, name, label), strict=True):
            place = half if found["dot"] == "." else half.replace(".", "_")
            out[f"{found['before']}{place}{found['part']}"] = value
    return out


def _halves(part: str, tensor: Tensor, name: str, label: str) -> tuple[Tensor, Tensor]:
    if _SHARED.fullmatch(part):
        return tensor, tensor
    if part == ".weight":
        raise LoraError("lora_is_transformer", "{file} is no LoRA but a whole transformer ({tensor}): put it into "
                        "models/diffusion_models and choose it in the loader.", file=label, tensor=name)
    if not _ROWS.fullmatch(part) or len(tensor) % 2:
        raise LoraError("lora_fused", "{file} adapts {matrix} as one matrix, in a way that cannot be split ({tensor}): "
                        "this model has it in two. Train the LoRA on the diffusers form of the weights instead.",
                        file=label, matrix=FUSED_MLP, tensor=name)
    upper, lower = (half.contiguous() for half in tensor.chunk(2))
    return upper, lower


def _scales(state: Mapping[str, Tensor], metadata: Mapping[str, str], label: str) -> dict[str, Tensor]:
    """The alphas that stand in the metadata alone, by the names that ComfyUI reads."""
    if METADATA not in metadata:
        return {}
    try:
        settings = {key.removeprefix("transformer."): value for key, value in json.loads(metadata[METADATA]).items()}
        patterns = settings.get("alpha_pattern") or {}
        alphas = {}
        for name, tensor in state.items():
            found = _UP.fullmatch(name)
            if found is None or f"{found['module']}.alpha" in state or "lora_alpha" not in settings:
                continue
            module = found["module"].removeprefix("transformer.")
            alpha = float(next((value for pattern, value in patterns.items()
                                if re.fullmatch(rf"(.*\.)?({pattern})", module)), settings["lora_alpha"]))
            if settings.get("use_rslora"):  # divided by the root of the rank, where ComfyUI divides by the rank
                alpha *= tensor.shape[1] ** 0.5
            alphas[f"{found['module']}.alpha"] = torch.tensor(alpha)
        return alphas
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise LoraError("lora_metadata", "The metadata of {file} ({entry}) cannot be read: {error}.", file=label,
                        entry=METADATA, error=str(error)) from error
