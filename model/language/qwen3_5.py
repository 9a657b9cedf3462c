"""Qwen3.5, the language model of the official prompt enhancers: its sizes, and what its files look like.

Defaults are the published values (transformers 5: configuration_qwen3_5.py).
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from ...messages import Message, Refusal
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.config_json import COUNT, POSITIVE
from ..checkpoints.matching import Detected, Part
from . import key_maps
from .detection import detect_language_model
from .qwen3_vl import VisionSpec, vision_spec

ENHANCER = Part(
    Message("part_enhancer", "prompt enhancer"),
    Message("choose_enhancer", "choose one of the official enhancers (Qwen3.5), for example "
            "qwen3.5_9b_qwen_image_2.1_pe_t2i.int8_convrot.safetensors"))

NO_DEEPSTACK = VisionSpec(deepstack_layers=())
MARKERS = ("model.language_model.layers.0.linear_attn.A_log", "model.visual.patch_embed.proj.weight")


@dataclass(frozen=True)
class EnhancerSpec:
    """Qwen3.5: gated attention in some layers, a gated delta rule with a short convolution in the others."""

    attention_layers: tuple[bool, ...] = (False, False, False, True) * 8  # per layer: attention, or the delta rule
    dim: int = 4096
    mlp_dim: int = 12288
    heads: int = 16
    kv_heads: int = 4
    head_dim: int = 256
    linear_key_heads: int = 16
    linear_value_heads: int = 32
    linear_key_dim: int = 128       # channels of a head
    linear_value_dim: int = 128
    conv_taps: int = 4
    vocabulary: int = 248320
    rope_theta: float = 10_000_000.0
    rotary_share: float = 0.25      # of a head's channels
    mrope_section: tuple[int, int, int] = (11, 11, 10)  # rotary pairs for time, height, width
    eps: float = 1e-6
    lm_head: bool = True            # else the vocabulary's matrix is the output matrix too
    vision: VisionSpec = NO_DEEPSTACK

    def __post_init__(self) -> None:
        if 2 * sum(self.mrope_section) != int(self.head_dim * self.rotary_share):
            raise Refusal("mrope_rotary", "mrope_section {sections} makes {channels} channels, but {share} of head_dim "
                          "{head_dim} are rotary.", sections=str(self.mrope_section),
                          channels=2 * sum(self.mrope_section), share=str(self.rotary_share), head_dim=self.head_dim)


# ---------------------------------------------------------------- detection

def detect_enhancer(checkpoint: Checkpoint) -> Detected[EnhancerSpec]:
    """Spec and key table (Hugging Face name -> tensor); Hugging Face or ComfyUI names; plain or quantized.

    Raises CheckpointError.
    """
    used = {name: info for name, info in checkpoint.tensors.items() if not name.startswith(key_maps.ENHANCER_UNUSED)}
    return detect_language_model(checkpoint.with_tensors(used), ENHANCER, MARKERS, enhancer_spec)


def enhancer_spec(checkpoint: Checkpoint) -> EnhancerSpec:
    shape = checkpoint.shape
    text = checkpoint.configuration.section("text_config")
    rope = text.section("rope_parameters")
    layers = "model.language_model.layers.{}."
    attention = tuple(layers.format(number) + "self_attn.q_norm.weight" in checkpoint.tensors
                      for number in range(checkpoint.count(layers + "input_layernorm.weight")))
    if True not in attention:
        raise checkpoint.fail("attention_missing", "{file} is incomplete: none of its {layers} layers has attention "
                              "weights.",
                              layers=len(attention))
    full, linear = layers.format(attention.index(True)) + "self_attn.", layers.format(0) + "linear_attn."
    head_dim, = shape(full + "q_norm.weight")
    value_heads, value_dim = shape(linear + "A_log")[0], shape(linear + "norm.weight")[0]
    key_dim = text.one("linear_key_head_dim", COUNT, EnhancerSpec.linear_key_dim)
    channels, _, taps = shape(linear + "conv1d.weight")  # of queries, keys and values side by side
    return EnhancerSpec(
        attention_layers=attention,
        dim=shape("model.language_model.embed_tokens.weight", 2)[1],
        mlp_dim=shape(layers.format(0) + "mlp.gate_proj.weight")[0],
        heads=shape(full + "q_proj.weight")[0] // (2 * head_dim),  # queries and their gates
        kv_heads=shape(full + "k_proj.weight")[0] // head_dim,
        head_dim=head_dim,
        linear_key_heads=(channels - value_heads * value_dim) // (2 * key_dim),
        linear_value_heads=value_heads,
        linear_key_dim=key_dim,
        linear_value_dim=value_dim,
        conv_taps=taps,
        vocabulary=shape("model.language_model.embed_tokens.weight")[0],
        rope_theta=rope.one("rope_theta", POSITIVE, EnhancerSpec.rope_theta),
        rotary_share=rope.one("partial_rotary_factor", POSITIVE, EnhancerSpec.rotary_share),
        mrope_section=rope.several("mrope_section", COUNT, EnhancerSpec.mrope_section, length=3),
        lm_head="lm_head.weight" in checkpoint.tensors,
        vision=replace(vision_spec(checkpoint, ENHANCER), deepstack_layers=()),
    )
