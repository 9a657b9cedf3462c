"""A transformer's checkpoint -> MODEL: open, detect, build the family's model, fill it, wrap it in a ModelPatcher."""
from dataclasses import replace
from pathlib import Path, PurePath
from typing import NamedTuple

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...messages import Refusal
from ...model.checkpoints import loading, quantization
from ...model.checkpoints.checkpoint import StoredCheckpoint
from ...model.checkpoints.files import open_checkpoint
from ...model.checkpoints.matching import Detected
from ...model.qwen_image_1 import detect as detect_1
from ...model.qwen_image_1.spec import TransformerSpec as Spec1
from ...model.qwen_image_2 import detect as detect_2
from ...model.qwen_image_2.spec import TransformerSpec as Spec2
from . import qwen_image_1, qwen_image_2
from .adapters.checks import check_lora_shapes, check_loras
from .adapters.places import placing
from .adapters.plain_casts import keep_apart
from .pack_model import ModelConfig, PackModel, is_ours
from .progress import loading_progress
from .quant import formats
from .quant.gguf_ops import gguf_operations
from .quant.in_use import patch_in_use
from .quant.quantize import Network, Origin, patches_below
from .quant.weight_format import DTYPES, conversion, keeps_fp32
from .run_checks import check_lora_values, check_run
from .runtime import budget
from .runtime.kernels import kernels_for
from .slices import sliced

AUTO, BASE, TURBO, EDIT_2511 = "auto", "base", "turbo", "edit 2511"
VARIANTS = [AUTO, BASE, TURBO, EDIT_2511]  # what the files of some models do not say

Spec = Spec1 | Spec2


class Family(NamedTuple):
    config: type[ModelConfig]
    model: type[PackModel]


FAMILIES = {Spec1: Family(qwen_image_1.ModelConfig, qwen_image_1.QwenImage1),
            Spec2: Family(qwen_image_2.ModelConfig, qwen_image_2.QwenImage2)}


def family_of(spec: Spec) -> str:
    """FAMILY_1 or FAMILY_2."""
    return FAMILIES[type(spec)].model.family


def load_model(path: Path, label: str, variant: str, weight_format: str = "as stored", disable_dynamic: bool = False):
    """A checkpoint file or folder -> MODEL (ComfyUI's ModelPatcher). variant: one of VARIANTS."""
    patcher = model_from(*open_model(path, label), variant, weight_format, disable_dynamic)
    # ComfyUI loads a second copy through this for other devices.
    patcher.cached_patcher_init = (load_model, (path, label, variant, weight_format))
    return patcher


def model_from(checkpoint: StoredCheckpoint, detected: Detected[Spec], variant: str, weight_format: str,
               disable_dynamic: bool = False):
    """What open_model has found -> MODEL."""
    detected, variant = _as_variant(detected, variant, checkpoint.label)
    family = FAMILIES[type(detected.spec)]
    detected, to_do = conversion(checkpoint, detected, weight_format, family.model.mlp_halves)
    dtype = DTYPES.get(weight_format) or loading.stored_dtype(checkpoint.tensors)
    device = comfy.model_management.get_torch_device()
    layers = {**detected.quantization, **to_do.layers}
    formats.check_device(checkpoint, layers, device)
    unscaled = formats.without_input_scale(layers, detected, checkpoint)
    keep_fp32 = keeps_fp32(checkpoint, weight_format)
    config = _model_config(family, detected.spec, layers, dtype, device)
    if keep_fp32 and not layers:  # layers that may be quantized cast anyway, core's others not where no dtype differs
        config.custom_operations = comfy.ops.manual_cast
    model = family.model(config, variant, checkpoint.label)
    model.weights = formats.in_words(layers, unscaled, dtype, device)
    model.origin = Origin({name: value for name, value in checkpoint.config.items()
                           if name not in model.marked_entries}, None if keep_fp32 else dtype)
    model.needed_config = detected.config
    detected = replace(detected, quantization=formats.in_full_precision(detected.quantization, unscaled))
    to_do = to_do._replace(layers=formats.in_full_precision(to_do.layers, unscaled))
    dynamic = not disable_dynamic and device.type != "cpu"
    loading.load(model.diffusion_model, detected, sliced(checkpoint, dynamic), dtype,
                 loading_progress(len(detected.table)), to_do, keep_fp32)
    keep_apart(model.diffusion_model, {layer for layer, one in layers.items() if one.get(quantization.PLAIN_CAST)})
    comfy.model_management.archive_model_dtypes(model.diffusion_model)
    model.device = comfy.model_management.unet_offload_device()
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = placing(patcher_class(model, load_device=device,
                                    offload_device=comfy.model_management.unet_offload_device()))
    patcher.add_wrapper(WrappersMP.OUTER_SAMPLE, check_run)
    patcher.add_callback(CallbacksMP.ON_LOAD, budget.on_load)
    patcher.add_callback(CallbacksMP.ON_LOAD, patch_in_use)
    patcher.add_callback(CallbacksMP.ON_LOAD, check_loras)
    return patcher


