"""What the language models have in common: core's modules with a file's sizes, filled from the file.

Each has its own tokenizer and its own SDClipModel. The two that read prompts say what they are in an `Encoder`, all
that families.py needs to load them; the enhancer has a `load` and an `open` of its own.
"""
import contextlib
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import comfy.model_management
import comfy.ops
import comfy.sd
import torch
from comfy import sd1_clip
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ....messages import Refusal
from ....model.checkpoints import loading, matching, quantization
from ....model.checkpoints.checkpoint import Checkpoint, StoredCheckpoint, TensorInfo
from ....model.checkpoints.errors import missing_tensor
from ....model.checkpoints.loading import NOT_QUANTIZING, Quantizing
from ....model.checkpoints.matching import Detected
from ....model.language import key_maps
from ....model.language.llama_cpp import Known
from ....model.language.qwen3_vl import VisionSpec
from .. import saving
from ..adapters.checks import check_loras
from ..progress import loading_progress
from ..quant.formats import decoding
from ..quant.quantize import Origin
from ..quant.weight_format import AS_STORED, keeps_fp32
from ..slices import sliced


def vision_config(spec: VisionSpec, out_dim: int) -> dict:
    """Core's configuration of a vision tower with the file's sizes. out_dim: width of the language model."""
    return dict(hidden_size=spec.dim, intermediate_size=spec.mlp_dim, depth=spec.depth, num_heads=spec.heads,
                deepstack_visual_indexes=list(spec.deepstack_layers), patch_size=spec.patch, in_channels=3,
                temporal_patch_size=spec.temporal_patch, spatial_merge_size=spec.merge,
                num_position_embeddings=spec.positions, out_hidden_size=out_dim)


class Encoder(NamedTuple):
    """A text encoder of one family: what makes a CLIP of its file."""

    name: str                 # core's, in the names of weights and in tokens
    family: str               # FAMILY_1 or FAMILY_2
    detect: Callable[[Checkpoint], Detected]
    network: Callable[..., nn.Module]                   # (spec, dtype, device, operations)
    prompt_encoder: Callable[..., sd1_clip.SDClipModel]  # (spec, device, dtype, model_options)
    tokenizer: type
    official: Callable[[str], str]  # name of a parameter -> its name in the files that others write


# ---------------------------------------------------------------- reading prompts and pictures

def compute_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32


class Seen(NamedTuple):
    """What the vision tower makes of an image: its tokens, (rows, columns) of patches, and features for some layers."""

    merged: Tensor                # (tokens, width of the language model)
    grid: Tensor                  # (1, 3)
    deepstack: tuple[Tensor, ...] = ()  # each like merged

    def to(self, device: torch.device) -> "Seen":
        return Seen(self.merged.to(device), self.grid.to(device), tuple(layer.to(device) for layer in self.deepstack))


class Reader:
    """What the pack's text encoders have beside core's, the class that comes after this one."""

    known: Known
    visual: nn.Module | None
    origin: Origin | None = None
    seen: dict[Tensor, Seen] | None = None  # see seeing_once
    label, weights = "", ""                 # the files, and how their weights are stored, for people

    def look(self, image: Tensor, device: torch.device) -> Seen:
        """Through the vision tower."""
        raise NotImplementedError

    def look_once(self, image: Tensor, device: torch.device) -> Seen:
        if self.visual is None:
            raise no_vision(self.known)
        seen = {} if self.seen is None else self.seen
        if image not in seen:
            seen[image] = self.look(image, device)
        return seen[image].to(device)

    @contextlib.contextmanager
    def seeing_once(self, seen: dict[Tensor, Seen]):
        """Inside, an image, as this very tensor, passes through the vision tower if it is not in `seen`, and is noted
        there. The tower's weights must not change. What is noted waits in RAM."""
        self.seen = seen
        try:
            yield
        finally:
            self.seen = None
            seen.update({image: features.to(torch.device("cpu")) for image, features in seen.items()})

    def forward(self, input_ids, attention_mask=None, embeds=None, **more):
        """Core's, in bf16 on a card that has it: as the reference computes, where core would take fp32. Quantized
        weights are dequantized all the same; their arithmetic would round activations that few tokens dominate."""
        if embeds is not None:
            embeds = embeds.to(compute_dtype(embeds.device))
        return super().forward(input_ids, attention_mask, embeds=embeds, **more)


