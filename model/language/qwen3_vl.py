"""Qwen3-VL, the text encoder of Qwen-Image 2.x: its sizes, and what its files look like.

Defaults are the published values (Qwen3-VL-8B-Instruct, config.json).
"""
from __future__ import annotations

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
    Message("choose_text_encoder", "choose Qwen3-VL-8B-Instruct, for example qwen3vl_8b_bf16.safetensors"))

# Only in files with a vision tower.
DEEPSTACK_MERGER = "model.visual.deepstack_merger_list.0.linear_fc1.weight"
# The family's other sizes, by the width of their hidden states.
OTHER_WIDTHS = {2048: "Qwen3-VL-2B", 2560: "Qwen3-VL-4B", 5120: "Qwen3-VL-32B"}


@dataclass(frozen=True)
class VisionSpec:
    depth: int = 27
    dim: int = 1152
    mlp_dim: int = 4304
    heads: int = 16
    patch: int = 16                 # pixels; merge x merge patches make one token
    temporal_patch: int = 2         # a still image is repeated this often
    merge: int = 2
    positions: int = 2304           # 48 x 48 learned positions, interpolated
    deepstack_layers: tuple[int, ...] = (8, 16, 24)

    def __post_init__(self) -> None:
        check_heads(self.dim, self.heads)


@dataclass(frozen=True)
class TextEncoderSpec:
    layers: int = 36
    dim: int = 4096
    mlp_dim: int = 12288
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 151936
    rope_theta: float = 5_000_000.0
    mrope_section: tuple[int, int, int] = (24, 20, 20)  # rotary pairs for time, height, width
    eps: float = 1e-6
    lm_head: bool = True            # untied output matrix present in the file
    vision: VisionSpec | None = VisionSpec()  # None: it reads no images

    def __post_init__(self) -> None:
        check_sections(self.mrope_section, self.head_dim)
        if self.vision and max(self.vision.deepstack_layers, default=0) >= self.vision.depth:
            raise Refusal("deepstack_layers", "deepstack_layers {layers} exceed the vision tower's depth of {depth} "
                          "blocks.", layers=str(self.vision.deepstack_layers), depth=self.vision.depth)


# ---------------------------------------------------------------- detection

def detect_text_encoder(checkpoint: Checkpoint) -> Detected[TextEncoderSpec]:
    """Spec and key table (Hugging Face name -> tensor) of Qwen3-VL; Hugging Face or ComfyUI names; plain or quantized.

    Raises CheckpointError.
    """
    markers: tuple[str, ...] = ("model.language_model.layers.0.self_attn.q_norm.weight", DEEPSTACK_MERGER)
    if checkpoint.config.get("model_type") == "qwen3_vl":
        markers = markers[:1]  # it may lack the vision tower, without which other language models have the same names
    found = detect_language_model(checkpoint, TEXT_ENCODER, markers, text_encoder_spec)
    # Without a vision tower it is known by its configuration alone.
    return found if found.spec.vision else replace(found, config=checkpoint.config)


def text_encoder_spec(checkpoint: Checkpoint) -> TextEncoderSpec:
    shape, config = checkpoint.shape, checkpoint.configuration
    text = config.section("text_config")
    rope = text.section("rope_parameters") or text.section("rope_scaling")
    layer = "model.language_model.layers.0."
    head_dim, = shape(layer + "self_attn.q_norm.weight")
    vocabulary, dim = shape(EMBEDDINGS)
    if dim in OTHER_WIDTHS:
        raise checkpoint.fail("text_encoder_size", "{file} is {model} (width {width}); Qwen-Image 2 needs Qwen3-VL-8B "
                              "(width {expected}): {advice}.", model=OTHER_WIDTHS[dim],
                              width=dim, expected=TextEncoderSpec.dim, advice=TEXT_ENCODER.advice)
    check_vocabulary(checkpoint, vocabulary, "Qwen3-VL", TextEncoderSpec.vocabulary, TEXT_ENCODER)
    mrope_section = rope.several("mrope_section", COUNT, None, length=3)
    return TextEncoderSpec(
        layers=checkpoint.count("model.language_model.layers.{}.self_attn.q_norm.weight"),
        dim=dim,
        mlp_dim=shape(layer + "mlp.gate_proj.weight")[0],
        heads=shape(layer + "self_attn.q_proj.weight")[0] // head_dim,
        kv_heads=shape(layer + "self_attn.k_proj.weight")[0] // head_dim,
        head_dim=head_dim,
        vocabulary=vocabulary,
        rope_theta=rope.one("rope_theta", POSITIVE, text.one("rope_theta", POSITIVE, TextEncoderSpec.rope_theta)),
        mrope_section=mrope_section or _mrope_section(checkpoint, head_dim),
        lm_head="lm_head.weight" in checkpoint.tensors,
        vision=vision_spec(checkpoint, TEXT_ENCODER) if DEEPSTACK_MERGER in checkpoint.tensors else None,
    )


def _mrope_section(checkpoint: Checkpoint, head_dim: int) -> tuple[int, int, int]:
    if head_dim != TextEncoderSpec.head_dim:
        raise checkpoint.fail("rope_unknown", "{file} has attention heads of {head_dim} channels and no configuration "
                              "of its rotary embedding. Keep config.json beside it.",
                              head_dim=head_dim)
    return TextEncoderSpec.mrope_section


def vision_spec(checkpoint: Checkpoint, part: Part) -> VisionSpec:
    """Of the tower in a language model."""
    shape, config = checkpoint.shape, checkpoint.configuration.section("vision_config")
    depth = checkpoint.count("model.visual.blocks.{}.attn.qkv.weight")
    dim = shape("model.visual.blocks.0.norm1.weight")[0]
    refuse_other_tower(checkpoint, (depth, dim), (VisionSpec.depth, VisionSpec.dim), part)
    temporal_patch, patch = shape("model.visual.patch_embed.proj.weight", 5)[2:4]
    return VisionSpec(
        depth=depth,
        dim=dim,
        mlp_dim=shape("model.visual.blocks.0.mlp.linear_fc1.weight")[0],
        heads=config.one("num_heads", COUNT, VisionSpec.heads),
        patch=patch,
        temporal_patch=temporal_patch,
        positions=shape("model.visual.pos_embed.weight")[0],
        deepstack_layers=config.several("deepstack_visual_indexes", INDEX, VisionSpec.deepstack_layers),
    )