def diffusion_network(patcher) -> Network:
    """The transformer of a MODEL, to be written. Raises ValueError for another kind of model, and for a LoRA that would
    spoil the file or be missing in it."""
    if not is_ours(patcher):
        raise Refusal("not_our_model", "This MODEL is not a Qwen-Image 2 transformer of this pack. Load it with Load "
                      "Diffusion Model (Qwen-Image 2).")
    check_lora_shapes(patcher)
    check_lora_values(patcher)
    model = patcher.model
    return Network(model.diffusion_model, patches_below("diffusion_model.", patcher), str, model.origin,
                   comfy.model_management.module_size(model.diffusion_model), model.mlp_halves, model.fused_mlp,
                   model.marks())


def open_model(path: Path, label: str) -> tuple[StoredCheckpoint, Detected[Spec]]:
    """What the file is, without reading a tensor. Raises CheckpointError where it is something else."""
    checkpoint = open_checkpoint(path, label)
    family = detect_1 if detect_1.is_transformer(checkpoint) else detect_2
    detected = family.detect_transformer(checkpoint)
    return checkpoint.only(detected.tensors), detected


def _as_variant(detected: Detected[Spec], variant: str, label: str) -> tuple[Detected[Spec], str]:
    """The user's choice, or what the file or its name says."""
    if isinstance(detected.spec, Spec2):
        return detected, variant_of(label, variant)
    zero = variant == EDIT_2511 or (variant == AUTO and (detected.spec.zero_cond_t or "2511" in label))
    return replace(detected, spec=replace(detected.spec, zero_cond_t=zero)), EDIT_2511 if zero else BASE


def variant_of(name: str, variant: str) -> str:
    """Of a 2.x model: base or turbo, from the user's choice or from the name of the file or folder."""
    if variant != AUTO:
        return variant
    return TURBO if "turbo" in PurePath(name).as_posix().lower() else BASE


def _model_config(family: Family, spec: Spec, layers: quantization.QuantConfig, dtype: torch.dtype,
                  device: torch.device) -> ModelConfig:
    config = family.config({"spec": spec, "kernels": kernels_for(device)})
    config.supported_inference_dtypes = inference_dtypes(device)
    # The dtype of quantized weights says nothing about the one to compute in: core decides for the device.
    stored = None if layers else dtype
    cast = comfy.model_management.unet_manual_cast(stored, device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, cast, device=device)
    if layers:
        config.quant_config = {"mixed_ops": True}  # core's way to ask for layers that may be quantized
        config.custom_operations = _quantised_operations(config, layers, dtype, cast or dtype, device)
    return config


def _quantised_operations(config: ModelConfig, layers: quantization.QuantConfig, dtype: torch.dtype,
                          compute: torch.dtype, device):
    if any(one["format"] == "gguf" for one in layers.values()):
        return gguf_operations(comfy.ops.mixed_precision_ops({}, compute, full_precision_mm=True))
    core = comfy.ops.pick_operations(dtype, compute, load_device=device, model_config=config)
    return formats.decoding(core, formats.without_arithmetic(device))


def inference_dtypes(device) -> list[torch.dtype]:
    """What to compute quantized weights in, the best first.

    fp16 cuts the residual stream off at 65504 and may make an MLP's product infinite before, so it is for cards without
    bf16. Where it stands in the list, core takes it first under `--fast fp16_accumulation`.
    """
    if comfy.model_management.should_use_bf16(device):
        return [torch.bfloat16, torch.float32]
    return [torch.bfloat16, torch.float16, torch.float32]
