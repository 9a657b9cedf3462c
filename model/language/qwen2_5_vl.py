"""Qwen2.5-VL, the text encoder of Qwen-Image 1.x: its sizes, what its files look like, and how large it sees images.

Defaults are the published values (Qwen2.5-VL-7B-Instruct, config.json).
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ...messages import Message, Refusal
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.config_json import COUNT, INDEX, POSITIVE
from ..checkpoints.matching import Detected, Part
from . import detection
from .detection import (
    EMBEDDINGS,
    check_heads,
    check_sections,
    check_vocabulary,
    detect_language_model,
    refuse_other_tower,
)

TEXT_ENCODER = Part(
    detection.TEXT_ENCODER,
    Message("choose_text_encoder_1", "choose Qwen2.5-VL-7B-Instruct, for example "
            "qwen_2.5_vl_7b_fp8_scaled.safetensors"))

MODEL_TYPE = "qwen2_5_vl"
# No other language model has both; a file without the vision tower is known by its configuration alone.
KEY_BIAS = "model.language_model.layers.0.self_attn.k_proj.bias"
VISION_GATE = "model.visual.blocks.0.mlp.gate_proj.weight"
# The family's other sizes, by the width of their hidden states.
OTHER_WIDTHS = {2048: "Qwen2.5-VL-3B", 5120: "Qwen2.5-VL-32B", 8192: "Qwen2.5-VL-72B"}
# Pixels of an image that the vision tower sees (preprocessor_config.json).
LEAST_PIXELS, MOST_PIXELS = 56 * 56, 12_845_056


@dataclass(frozen=True)
class VisionSpec:
    depth: int = 32
    dim: int = 1280
    mlp_dim: int = 3420
    heads: int = 16
    patch: int = 14                 # pixels; merge x merge patches make one token
    temporal_patch: int = 2         # a still image is repeated this often
    merge: int = 2
    window: int = 112               # pixels that a block sees around each of them, but for those in full_attention
    full_attention: tuple[int, ...] = (7, 15, 23, 31)

    def __post_init__(self) -> None:
        check_heads(self.dim, self.heads)
        if self.window % self.side:
            raise Refusal("vision_window", "the vision tower's windows of {window} pixels are no multiple of {side}.",
                          window=self.window, side=self.side)

    @property
    def side(self) -> int:
        """Pixels of a token's side."""
        return self.patch * self.merge


@dataclass(frozen=True)
class TextEncoderSpec:
    layers: int = 28
    dim: int = 3584
    mlp_dim: int = 18944
    heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128
    vocabulary: int = 152064
    rope_theta: float = 1_000_000.0
    mrope_section: tuple[int, int, int] = (16, 24, 24)  # rotary pairs for time, height, width, one after the other
    eps: float = 1e-6
    lm_head: bool = True            # untied output matrix present in the file
    vision: VisionSpec | None = VisionSpec()  # None: it reads no images

    def __post_init__(self) -> None:
        check_sections(self.mrope_section, self.head_dim)


def seen_size(width: int, height: int, spec: VisionSpec = VisionSpec()) -> tuple[int, int]:
    """(width, height) in which the vision tower sees an image: sides of whole tokens, near its ratio, between the least
    and the most pixels (transformers 5, smart_resize of Qwen2VLImageProcessor)."""
    side = spec.side
    across, down = round(width / side) * side, round(height / side) * side
    if across * down > MOST_PIXELS:
        shrunk = math.sqrt(width * height / MOST_PIXELS)
        across, down = (max(1, math.floor(length / shrunk / side)) * side for length in (width, height))
    elif across * down < LEAST_PIXELS:
        grown = math.sqrt(LEAST_PIXELS / (width * height))
        across, down = (math.ceil(length * grown / side) * side for length in (width, height))
    return across, down


# ---------------------------------------------------------------- detection

def is_text_encoder(checkpoint: Checkpoint) -> bool:
    """Whether a file is to be read as this model. What it lacks is found later."""
    ends = [marker.replace("model.language_model.", "").replace("model.", "") for marker in _markers(checkpoint)]
    return all(any(name.endswith(f".{end}") or name == end for name in checkpoint.tensors) for end in ends)


