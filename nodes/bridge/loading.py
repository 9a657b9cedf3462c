"""A transformer's checkpoint -> MODEL: open, detect, build the family's model, fill it, wrap it in a ModelPatcher."""
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...messages import Message, Refusal
from ...model.checkpoints import loading, quantization
from ...model.checkpoints.checkpoint import StoredCheckpoint
from ...model.checkpoints.files import open_checkpoint
from ...model.checkpoints.matching import Detected
from ...model.qwen_image_2 import key_maps
from ...model.qwen_image_2.detect import detect_transformer
from ...model.qwen_image_2.spec import TransformerSpec
from .progress import loading_progress
from .quant.formats import INTEGERS, NEVER_NATIVE, computed_in_integers
from .quant.gguf_ops import keep_packed, with_blocks
from .quant.quantize import Network, Origin, patches_below
from .quant.weight_format import DTYPES, conversion
from .qwen_image_2 import ModelConfig, QwenImage2, is_ours
from .run_checks import check_run
from .runtime import budget
from .runtime.kernels import kernels_for


def load_model(path: Path, label: str, variant: str, weight_format: str = "as stored", disable_dynamic: bool = False):
    """A checkpoint file or folder -> MODEL (ComfyUI's ModelPatcher). variant: base or turbo."""
    patcher = model_from(*open_model(path, label), variant, weight_format, disable_dynamic)
    # ComfyUI loads a second copy through this for other devices.
    patcher.cached_patcher_init = (load_model, (path, label, variant, weight_format))
    return patcher


def model_from(checkpoint: StoredCheckpoint, detected: Detected[TransformerSpec], variant: str, weight_format: str,
               disable_dynamic: bool = False):
    """What open_model has found -> MODEL."""
    detected, to_do = conversion(checkpoint, in_full_precision(detected), weight_format, key_maps.mlp_halves)
    dtype = DTYPES.get(weight_format) or loading.stored_dtype(checkpoint.tensors)
    device = comfy.model_management.get_torch_device()
    layers = {**detected.quantization, **to_do.layers}
    model = QwenImage2(_model_config(detected.spec, layers, dtype, device), variant, checkpoint.label)
    model.weights, model.origin = weights_in_words(layers, dtype, device), Origin(checkpoint.config, dtype)
    loading.load(model.diffusion_model, detected, checkpoint, dtype, loading_progress(len(detected.table)), to_do)
    comfy.model_management.archive_model_dtypes(model.diffusion_model)
    model.device = comfy.model_management.unet_offload_device()
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())
    patcher.add_wrapper(WrappersMP.OUTER_SAMPLE, check_run)
    patcher.add_callback(CallbacksMP.ON_LOAD, budget.on_load)
    patcher.add_callback(CallbacksMP.ON_LOAD, keep_packed)
    return patcher


def diffusion_network(patcher) -> Network:
    """The transformer of a MODEL, to be written. Raises ValueError for another kind of model."""
    if not is_ours(patcher):
        raise Refusal("not_our_model", "This MODEL is not a Qwen-Image 2 transformer of this pack: load it with Load "
                      "Diffusion Model (Qwen-Image 2).")
    model = patcher.model
    return Network(model.diffusion_model, patches_below("diffusion_model.", patcher), str, model.origin,
                   comfy.model_management.module_size(model), key_maps.mlp_halves, key_maps.fused_mlp)


def open_model(path: Path, label: str) -> tuple[StoredCheckpoint, Detected[TransformerSpec]]:
    """What the file is, without reading a tensor. Raises CheckpointError where it is something else."""
    checkpoint = open_checkpoint(path, label)
    return checkpoint, detect_transformer(checkpoint)


def weights_in_words(settings: quantization.Settings, dtype: torch.dtype, device) -> str:
    """How the weights are stored, and what the device makes of it."""
    if not settings:
        return str(dtype).removeprefix("torch.")
    management = comfy.model_management
    native = {"nvfp4": management.supports_nvfp4_compute, "mxfp8": management.supports_mxfp8_compute,
              "float8_e4m3fn": management.supports_fp8_compute}
    formats = {one["format"] for one in settings.values()}
    words = quantization.in_words(settings)
    if formats & NEVER_NATIVE:
        return Message("weights_no_device", "{weights}, dequantised layer by layer as no device has such arithmetic",
                       weights=words)
    if any(name in native and not native[name](device) for name in formats):
        return Message("weights_this_device", "{weights}, dequantised layer by layer because this device has no such "
                       "arithmetic", weights=words)
    if any(one.get("full_precision_matrix_mult") for one in settings.values()):
        return Message("weights_by_file", "{weights}, dequantised layer by layer because the file asks for it",
                       weights=words)
    if formats <= INTEGERS:
        return computed_in_integers(words)
    return Message("weights_native", "{weights}, computed in that format", weights=words)


def in_full_precision(detected: Detected) -> Detected:
    """The same, with ComfyUI told to dequantise what no device multiplies: it would round the activations first."""
    layers = {layer: {**one, "full_precision_matrix_mult": True} if one["format"] in NEVER_NATIVE - {"gguf"} else one
              for layer, one in detected.quantization.items()}
    return replace(detected, quantization=layers)


def _model_config(spec: TransformerSpec, layers: quantization.Settings, dtype: torch.dtype, device) -> ModelConfig:
    config = ModelConfig({"spec": spec, "kernels": kernels_for(device)})
    supported = config.supported_inference_dtypes
    stored = dtype
    if layers:
        config.quant_config = {"mixed_ops": True}  # core's way to ask for layers that may be quantised
        stored = None  # their own dtype says nothing about the one to compute in: core decides for the device
    cast = comfy.model_management.unet_manual_cast(stored, device, supported)
    config.set_inference_dtype(dtype, cast, device=device)
    if any(one["format"] == "gguf" for one in layers.values()):
        config.custom_operations = with_blocks(comfy.ops.mixed_precision_ops({}, cast or dtype, full_precision_mm=True))
    return config
