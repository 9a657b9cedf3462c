"""What devices make of the formats that weights are stored in: which way each layer's product takes."""
import comfy.model_management
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

from ....messages import Message, Refusal
from ....model.checkpoints import quantization
from ....model.checkpoints.checkpoint import Checkpoint, StoredCheckpoint
from ....model.checkpoints.matching import Detected
from ....model.checkpoints.quantization import FULL_PRECISION, QuantConfig
from ..kitchen import has_fused

# Formats that are dequantized on every device: torch multiplies no two e5m2 matrices, and AWQ's product is for a few
# rows.
NEVER_NATIVE = {"gguf", "float8_e5m2", "awq_w4a16"}
# Formats whose matrices are multiplied as integers.
INTEGERS = {"int8_tensorwise", "convrot_w4a4", "asym_w4a8_int8"}
# Formats whose matrices or scales are fp8 numbers.
FP8_INSIDE = {"float8_e4m3fn", "float8_e5m2", "mxfp8", "nvfp4", "asym_w4a8_int8"}
# One scale for all activations of a layer, which only the file can know. The other formats measure theirs in each call.
NEEDS_INPUT_SCALE = "float8_e4m3fn"


# ---------------------------------------------------------------- what a device can do

def without_arithmetic(device: torch.device) -> set[str]:
    """Formats whose matrices this device cannot multiply as they are, those of NEVER_NATIVE left out."""
    management = comfy.model_management
    able = {"nvfp4": management.supports_nvfp4_compute(device), "mxfp8": management.supports_mxfp8_compute(device),
            "float8_e4m3fn": management.supports_fp8_compute(device)}
    return {name for name, can in able.items() if not can} | (set() if multiplies_integers(device) else INTEGERS)


def multiplies_integers(device: torch.device) -> bool:
    """torch (2.11) multiplies 8-bit integers on these devices only; on Apple's it raises NotImplementedError. On a card
    without comfy-kitchen's kernels the product's many passes over the activations take longer than dequantizing."""
    asked = getattr(comfy.model_management, "supports_int8_compute", None)  # core's own answer, from about 0.38 on
    able = device.type in ("cpu", "cuda", "xpu") if asked is None else asked(device)
    return able and not lacks_kernels(device)


def lacks_kernels(device: torch.device) -> bool:
    return device.type == "cuda" and not has_fused("int8_linear")


def check_device(checkpoint: Checkpoint, layers: QuantConfig, device: torch.device) -> None:
    """Raises CheckpointError for weights that this ComfyUI cannot read, or that cannot be brought to the device:
    Apple's and DirectML know no fp8."""
    formats = {one["format"] for one in layers.values()}
    if newer := sorted(quantization.FORMATS[name].words for name in formats - {"gguf"} - QUANT_ALGOS.keys()):
        raise checkpoint.fail("format_newer", "{file} is quantized as {format}, which this ComfyUI cannot read. Update "
                              "ComfyUI, or choose a bf16, fp8, int8 or GGUF file.", format=", ".join(newer))
    formats &= FP8_INSIDE
    if formats and not comfy.model_management.supports_cast(device, torch.float8_e4m3fn):
        raise checkpoint.fail("fp8_device", "{file} cannot be used as {format}: this device ({device}) does not "
                              "support fp8. Choose a bf16, int8 or GGUF file, or another Weight format for a bf16 "
                              "file.", device=device.type,
                              format=", ".join(sorted(quantization.FORMATS[name].words for name in formats)))


# ---------------------------------------------------------------- what layers are told

def without_input_scale(layers: QuantConfig, detected: Detected, checkpoint: StoredCheckpoint) -> set[str]:
    """The fp8 layers for whose activations the file brings no scale.

    ComfyUI would take 1.0 and cut off all that is above 448, as activations in front of `img_mlp.out` are: the image
    would be wrong on every card that multiplies fp8. 1.0 in a file means for ComfyUI, too, that none was measured.
    """
    def has_scale(layer: str) -> bool:
        source = detected.table.get(f"{layer}.input_scale", ())
        return any(bool((checkpoint.read(tensor).float() != 1).any()) for tensor in source)

    return {layer for layer, one in layers.items() if one["format"] == NEEDS_INPUT_SCALE and not has_scale(layer)}


def in_full_precision(layers: QuantConfig, unscaled: set[str]) -> QuantConfig:
    """The same records, with ComfyUI told to dequantize what has no scale for its activations, and e5m2."""
    return {layer: {**one, FULL_PRECISION: True}
            if layer in unscaled or one["format"] in NEVER_NATIVE - {"gguf"} else one for layer, one in layers.items()}


def _not_in_layers(layer):
    raise Refusal("merge_quantised", "Nodes that merge or subtract models need unquantized weights, and so do LoRA "
                  "hooks, but this model is quantized. Load the bf16 file, with Weight format 'as stored' or bf16.")


# What the state dict of a quantized layer of core's has, and the layer itself has not. Core's nodes that merge or
# subtract models, and its hooks, ask the layer for all that the state dict names.
STATE_DICT_ONLY = property(_not_in_layers)


def decoding(core, disabled: set[str] = frozenset()):
    """ComfyUI's mixed-precision operations, which dequantize for every product in full precision.

    Core's own (0.30) leave that to the format: fp8 decodes itself, but int8 is multiplied as integers whatever the
    layer was told. disabled: formats that are dequantized beside those that core has disabled.
    """
    class Operations(core):
        class Embedding(core.Embedding):
            weight_scale = comfy_quant = STATE_DICT_ONLY

        class Linear(core.Linear):
            weight_scale = comfy_quant = STATE_DICT_ONLY
            _disabled_formats = {*core.Linear._disabled_formats, *disabled}

            def _forward(self, input, weight, bias):
                if self._full_precision_mm and isinstance(weight, QuantizedTensor):
                    weight = weight.dequantize().to(input.dtype)
                return super()._forward(input, weight, bias)

    return Operations


# ---------------------------------------------------------------- in words

def in_words(settings: QuantConfig, unscaled: set[str], dtype: torch.dtype, device: torch.device) -> str:
    """How the weights are stored, and what the device makes of it. settings: the records as the file has them."""
    if not settings:
        return str(dtype).removeprefix("torch.")
    formats, words = {one["format"] for one in settings.values()}, quantization.in_words(settings)
    if formats & NEVER_NATIVE:
        return Message("weights_no_device", "{weights}, dequantized layer by layer (no hardware support for this "
                       "format)",
                       weights=words)
    if formats & INTEGERS and lacks_kernels(device):
        return Message("weights_kernels_off", "{weights}, dequantized layer by layer (comfy-kitchen's kernels are off: "
                       "on NVIDIA they need PyTorch for CUDA 13)", weights=words)
    if formats & without_arithmetic(device):
        return Message("weights_this_device", "{weights}, dequantized layer by layer (not supported on this device)",
                       weights=words)
    if any(one.get(FULL_PRECISION) for one in settings.values()):
        return Message("weights_by_file", "{weights}, dequantized layer by layer (the file asks for it)",
                       weights=words)
    if unscaled:
        return Message("weights_unscaled", "{weights}, dequantized layer by layer where activation scales are missing "
                       "({count} of {total} layers)", weights=words, count=len(unscaled),
                       total=len(settings))
    if formats <= INTEGERS:
        return Message("weights_integers", "{weights}, computed in integers", weights=words)
    return Message("weights_native", "{weights}, computed natively", weights=words)
