"""The text encoders of both families behind one name: which of them a file holds or a CLIP has, and what nodes do with
either: load, encode, save.
"""
import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import comfy.model_management
import comfy.sd
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ....messages import Message, Refusal
from ....model.checkpoints import loading, quantization
from ....model.checkpoints.checkpoint import GGUFCheckpoint, StoredCheckpoint
from ....model.checkpoints.files import open_checkpoint, regular_files
from ....model.checkpoints.matching import Detected
from ....model.language import llama_cpp
from ....model.language.qwen2_5_vl import is_text_encoder as is_qwen2_5_vl
from ....model.qwen_image_1.prompt import Template
from ..quant.formats import check_device
from ..quant.gguf_ops import gguf_operations
from ..quant.in_use import patch_in_use
from ..quant.quantize import Network, Origin, patches_below
from ..quant.weight_format import AS_STORED, DTYPES, conversion, keeps_fp32
from . import qwen2_5_vl, qwen3_vl, shared
from .lazy import LazyConditioning
from .shared import Encoder

AUTO = "auto"  # the vision projector: whichever lies beside the language model and fits
ENCODERS = (qwen3_vl.ENCODER, qwen2_5_vl.ENCODER)


# ---------------------------------------------------------------- a CLIP

def encoder_of(clip) -> Encoder | None:
    """None: another CLIP."""
    tokenizer = getattr(clip, "tokenizer", None)
    return next((encoder for encoder in ENCODERS if isinstance(tokenizer, encoder.tokenizer)), None)


def family_of(clip) -> str | None:
    """FAMILY_1 or FAMILY_2; None: another CLIP."""
    encoder = encoder_of(clip)
    return encoder.family if encoder else None


def language_model(clip) -> shared.Reader:
    return shared.network(clip, encoder_of(clip).name)


def check_clip(clip, reads_images: bool = False) -> None:
    if encoder_of(clip) is None:
        raise Refusal("not_our_clip", "This CLIP is not the Qwen-Image 2 text encoder. Load it with Load Text Encoder "
                      "(Qwen-Image 2).")
    if reads_images and language_model(clip).spec.vision is None:
        raise shared.no_vision(language_model(clip).known)


def encode_together(clip, prompts: Sequence[str], images: Sequence[Tensor],
                    template: Template | None = None) -> list[LazyConditioning]:
    """CONDITIONING of each prompt with the same pictures (1, H, W, 3 or 4), encoded when it is read.

    images: what the text encoder sees; 2.x wants sides that are multiples of 32, 1.x resizes a little by itself.
    template: of 1.x, where an edit has one; 2.x has the same for all. Prompts are taken word by word: see
    model/qwen_image_1/prompt.py, with_labels. The vision tower sees each picture once for all prompts; where hooks on
    the CLIP change its weights while it encodes, once for each.
    """
    shown, seen = [clip.tokenizer.shown(image) for image in images], {}
    more = {} if template is None else {"template": template}

    def encode(tokens: dict) -> list:
        once = language_model(clip).seeing_once(seen) if clip.patcher.forced_hooks is None else contextlib.nullcontext()
        with once:
            return clip.encode_from_tokens_scheduled(tokens)

    return [LazyConditioning(functools.partial(encode, clip.tokenize(text, images=shown, **more))) for text in prompts]


def text_network(clip) -> Network:
    """The language and vision model of a CLIP, to be written."""
    encoder, model = encoder_of(clip), language_model(clip)
    return Network(model, patches_below(f"{encoder.name}.transformer.", clip.patcher), encoder.official, model.origin,
                   clip.patcher.model_size())


@functools.cache
def _tokenizer() -> qwen3_vl.Tokenizer:
    return qwen3_vl.Tokenizer()


def count_tokens(text: str) -> int:
    """How many tokens a bare prompt has. The text encoders of both families have this tokenizer; ComfyUI brings it."""
    return len(_tokenizer().hugging_face(text)["input_ids"])


# ---------------------------------------------------------------- loading

class Opened(NamedTuple):
    """What a file is, with the names of core's modules and without reading a tensor."""

    encoder: Encoder
    checkpoint: StoredCheckpoint
    detected: Detected


