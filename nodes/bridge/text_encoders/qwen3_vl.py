"""Qwen3-VL as ComfyUI's CLIP: core's own modules, sized by the file, with Qwen-Image 2's template and readout.

The transformer reads the last decoder layer's output before the final norm, without the 14 tokens of the system turn
and without the images' own, whose place their latents take. Core's prompt weights and textual inversions do not apply:
the text goes to the tokenizer as it is.
"""
import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import comfy.model_management
import comfy.sd
import comfy.text_encoders.llama
import comfy.text_encoders.qwen3vl
import torch
from comfy import sd1_clip
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ....messages import Message, Refusal
from ....model.checkpoints import loading, quantization
from ....model.checkpoints.checkpoint import GGUFCheckpoint, StoredCheckpoint
from ....model.checkpoints.files import open_checkpoint, regular_files
from ....model.checkpoints.matching import Detected
from ....model.language import key_maps, llama_cpp
from ....model.language.qwen3_vl import TextEncoderSpec, VisionSpec, detect_text_encoder
from ....model.language.tokens import IMAGE_PAD_TOKEN, PAD_TOKEN
from ....model.qwen_image_2 import prompt
from .. import saving
from ..keys import SLOTS_KEY
from ..quant.formats import check_device
from ..quant.gguf_ops import gguf_operations, patch_gguf_on_use
from ..quant.quantize import Network, Origin, patches_below
from ..quant.weight_format import DTYPES, conversion, keeps_fp32
from . import shared
from .lazy import LazyConditioning

NAME = "qwen3vl_8b"
# In an image's token: whether its states stay. Core keeps that beside the tokens, where its own encoder alone looks.
KEEP_VISION = "keep_vision"
AUTO = "auto"  # the vision projector: whichever lies beside the language model and fits


def no_vision() -> Refusal:
    return Refusal("vision_missing", "This text encoder was loaded without its vision projector, so it cannot read "
                   "references. Put the mmproj file of Qwen3-VL-8B-Instruct (for example "
                   "mmproj-Qwen3VL-8B-Instruct-F16.gguf) beside the GGUF file, or choose it as Vision projector in "
                   "Load Text Encoder (Qwen-Image 2).")


def language_config(spec: TextEncoderSpec):
    """Core's configuration of the language model with the file's sizes."""
    config = comfy.text_encoders.llama.Qwen3VL_8BConfig(
        vocab_size=spec.vocabulary, hidden_size=spec.dim, intermediate_size=spec.mlp_dim,
        num_hidden_layers=spec.layers, num_attention_heads=spec.heads, num_key_value_heads=spec.kv_heads,
        rms_norm_eps=spec.eps, rope_theta=spec.rope_theta, lm_head=spec.lm_head)
    # Not fields of core's dataclass, but attributes of its class: an instance may have its own.
    config.head_dim = spec.head_dim
    config.rope_dims = list(spec.mrope_section)
    return config


def compute_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32


class Seen(NamedTuple):
    """What the vision tower makes of an image: its tokens, (rows, columns) of patches, and features for some layers."""

    merged: Tensor                # (tokens, width of the language model)
    grid: Tensor                  # (1, 3)
    deepstack: tuple[Tensor, ...]  # each like merged

    def to(self, device: torch.device) -> "Seen":
        return Seen(self.merged.to(device), self.grid.to(device), tuple(layer.to(device) for layer in self.deepstack))


class VisionTower(comfy.text_encoders.qwen3vl.Qwen3VLVisionModel):
    def fast_pos_embed_interpolate(self, grid_thw):
        """In what the tower computes in: positions that a file has in fp32, as mmproj files do, would widen all."""
        return super().fast_pos_embed_interpolate(grid_thw).to(compute_dtype(grid_thw.device))


