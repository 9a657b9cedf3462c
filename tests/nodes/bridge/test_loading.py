"""MODEL, CLIP and VAE as ComfyUI loads them: with delayed weights, again for another device, base or turbo."""
import json

import pytest

from qwen_image_2.tools import tiny


def test_everything_loads_where_core_delays_its_weights(comfyui, monkeypatch, transformer_file, text_encoder_file,
                                                        vae_file):
    """On NVIDIA cards core's layers have no weights, and so no shapes, before their state is loaded."""
    import comfy.memory_management
    import comfy.ops

    from qwen_image_2.nodes.bridge.loading import load_model
    from qwen_image_2.nodes.bridge.text_encoders.families import load_text_encoder
    from qwen_image_2.nodes.bridge.vae import load_vae
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    assert comfy.ops.disable_weight_init.Linear(2, 2).weight is None, "core has changed: is this still needed?"
    model = load_model(transformer_file, transformer_file.name, "base")
    clip = load_text_encoder(text_encoder_file, text_encoder_file.name)
    vae = load_vae(vae_file, vae_file.name)
    for module in (model.model.diffusion_model, clip.cond_stage_model, vae.first_stage_model):
        weights = [value for value in module.state_dict().values() if value is not None]
        assert weights and not any(weight.is_meta for weight in weights)


@pytest.mark.parametrize("part", ["model", "clip.patcher", "vae.patcher"])
def test_parts_can_be_loaded_again_without_dynamic_memory(request, part):
    """What core does for hooks and for other devices."""
    name, _, attribute = part.partition(".")
    patcher = request.getfixturevalue(name)
    patcher = getattr(patcher, attribute) if attribute else patcher
    factory, arguments, *_ = patcher.cached_patcher_init
    again = factory(*arguments, disable_dynamic=True)
    assert again.model is not patcher.model and again.model_size() == patcher.model_size()


def test_turbo_comes_from_the_name_and_can_be_overridden(comfyui):
    from qwen_image_2.nodes.bridge.loading import variant_of
    assert variant_of("Qwen_Image_2.1_TURBO_bf16.safetensors", "auto") == "turbo"
    assert variant_of("Qwen-Image-2.1-Turbo/transformer/", "auto") == "turbo"
    assert variant_of("qwen_image_2.1_bf16.safetensors", "auto") == "base"
    assert variant_of("qwen_image_2.1_turbo.safetensors", "base") == "base"


def test_core_s_attention_preferences_are_set_aside(comfyui, reference, tmp_path):
    """`<module>.comfy_attention.config`, JSON as bytes: core's newer versions write it into what their nodes save."""
    from qwen_image_2.nodes.bridge.loading import load_model
    from qwen_image_2.nodes.bridge.text_encoders.families import load_text_encoder
    from qwen_image_2.nodes.bridge.vae import load_vae
    config = {"text_config": tiny.TEXT_CONFIG, "vision_config": tiny.VISION_CONFIG}
    fused = tiny.to_comfy_transformer(reference.transformer.state_dict())
    prefix = "model.diffusion_model."
    for load, state, module, settings in (
            (lambda path: load_model(path, path.name, "base"), fused, "transformer_blocks.0.attn", {}),
            (lambda path: load_model(path, path.name, "base"), {prefix + name: value for name, value in fused.items()},
             prefix + "transformer_blocks.1.attn", {}),
            (lambda path: load_text_encoder(path, path.name), reference.text_encoder.state_dict(),
             "model.language_model.layers.0.self_attn", config),
            (lambda path: load_vae(path, path.name), tiny.to_wan_vae(reference.vae.state_dict()),
             "decoder.middle.1", {})):
        path = tmp_path / "preferences.safetensors"
        tiny.save_as_they_are(state | {f"{module}.comfy_attention.config": tiny.mark(attention="comfy_kitchen_int8")},
                              path, {"config": json.dumps(settings)} if settings else None)
        load(path)