def load_text_encoder(path: Path, label: str, weight_format: str = AS_STORED, projector: Path | str | None = AUTO,
                      device: torch.device | None = None, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """A Qwen3-VL or Qwen2.5-VL checkpoint, one file, shards or a folder -> CLIP. projector: see open_text_encoder.
    device: to compute on; None: ComfyUI's choice."""
    encoder, checkpoint, detected = open_text_encoder(path, label, projector)
    detected, to_do = conversion(checkpoint, detected, weight_format)
    dtype = DTYPES.get(weight_format) or loading.stored_dtype(checkpoint.tensors)
    layers = {**detected.quantization, **to_do.layers}
    check_device(checkpoint, layers, device or comfy.model_management.text_encoder_device())
    operations = gguf_operations(shared.quantized_operations(dtype), torch.float32) if layers else None
    clip = shared.empty_clip(encoder.name, functools.partial(encoder.prompt_encoder, detected.spec), encoder.tokenizer,
                             dtype, operations, device, disable_dynamic)
    shared.fill(clip, encoder.name, checkpoint, detected, dtype, to_do, weight_format)
    model = language_model(clip)
    model.origin = Origin(checkpoint.config, None if keeps_fp32(checkpoint, weight_format) else dtype)
    model.weights = weights_in_words(layers, dtype)
    model.label = checkpoint.label
    clip.patcher.add_callback(CallbacksMP.ON_LOAD, patch_in_use)
    clip.patcher.cached_patcher_init = (shared.load_patcher, (load_text_encoder, path, label, weight_format, projector,
                                                              device))
    return clip


def open_text_encoder(path: Path, label: str, projector: Path | str | None = AUTO) -> Opened:
    """projector: the vision projector of a GGUF file, AUTO, or None for none. Raises CheckpointError."""
    checkpoint = open_checkpoint(path, label)
    if isinstance(checkpoint, GGUFCheckpoint) and llama_cpp.is_llama_cpp(checkpoint):
        checkpoint = llama_cpp.text_encoder(checkpoint, _projector(path, checkpoint, projector))
    elif isinstance(projector, Path):
        raise checkpoint.fail("vision_inside", "{file} contains its vision tower. Set Vision projector to {auto}.",
                              auto=AUTO)
    # What is neither is refused as no Qwen3-VL.
    encoder = qwen2_5_vl.ENCODER if is_qwen2_5_vl(checkpoint) else qwen3_vl.ENCODER
    detected = encoder.detect(checkpoint)
    # Built from torch's own layers: core's may have no weights, and so no shapes, before they are loaded.
    detected = shared.for_comfy(checkpoint, detected, encoder.network(detected.spec, None, torch.device("meta"), nn))
    return Opened(encoder, checkpoint.only(detected.tensors), detected)


def text_encoder_summary(clip: comfy.sd.CLIP) -> list[Message]:
    model = language_model(clip)
    told = Message("text_encoder_loaded", "{file}: {layers} layers of width {width}, {size} GiB, {weights}.",
                   file=model.label, layers=model.spec.layers, width=model.spec.dim, weights=model.weights,
                   size=f"{clip.patcher.model_size() / 2**30:.2f}")
    blind = Message("projector_absent", "No vision projector loaded: text prompts work, reference images do not.")
    return [told] if model.spec.vision else [told, blind]


def weights_in_words(settings: quantization.QuantConfig, dtype: torch.dtype) -> str:
    """How the weights are stored, and what is made of them."""
    if not settings:
        return str(dtype).removeprefix("torch.")
    return Message("weights_dequantised", "{weights}, dequantized layer by layer",
                   weights=quantization.in_words(settings))


def projectors_beside(path: Path) -> list[Path]:
    """Vision projectors in the folder of a GGUF file, of any model, the largest first."""
    if path.suffix.lower() != ".gguf":
        return []
    found = [file for file in regular_files(path.parent, "*.gguf") if llama_cpp.is_projector_name(file.name)]
    return sorted(found, key=lambda file: file.stat().st_size, reverse=True)


def _projector(path: Path, language: GGUFCheckpoint, choice: Path | str | None) -> GGUFCheckpoint | None:
    """The chosen projector; AUTO: of those beside the language model that fit, the largest, which is the most exact."""
    llama_cpp.known_language(language)
    if isinstance(choice, Path):
        return open_checkpoint(choice)
    if choice is None:
        return None
    found = (open_checkpoint(file) for file in projectors_beside(path))
    return next((file for file in found if llama_cpp.unfit(file, language) is None), None)