class Qwen3VL(comfy.text_encoders.qwen3vl.Qwen3VL):
    """Core's Qwen3-VL, built from a spec instead of core's table of known sizes."""

    def __init__(self, spec: TextEncoderSpec, dtype, device, operations):
        nn.Module.__init__(self)
        self.spec = spec
        self.origin: Origin | None = None
        self.seen: dict[Tensor, Seen] | None = None  # see seeing_once
        self.label, self.weights = "", ""  # the files, and how their weights are stored, for people
        self.num_layers = spec.layers
        self.dtype = dtype
        self.model = comfy.text_encoders.llama.Llama2_(language_config(spec), device=device, dtype=dtype,
                                                       ops=operations)
        self.visual = None if spec.vision is None else VisionTower(
            shared.vision_config(spec.vision, spec.dim), device=device, dtype=dtype, ops=operations)

    def preprocess_embed(self, embed, device):
        """Core would resize small images here; their size must stay what the VAE encodes."""
        if self.visual is None:
            raise no_vision()
        image, seen = embed["data"], {} if self.seen is None else self.seen
        if image not in seen:
            patches, grid = image_patches(image, self.spec.vision)
            merged, deepstack = self.visual(patches.to(device, compute_dtype(device)), grid.to(device))
            seen[image] = Seen(merged, grid, tuple(deepstack))
        found = seen[image].to(device)
        return found.merged, {"grid": found.grid, "deepstack": list(found.deepstack)}

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


def image_patches(image: Tensor, spec: VisionSpec) -> tuple[Tensor, Tensor]:
    """IMAGE (1, H, W, 3) in [0, 1], sides multiples of 32 -> patches (tokens, values) and their grid (1, 3).

    The order is the vision tower's: merge x merge neighbouring patches follow each other.
    (transformers 5, Qwen2VLImageProcessor with mean and deviation 0.5)
    """
    _, height, width, _ = image.shape
    rows, columns = height // spec.patch, width // spec.patch
    pixels = image[0].float() * 2 - 1
    pixels = pixels.reshape(rows // spec.merge, spec.merge, spec.patch, columns // spec.merge, spec.merge,
                            spec.patch, 3).permute(0, 3, 1, 4, 6, 2, 5)  # (R, C, r, c, channel, y, x)
    frames = pixels.unsqueeze(5).expand(*pixels.shape[:5], spec.temporal_patch, spec.patch, spec.patch)
    return frames.reshape(rows * columns, -1), torch.tensor([[1, rows, columns]])


class PromptEncoder(sd1_clip.SDClipModel):
    """Tokens -> states that the transformer reads, and where the references go among them."""

    def __init__(self, spec: TextEncoderSpec, device="cpu", dtype=None, model_options=None, **_):
        super().__init__(
            device=device, dtype=dtype, layer="hidden", layer_idx=-1, layer_norm_hidden_state=False,
            textmodel_json_config={}, special_tokens={"pad": PAD_TOKEN}, enable_attention_masks=False,
            return_attention_masks=False, model_options=model_options or {},
            model_class=lambda config, dtype, device, operations: Qwen3VL(spec, dtype, device, operations))

    def forward(self, tokens):
        states, pooled = super().forward(tokens)[:2]
        keep = torch.ones(states.shape[1], dtype=torch.bool)
        keep[:prompt.SYSTEM_TOKENS] = False
        slots = []
        for first, count in image_slots(tokens[0], self.transformer.spec.vision):
            keep[first:first + count] = False
            slots.append(int(keep[:first].sum()))
        return states[:, keep.to(states.device)], pooled, {SLOTS_KEY: slots} if slots else {}

    # Core's writes text with the images' positions and features; it needs nothing of its own class.
    generate = comfy.text_encoders.qwen3vl.Qwen3VLClipModel.generate


