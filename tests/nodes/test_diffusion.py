"""The MODEL in this process: what a sampling run does with its prefix, its kernels and its memory."""
from types import SimpleNamespace

import pytest
import torch

from qwen_image_2.model import kernels as plain
from qwen_image_2.model.prefix import Condition
from qwen_image_2.tests.reference import error


@pytest.fixture
def diffusion():
    from qwen_image_2.nodes.bridge import diffusion
    return diffusion


@pytest.fixture
def prefix(diffusion):
    text = torch.randn(1, 20, 64, generator=torch.Generator().manual_seed(0))
    return diffusion.PromptPrefix(Condition(text))


def velocity(model, prefix, **options):
    x = torch.randn(1, 64, 4, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.model.diffusion_model(x, torch.tensor([0.7]), prefix=prefix, **options)


def count_prefix_passes(monkeypatch, model):
    calls = []
    encode = type(model.model.diffusion_model).encode_prefix
    monkeypatch.setattr(type(model.model.diffusion_model), "encode_prefix",
                        lambda self, *args, **kwargs: calls.append(1) or encode(self, *args, **kwargs))
    return calls


def test_prefix_is_computed_once_for_all_steps(model, prefix, monkeypatch):
    calls = count_prefix_passes(monkeypatch, model)
    first, second = velocity(model, prefix), velocity(model, prefix)
    assert len(calls) == 1 and torch.equal(first, second)


def test_prefix_is_computed_anew_when_the_weights_change(model, prefix, monkeypatch):
    calls = count_prefix_passes(monkeypatch, model)
    for key in ("plain", "plain", "with LoRA", "plain"):
        velocity(model, prefix, weights_key=key)
    assert len(calls) == 3


def test_weights_key_follows_loras_and_hooks(model):
    clone = model.clone()
    inner = clone.model
    before = inner._weights_key()
    inner.current_weight_patches_uuid = "another"
    try:
        assert inner._weights_key() != before
    finally:
        inner.current_weight_patches_uuid = before[0]
    hook = SimpleNamespace(hook_ref=object(), strength=1.0)
    inner.current_patcher = SimpleNamespace(current_hooks=SimpleNamespace(hooks=[hook]))
    try:
        full = inner._weights_key()
        hook.strength = 0.5
        assert inner._weights_key() != full != before
    finally:
        inner.current_patcher = None


def test_attention_overrides_of_other_nodes_are_called(model, prefix):
    calls = []

    def override(function, q, k, v, *args, **kwargs):
        calls.append((q.shape[1], k.shape[1]))
        return function(q, k, v, *args, **kwargs)

    expected = velocity(model, prefix)
    prefix._cache = None
    found = velocity(model, prefix, transformer_options={"optimized_attention_override": override})
    assert calls == [(24, 44), (24, 44)]  # the target, in both blocks; the prompt's own causal run is torch's
    assert error(found, expected) < 1e-5


def test_wrappers_of_other_nodes_are_called(model, prefix):
    from comfy.patcher_extension import WrappersMP
    calls = []

    def wrapper(executor, x, *args, **kwargs):
        calls.append(x.shape)
        return executor(x, *args, **kwargs)

    velocity(model, prefix, transformer_options={"wrappers": {WrappersMP.DIFFUSION_MODEL: {"test": [wrapper]}}})
    assert calls == [(1, 64, 4, 6)]


def test_comfy_kitchen_kernels_give_the_same_result(comfyui):
    """Their CPU versions define what the fused kernels compute."""
    import comfy.ops
    import comfy_kitchen

    from qwen_image_2.nodes.bridge.kernels import kitchen_kernels
    kernels = kitchen_kernels(comfy_kitchen)
    q, k = torch.randn(2, 7, 3, 32), torch.randn(2, 7, 3, 32)
    norm_q, norm_k = (comfy.ops.manual_cast.RMSNorm(32, eps=1e-6) for _ in range(2))
    for norm in (norm_q, norm_k):
        torch.nn.init.normal_(norm.weight)
    rotations = torch.polar(torch.ones(7, 16), torch.randn(7, 16))
    expected = plain.norm_rope(q, k, norm_q, norm_k, rotations)
    found = kernels.norm_rope(q, k, norm_q, norm_k, kernels.prepare_rotations(rotations))
    assert all(error(f, e) < 1e-6 for f, e in zip(found, expected))
    x, scale = torch.randn(2, 7, 96), torch.randn(2, 1, 96)
    assert error(kernels.scaled_layer_norm(x, scale, 1e-6), plain.scaled_layer_norm(x, scale, 1e-6)) < 1e-6


def test_conditionings_that_do_not_fit_are_refused(diffusion, model):
    def check(**cond):
        return diffusion.condition_from(cond, model.model.spec, model.model.process_latent_in)

    with pytest.raises(ValueError, match="a prompt of width 2048, but this transformer reads width 64"):
        check(cross_attn=torch.zeros(1, 77, 2048))
    with pytest.raises(ValueError, match="holds no prompt"):
        check()
    with pytest.raises(ValueError, match="0 reference latents and 1 image slots"):
        check(cross_attn=torch.zeros(1, 20, 64), qwen_image_2_slots=((3, 4),))


def test_controlnets_are_refused(diffusion, model):
    guider = SimpleNamespace(model_patcher=model, conds={"positive": [{"control": object()}]})
    executor = type("Executor", (), {"class_obj": guider})()
    with pytest.raises(ValueError, match="ControlNets do not work"):
        diffusion.check_run(executor, torch.zeros(1, 64, 4, 4), torch.zeros(1, 64, 4, 4))


def test_empty_batch_is_refused(diffusion, model):
    executor = type("Executor", (), {"class_obj": SimpleNamespace(model_patcher=model, conds={})})()
    with pytest.raises(ValueError, match="batch is empty"):
        diffusion.check_run(executor, torch.zeros(0, 64, 4, 4), torch.zeros(0, 64, 4, 4))


def test_memory_estimate_counts_the_prefix(model):
    inner = model.model
    text = {"cross_attn": torch.zeros(1, 1000, 64)}
    shapes = {name: [shape] for name, shape in inner.extra_conds_shapes(**text).items()}
    without, with_prefix = inner.memory_required([1, 64, 64, 64]), inner.memory_required([1, 64, 64, 64], shapes)
    kept = 1000 * 2 * 256 * 2 * 4  # tokens, keys and values, width, blocks, bytes
    assert with_prefix - without >= kept


def test_published_model_keeps_half_a_mebibyte_per_prefix_token(diffusion):
    from qwen_image_2.model.spec import TransformerSpec
    spec = TransformerSpec()
    assert 2 * spec.heads * spec.head_dim * spec.layers * 2 == 512 * 1024


def test_turbo_comes_from_the_name_and_can_be_overridden(comfyui):
    from qwen_image_2.nodes.loaders import variant_of
    assert variant_of("Qwen_Image_2.1_TURBO_bf16.safetensors", "auto") == "turbo"
    assert variant_of("Qwen-Image-2.1-Turbo/transformer/", "auto") == "turbo"
    assert variant_of("qwen_image_2.1_bf16.safetensors", "auto") == "base"
    assert variant_of("qwen_image_2.1_turbo.safetensors", "base") == "base"


def test_preview_factors_fit_the_latent(diffusion):
    latent_format = diffusion.LatentFormat()
    assert len(latent_format.latent_rgb_factors) == 64
    latent = torch.randn(1, 64, 4, 4)
    assert torch.allclose(latent_format.process_out(latent_format.process_in(latent)), latent, atol=1e-5)