def _markers(checkpoint: Checkpoint) -> tuple[str, ...]:
    return (KEY_BIAS,) if checkpoint.config.get("model_type") == MODEL_TYPE else (KEY_BIAS, VISION_GATE)


def detect_text_encoder(checkpoint: Checkpoint) -> Detected[TextEncoderSpec]:
    """Spec and key table (Hugging Face name -> tensor) of Qwen2.5-VL; Hugging Face, older or ComfyUI names; plain or
    quantized.

    Raises CheckpointError.
    """
    found = detect_language_model(checkpoint, TEXT_ENCODER, _markers(checkpoint), text_encoder_spec)
    # Without a vision tower it is known by its configuration alone.
    return found if found.spec.vision else replace(found, config=checkpoint.config)


def text_encoder_spec(checkpoint: Checkpoint) -> TextEncoderSpec:
    shape, config = checkpoint.shape, checkpoint.configuration
    text = config.section("text_config") or config  # older configurations have no sections for text
    rope = text.section("rope_parameters") or text.section("rope_scaling") or config.section("rope_scaling")
    layer = "model.language_model.layers.0."
    vocabulary, dim = shape(EMBEDDINGS, 2)
    if dim in OTHER_WIDTHS:
        raise checkpoint.fail("text_encoder_size_1", "{file} is {model} (width {width}); Qwen-Image 1.x needs "
                              "Qwen2.5-VL-7B (width {expected}): {advice}.", model=OTHER_WIDTHS[dim], width=dim,
                              expected=TextEncoderSpec.dim, advice=TEXT_ENCODER.advice)
    check_vocabulary(checkpoint, vocabulary, "Qwen2.5-VL", TextEncoderSpec.vocabulary, TEXT_ENCODER)
    heads = text.one("num_attention_heads", COUNT, TextEncoderSpec.heads if dim == TextEncoderSpec.dim else None)
    if heads is None:
        raise checkpoint.fail("attention_unknown", "{file} has a width of {width} and no configuration of its "
                              "attention heads. Keep config.json beside it.", width=dim)
    head_dim = shape(layer + "self_attn.q_proj.weight")[0] // heads
    return TextEncoderSpec(
        layers=checkpoint.count("model.language_model.layers.{}.self_attn.k_proj.bias"),
        dim=dim,
        mlp_dim=shape(layer + "mlp.gate_proj.weight")[0],
        heads=heads,
        kv_heads=shape(layer + "self_attn.k_proj.weight")[0] // head_dim,
        head_dim=head_dim,
        vocabulary=vocabulary,
        rope_theta=rope.one("rope_theta", POSITIVE, text.one("rope_theta", POSITIVE, TextEncoderSpec.rope_theta)),
        mrope_section=rope.several("mrope_section", COUNT, TextEncoderSpec.mrope_section, length=3),
        lm_head="lm_head.weight" in checkpoint.tensors,
        vision=vision_spec(checkpoint) if VISION_GATE in checkpoint.tensors else None,
    )


def vision_spec(checkpoint: Checkpoint) -> VisionSpec:
    shape, config = checkpoint.shape, checkpoint.configuration.section("vision_config")
    depth = checkpoint.count("model.visual.blocks.{}.norm1.weight")
    dim = shape("model.visual.blocks.0.norm1.weight")[0]
    refuse_other_tower(checkpoint, (depth, dim), (VisionSpec.depth, VisionSpec.dim), TEXT_ENCODER)
    temporal_patch, patch = shape("model.visual.patch_embed.proj.weight", 5)[2:4]
    return VisionSpec(
        depth=depth,
        dim=dim,
        mlp_dim=shape(VISION_GATE)[0],
        heads=config.one("num_heads", COUNT, VisionSpec.heads),
        patch=patch,
        temporal_patch=temporal_patch,
        window=config.one("window_size", COUNT, VisionSpec.window),
        full_attention=config.several("fullatt_block_indexes", INDEX, VisionSpec.full_attention),
    )
