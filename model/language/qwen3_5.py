"""What a prompt enhancer's file is: names and shapes of a Qwen3.5 -> spec and key table."""
from collections.abc import Mapping
from dataclasses import replace

from ..checkpoints import quantization
from ..checkpoints.config_json import COUNT, POSITIVE, Configuration
from ..checkpoints.files import CheckpointError
from ..qwen_image_2 import key_maps
from ..qwen_image_2.detect import Detected, Tensors, count, detect_language_model, shape_reader, vision_spec
from ..qwen_image_2.spec import EnhancerSpec

MARKS = ("model.language_model.layers.0.linear_attn.A_log", "model.visual.patch_embed.proj.weight")


def detect_enhancer(stored: Tensors, config: Mapping, label: str,
                    settings: quantization.Settings | None = None) -> Detected:
    """Spec and key table (Hugging Face name -> tensor); Hugging Face or ComfyUI names; plain or quantised."""
    used = {name: info for name, info in stored.items() if not name.startswith(key_maps.ENHANCER_UNUSED)}
    return detect_language_model("prompt enhancer", MARKS, _spec, used, config, label, settings or {})


def _spec(tensors: Tensors, config: Mapping, label: str) -> EnhancerSpec:
    shape = shape_reader(tensors, label)
    said = Configuration(config, label)
    text = said.section("text_config")
    rope = text.section("rope_parameters")
    layers = "model.language_model.layers.{}."
    attention = tuple(layers.format(number) + "self_attn.q_norm.weight" in tensors
                      for number in range(count(tensors, layers + "input_layernorm.weight")))
    if True not in attention:
        raise CheckpointError("attention_missing", "{file} is incomplete: none of its {layers} layers has attention.",
                              file=label, layers=len(attention))
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
        lm_head="lm_head.weight" in tensors,
        vision=replace(vision_spec(tensors, said.section("vision_config"), label, "prompt enhancer"),
                       deepstack_layers=()),
    )