def no_vision(known: Known) -> Refusal:
    return Refusal("vision_missing", "This text encoder was loaded without its vision projector, so it cannot read "
                   "references. Put the mmproj file of {model} (for example {example}) beside the GGUF file, or choose "
                   "it as Vision projector in Load Text Encoder (Qwen-Image 2).", model=known.model,
                   example=known.projector_file)


# ---------------------------------------------------------------- the CLIP

def empty_clip(name: str, clip_model: Callable[..., sd1_clip.SDClipModel], tokenizer: type, dtype: torch.dtype,
               operations: type | None = None, device: torch.device | None = None,
               disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """A CLIP whose weights are still on the meta device.

    name: what core calls the text encoder, in the names of its weights and in its tokens. clip_model(device, dtype,
    model_options) builds it. operations: layers in place of core's choice, for files that are quantized. device: to
    compute on, in place of core's choice; on the CPU the weights wait there as well.
    """
    def model(device="cpu", dtype=None, model_options=None):
        return sd1_clip.SD1ClipModel(device=device, dtype=dtype, name=name, model_options=model_options or {},
                                     clip_model=clip_model)

    options = {"dtype": dtype, "initial_device": torch.device("meta")}
    if operations is not None:
        options["custom_operations"] = operations
    if device is not None:
        options["load_device"] = device
        if device.type == "cpu":  # where core keeps them on the card otherwise (--gpu-only)
            options["offload_device"] = device
    return comfy.sd.CLIP(SimpleNamespace(params={}, clip=model, tokenizer=tokenizer), model_options=options,
                         disable_dynamic=disable_dynamic)


def network(clip: comfy.sd.CLIP, name: str) -> nn.Module:
    """The language model, with its vision tower, of a CLIP from empty_clip."""
    return getattr(clip.cond_stage_model, name).transformer


def fill(clip: comfy.sd.CLIP, name: str, checkpoint: StoredCheckpoint, detected: Detected, dtype: torch.dtype,
         quantizing: Quantizing = NOT_QUANTIZING, weight_format: str = AS_STORED) -> None:
    """The weights of a CLIP from empty_clip, from the file, with ComfyUI's bar."""
    # Core's text encoders cast every parameter to what they compute in, fp32.
    loading.load(network(clip, name), detected, sliced(checkpoint, clip.patcher.is_dynamic()), dtype,
                 loading_progress(len(detected.table)), quantizing, keeps_fp32(checkpoint, weight_format))
    comfy.model_management.archive_model_dtypes(clip.cond_stage_model)
    clip.patcher.add_callback(CallbacksMP.ON_LOAD, check_loras)
    clip.tokenizer.beside_weights = functools.partial(saving.beside_weights, network(clip, name), detected.config,
                                                      checkpoint.label, f"{name}.transformer.")


def load_patcher(load: Callable[..., comfy.sd.CLIP], *arguments, disable_dynamic: bool = False):
    """How ComfyUI loads a second copy, for hooks and for other devices: `load` with the same arguments once more."""
    return load(*arguments, disable_dynamic=disable_dynamic).patcher


# ---------------------------------------------------------------- what core's modules are filled with

def quantized_operations(dtype: torch.dtype) -> type:
    """Core's layers for quantized text encoders, which dequantize each weight as it is used."""
    core = decoding(comfy.ops.mixed_precision_ops({}, dtype, full_precision_mm=True))

    class Operations(core):
        class Linear(core.Linear):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                # Core moves weights to the device where the layer was built, which here is meta.
                self.factory_kwargs = {**self.factory_kwargs, "device": torch.device("cpu")}

    return Operations


def for_comfy(checkpoint: Checkpoint, detected: Detected, module: nn.Module) -> Detected:
    """The key table with the names of core's modules, as this one has them, strict in both directions."""
    named = {key_maps.COMFY.to(name): source for name, source in detected.table.items()}
    layers = {quantization.layer_of(key_maps.COMFY.to(f"{layer}.weight")): how
              for layer, how in detected.quantization.items()}
    expected = matching.shapes(module)
    missing = sorted(set(expected) - set(named))
    if missing:
        raise missing_tensor(checkpoint.label, key_maps.COMFY.back(missing[0]))
    found = {source[0]: TensorInfo(detected.shapes[name], "") for name, source in detected.table.items()
             if name in detected.shapes}
    matching.match(checkpoint.with_tensors(found), expected, {name: named[name] for name in expected})
    return Detected(detected.spec, named, expected, layers, detected.config)