def image_slots(tokens: list, spec: VisionSpec) -> list[tuple[int, int]]:
    """(first state, number of states) of each image whose latents are to come, among the encoder's states. An image is
    one entry of `tokens`."""
    slots, position = [], 0
    for token in tokens:
        length = 1
        if isinstance(token, dict):
            side = spec.patch * spec.merge
            length = (token["data"].shape[1] // side) * (token["data"].shape[2] // side)
            if not token[KEEP_VISION]:
                slots.append((position, length))
        position += length
    return slots


class Tokenizer(saving.TokenizerBesideWeights, comfy.text_encoders.qwen3vl.Qwen3VLTokenizer):
    """Core's tokenizer files, Qwen-Image 2's template."""

    def tokenize_with_weights(self, text, return_word_ids=False, images=(), skip_template=False, keep_vision=False,
                              **kwargs):
        """text: the bare prompt, or without the template a whole conversation.
        images: references (1, H, W, 3 or 4), sides multiples of 32. Raises Refusal for what cannot be encoded.
        keep_vision: no latents of them will come, so the transformer reads the images' own states (core's
        TextEncodeQwenImage21 without a VAE)."""
        if images and kwargs.get("llama_template") is not None:  # core's TextEncodeQwenImageEditPlus
            raise Refusal("other_template", "Another node sets its own prompt template for references, that of "
                          "Qwen-Image 1.x (as TextEncodeQwenImageEditPlus does), but this text encoder is Qwen-Image "
                          "2's. Use Encode Edit (Qwen-Image 2) instead.")
        ids = self.hugging_face(text if skip_template else prompt.render(text, len(images)))["input_ids"]
        waiting = iter(over_white(image) for image in images)
        tokens = [{"type": "image", "data": next(waiting), "original_type": "image", KEEP_VISION: keep_vision}
                  if token == IMAGE_PAD_TOKEN else token for token in ids]
        row = [(token, 1.0, position) if return_word_ids else (token, 1.0) for position, token in enumerate(tokens)]
        return {NAME: [row]}

    @property
    def hugging_face(self):
        return getattr(self, NAME).tokenizer


def over_white(image: Tensor) -> Tensor:
    """The text encoder sees RGB; transparency is composited over white, as in training."""
    if image.shape[1] % 32 or image.shape[2] % 32:
        raise Refusal("reference_multiple", "Reference sides must be multiples of 32 pixels, got {width} x {height}. "
                      "Use Encode Edit (Qwen-Image 2), which resizes references.",
                      width=image.shape[2], height=image.shape[1])
    if image.shape[-1] == 3:
        return image
    colour, alpha = image[..., :3], image[..., 3:4]
    return ((colour * alpha + (1 - alpha)) * 255).round() / 255  # in 8 bits, as the reference composes


def encode_together(clip, prompts: Sequence[str], images: Sequence[Tensor]) -> list[LazyConditioning]:
    """CONDITIONING of each prompt with the same references (1, H, W, 3 or 4), sides multiples of 32, encoded when it is
    read.

    The vision tower sees each reference once for all prompts; where hooks on the CLIP change its weights while it
    encodes, once for each.
    """
    shown, seen = [over_white(image) for image in images], {}

    def encode(tokens: dict) -> list:
        once = language_model(clip).seeing_once(seen) if clip.patcher.forced_hooks is None else contextlib.nullcontext()
        with once:
            return clip.encode_from_tokens_scheduled(tokens)

    return [LazyConditioning(functools.partial(encode, clip.tokenize(text, images=shown))) for text in prompts]


def check_clip(clip, reads_images: bool = False) -> None:
    if not isinstance(getattr(clip, "tokenizer", None), Tokenizer):
        raise Refusal("not_our_clip", "This CLIP is not the Qwen-Image 2 text encoder. Load it with Load Text Encoder "
                      "(Qwen-Image 2).")
    if reads_images and language_model(clip).spec.vision is None:
        raise no_vision()


def text_network(clip) -> Network:
    """The language and vision model of a CLIP, to be written."""
    return Network(language_model(clip), patches_below(f"{NAME}.transformer.", clip.patcher),
                   key_maps.COMFY.back, language_model(clip).origin, clip.patcher.model_size())


@functools.cache
def _tokenizer() -> Tokenizer:
    return Tokenizer()


def count_tokens(text: str) -> int:
    """How many tokens a bare prompt has. Every text encoder of Qwen-Image 2 has this tokenizer; ComfyUI brings it."""
    return len(_tokenizer().hugging_face(text)["input_ids"])


# ---------------------------------------------------------------- loading

def load_text_encoder(path: Path, label: str, weight_format: str = "as stored", projector: Path | str | None = AUTO,
                      disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """A Qwen3-VL checkpoint, one file, shards or a folder -> CLIP. projector: see open_text_encoder."""
    checkpoint, detected = open_text_encoder(path, label, projector)
    detected, to_do = conversion(checkpoint, detected, weight_format)
    dtype = DTYPES.get(weight_format) or loading.stored_dtype(checkpoint.tensors)
    layers = {**detected.quantization, **to_do.layers}
    check_device(checkpoint, layers, comfy.model_management.text_encoder_device())
    operations = gguf_operations(shared.quantized_operations(dtype), torch.float32) if layers else None
    clip = shared.empty_clip(NAME, functools.partial(PromptEncoder, detected.spec), Tokenizer, dtype, operations,
                             disable_dynamic)
    shared.fill(clip, NAME, checkpoint, detected, dtype, to_do, weight_format)
    model = language_model(clip)
    model.origin = Origin(checkpoint.config, None if keeps_fp32(checkpoint, weight_format) else dtype)
    model.weights = weights_in_words(layers, dtype)
    model.label = checkpoint.label
    clip.patcher.add_callback(CallbacksMP.ON_LOAD, patch_gguf_on_use)
    clip.patcher.cached_patcher_init = (shared.load_patcher, (load_text_encoder, path, label, weight_format, projector))
    return clip


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


def open_text_encoder(path: Path, label: str,
                      projector: Path | str | None = AUTO) -> tuple[StoredCheckpoint, Detected[TextEncoderSpec]]:
    """What the file is, with the names of core's modules and without reading a tensor.

    projector: the vision projector of a GGUF file, AUTO, or None for none.
    """
    checkpoint = open_checkpoint(path, label)
    if isinstance(checkpoint, GGUFCheckpoint) and llama_cpp.is_llama_cpp(checkpoint):
        checkpoint = llama_cpp.text_encoder(checkpoint, _projector(path, checkpoint, projector))
    elif isinstance(projector, Path):
        raise checkpoint.fail("vision_inside", "{file} contains its vision tower. Set Vision projector to {auto}.",
                              auto=AUTO)
    detected = detect_text_encoder(checkpoint)
    # Built from torch's own layers: core's may have no weights, and so no shapes, before they are loaded.
    detected = shared.for_comfy(checkpoint, detected, Qwen3VL(detected.spec, None, torch.device("meta"), nn))
    return checkpoint.only(detected.tensors), detected


def projectors_beside(path: Path) -> list[Path]:
    """Vision projectors in the folder of a GGUF file, of any model, the largest first."""
    if path.suffix.lower() != ".gguf":
        return []
    found = [file for file in regular_files(path.parent, "*.gguf") if llama_cpp.is_projector_name(file.name)]
    return sorted(found, key=lambda file: file.stat().st_size, reverse=True)


def _projector(path: Path, language: GGUFCheckpoint, choice: Path | str | None) -> GGUFCheckpoint | None:
    """The chosen projector; AUTO: of those beside the language model that fit, the largest, which is the most exact."""
    llama_cpp.check_language(language)
    if isinstance(choice, Path):
        return open_checkpoint(choice)
    if choice is None:
        return None
    found = (open_checkpoint(file) for file in projectors_beside(path))
    return next((file for file in found if llama_cpp.unfit(file, language) is None), None)


def language_model(clip: comfy.sd.CLIP) -> Qwen3VL:
    return shared.network(clip, NAME)
