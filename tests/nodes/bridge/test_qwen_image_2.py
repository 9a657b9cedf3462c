"""The MODEL in this process: what a sampling run does with its prefix, its kernels and its memory."""
import math
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from qwen_image_2.model.qwen_image_2.prefix_cache import Condition
from qwen_image_2.model.runtime import kernels as plain
from qwen_image_2.tests.reference import error


@pytest.fixture
def qwen_image_2():
    from qwen_image_2.nodes.bridge import qwen_image_2
    return qwen_image_2


@pytest.fixture
def prefix(qwen_image_2):
    text = torch.randn(1, 20, 64, generator=torch.Generator().manual_seed(0))
    return qwen_image_2.PromptPrefix(Condition(text))


def velocity(model, prefix, **options):
    x = torch.randn(1, 64, 4, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.model.diffusion_model(x, torch.tensor([0.7]), prefix=prefix, **options)


def count_prefix_passes(monkeypatch, model):
    calls = []
    layers = type(model.model.diffusion_model).prefix_layers
    monkeypatch.setattr(type(model.model.diffusion_model), "prefix_layers",
                        lambda self, *args, **kwargs: calls.append(1) or layers(self, *args, **kwargs))
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


def test_a_place_is_reported_once_however_often_the_weights_change(qwen_image_2, model, prefix, monkeypatch):
    """As under a hook with keyframes, whose every strength makes keys and values of its own."""
    told, calls = [], count_prefix_passes(monkeypatch, model)
    options = {qwen_image_2.REPORT_KEY: told.append}
    for key in range(4):
        velocity(model, prefix, weights_key=key, transformer_options=options)
    assert len(calls) == 4 and len(told) == 1
    velocity(model, prefix, weights_key="out of memory", transformer_options=options,
             first_place=qwen_image_2.Place.NOWHERE)
    assert len(told) == 2 and "computed anew in every step" in told[1]


def test_ram_that_cannot_be_pinned_is_said(qwen_image_2, model, prefix, monkeypatch):
    keep, told = qwen_image_2.placement.keep, []
    monkeypatch.setattr(qwen_image_2.placement, "keep", lambda *args: (keep(*args)[0], qwen_image_2.Place.RAM))
    velocity(model, prefix, transformer_options={qwen_image_2.REPORT_KEY: told.append})
    assert told[1:] == ["RAM could not be pinned for keys and values: each block waits for its copy."]


def test_keys_and_values_are_released_when_others_take_their_place_and_at_the_end(qwen_image_2, prefix):
    released = []

    class Cache(qwen_image_2.PrefixCache):
        def release(self):
            released.append(self.position)

    prefix.cache("plain", lambda: Cache(1))
    prefix.cache("plain", lambda: Cache(1))
    prefix.cache("with LoRA", lambda: Cache(2))
    assert released == [1]
    prefix.clear()
    prefix.clear()
    assert released == [1, 2]


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


def test_a_compiled_model_takes_prompts_of_any_length(qwen_image_2, model):
    """As core's TorchCompileModel compiles it: the pass over the prompt and what is said of it stay out of that."""
    network, compiled = model.model.diffusion_model, torch.compile(model.model.diffusion_model, backend="eager")
    x, sigma = torch.randn(1, 64, 4, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0.7])
    for length in (20, 27, 31):
        text = torch.randn(1, length, 64, generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            found, expected = (net(x, sigma, prefix=qwen_image_2.PromptPrefix(Condition(text)))
                               for net in (compiled, network))
        assert error(found, expected) < 1e-6  # the compiler may compute a constant before, and elsewhere
    torch.compiler.reset()


def test_wrappers_of_other_nodes_are_called(model, prefix):
    from comfy.patcher_extension import WrappersMP
    calls = []

    def wrapper(executor, x, *args, **kwargs):
        calls.append(x.shape)
        return executor(x, *args, **kwargs)

    velocity(model, prefix, transformer_options={"wrappers": {WrappersMP.DIFFUSION_MODEL: {"test": [wrapper]}}})
    assert calls == [(1, 64, 4, 6)]


def test_patches_that_have_no_effect_are_told_once_a_run(qwen_image_2, model, prefix):
    """As of HyperTile, perturbed attention or skipped layers, which work on the places of other networks."""
    told, inner = [], model.model
    x, sigma = torch.randn(1, 64, 4, 6), torch.tensor([0.7])
    for _ in range(2):
        inner.begin_run(0)
        for patches in ({}, {"patches": {"attn1_patch": [print], "input": []}},
                        {"patches_replace": {"dit": {0: print}}}, {"rope_options": {"scale_x": 2.0}}):
            options = {qwen_image_2.REPORT_KEY: told.append, **patches}
            for _ in range(2):
                with torch.no_grad():
                    inner.apply_model(x, sigma, prefix=prefix, transformer_options=options)
        inner.end_run()
    patched = [sentence for sentence in told if sentence.startswith("Another node")]
    assert [sentence[sentence.index("("):sentence.index(")")] for sentence in patched] == [
        "(attn1_patch", "(dit", "(rope_options"] * 2


def test_comfy_kitchen_kernels_give_the_same_result(comfyui):
    """Their CPU versions define what the fused kernels compute."""
    import comfy.ops
    import comfy_kitchen

    from qwen_image_2.nodes.bridge.runtime.kernels import kitchen_kernels
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
    expected = plain.scaled_layer_norm(x, scale, 1e-6)
    assert error(kernels.scaled_layer_norm(x, kernels.prepare_scale(scale), 1e-6), expected) < 1e-6


def test_graphics_cards_get_the_fused_kernels(comfyui):
    from qwen_image_2.nodes.bridge.runtime.kernels import kernels_for
    assert kernels_for(torch.device("cpu")) is plain.TORCH
    fused = kernels_for(torch.device("cuda"))
    assert fused.norm_rope is not plain.norm_rope and fused.scaled_layer_norm is not plain.scaled_layer_norm


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_whole_transformer_runs_on_the_fused_kernels(comfyui, reference, dtype):
    import comfy.ops
    import comfy_kitchen

    from qwen_image_2.model.checkpoints.checkpoint import Checkpoint, TensorInfo
    from qwen_image_2.model.qwen_image_2 import detect
    from qwen_image_2.model.qwen_image_2.transformer import Transformer
    from qwen_image_2.nodes.bridge.runtime.kernels import kitchen_kernels
    state = {name: value.to(dtype) for name, value in reference.transformer.state_dict().items()}
    tensors = {n: TensorInfo(tuple(v.shape), "F32") for n, v in state.items()}
    spec = detect.detect_transformer(Checkpoint("reference", tensors)).spec
    condition = Condition(torch.randn(3, 20, 64).to(dtype), ((4, 6),), (torch.randn(1, 64, 4, 6).to(dtype),))
    x, sigma, velocities = torch.randn(3, 64, 5, 3).to(dtype), torch.tensor([0.9, 0.5, 0.1]), []
    for ops, kernels in ((torch.nn, plain.TORCH), (comfy.ops.manual_cast, kitchen_kernels(comfy_kitchen))):
        model = Transformer(spec, ops, kernels, dtype=dtype)
        model.load_state_dict(state)
        velocities.append(model(x, sigma, model.encode_prefix(condition)).float())
    assert error(*velocities) < (1e-5 if dtype == torch.float32 else 0.1)


@torch.no_grad()
def test_zero_shifts_are_made_once_for_a_pass(comfyui):
    """Not for every norm: the published model has 65 of them."""
    import comfy.ops
    import comfy_kitchen

    from qwen_image_2.model.qwen_image_2.spec import TransformerSpec
    from qwen_image_2.model.qwen_image_2.transformer import Transformer
    from qwen_image_2.nodes.bridge.runtime.kernels import kitchen_kernels
    spec = TransformerSpec(layers=5, dim=64, heads=2, mlp_dim=128, context_dim=64)
    model = Transformer(spec, comfy.ops.manual_cast, kitchen_kernels(comfy_kitchen))
    cache = model.encode_prefix(Condition(torch.randn(1, 5, 64)))
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as calls:
        model(torch.randn(2, 64, 4, 6), torch.rand(2), cache)
    counts = {event.key: event.count for event in calls.key_averages()}
    assert counts["comfy_kitchen::adaln"] == 2 * 5 + 1 and counts["aten::zeros_like"] == 3


def test_conditionings_that_do_not_fit_are_refused(qwen_image_2, model):
    def check(**cond):
        return qwen_image_2.condition_from(cond, model.model.spec, model.model.process_latent_in)

    with pytest.raises(ValueError, match="a prompt of width 2048, but this transformer reads width 64"):
        check(cross_attn=torch.zeros(1, 77, 2048))
    with pytest.raises(ValueError, match="holds no prompt"):
        check()
    with pytest.raises(ValueError, match="0 reference latents and 1 image slots"):
        check(cross_attn=torch.zeros(1, 20, 64), qwen_image_2_slots=((3, 4),))


def test_controlnets_are_refused(qwen_image_2, model):
    guider = SimpleNamespace(model_patcher=model, conds={"positive": [{"control": object()}]})
    executor = type("Executor", (), {"class_obj": guider})()
    with pytest.raises(ValueError, match="ControlNets do not work"):
        qwen_image_2.check_run(executor, torch.zeros(1, 64, 4, 4), torch.zeros(1, 64, 4, 4))


def test_empty_batch_is_refused(qwen_image_2, model):
    executor = type("Executor", (), {"class_obj": SimpleNamespace(model_patcher=model, conds={})})()
    with pytest.raises(ValueError, match="batch is empty"):
        qwen_image_2.check_run(executor, torch.zeros(0, 64, 4, 4), torch.zeros(0, 64, 4, 4))


def test_memory_estimate_counts_the_prefix(qwen_image_2, model):
    inner = model.model
    text = {"cross_attn": torch.zeros(1, 1000, 64)}
    shapes = {name: [shape] for name, shape in inner.extra_conds_shapes(**text).items()}
    without, with_prefix = inner.memory_required([1, 64, 64, 64]), inner.memory_required([1, 64, 64, 64], shapes)
    kept = 1000 * 2 * 256 * 2 * 4  # tokens, keys and values, width, blocks, bytes
    assert with_prefix - without == kept + 1000 * qwen_image_2.ACTIVATION_WIDTHS * 256 * 4


@pytest.mark.parametrize("prompts", [1, 3])
def test_the_room_for_keys_and_values_is_what_they_take(qwen_image_2, model, prompts):
    """A prompt for each picture of a batch has keys and values of its own; of references too."""
    told = []
    prefix = qwen_image_2.PromptPrefix(Condition(torch.randn(prompts, 20, 64), ((4, 2),), (torch.randn(1, 64, 2, 4),)))
    with torch.no_grad():
        model.model.diffusion_model(torch.randn(prompts, 64, 4, 6), torch.full((prompts,), 0.7), prefix=prefix,
                                    transformer_options={qwen_image_2.REPORT_KEY: told.append})
    taken = sum(t.nbytes for pair in prefix._cache.layers for t in pair)
    tokens = math.prod(qwen_image_2.PrefixCond(prefix).size())
    assert qwen_image_2.kept_bytes(model.model.spec, tokens, 4) == taken
    assert f"({taken / 2**20:.1f} MiB)" in told[0] and told[0].startswith(f"{prompts * 26} tokens")


def least_room(monkeypatch, model, cfg: float, place: str = "DEVICE", **options) -> int:
    """Bytes that ComfyUI must find beside the weights of a run with prompts of 30 and of 20 tokens."""
    import comfy.model_management as management
    import comfy.samplers

    from qwen_image_2.nodes.bridge import qwen_image_2
    changed, asked, load = model.clone(), [], management.load_models_gpu
    changed.model_options |= options
    changed.model_options["transformer_options"][qwen_image_2.PLACE_KEY] = qwen_image_2.Place[place]
    guider = comfy.samplers.CFGGuider(changed)
    guider.set_conds([[torch.randn(1, 30, 64), {}]], [[torch.randn(1, 20, 64), {}]])
    guider.set_cfg(cfg)
    with monkeypatch.context() as patch:
        patch.setattr(management, "load_models_gpu",
                      lambda models, minimum_memory_required, **rest: asked.append(minimum_memory_required)
                      or load(models, minimum_memory_required=minimum_memory_required, **rest))
        latent = torch.zeros(1, 64, 4, 4)
        guider.sample(torch.randn_like(latent), latent, comfy.samplers.sampler_object("euler"),
                      torch.tensor([1.0, 0.0]))
    return asked[0]


def test_the_least_room_holds_the_prompts_of_both_branches(model, monkeypatch):
    """ComfyUI fills up the rest with weights; at cfg 1 the second prompt is not computed."""
    token = 2 * 256 * 2 * 4  # keys and values, width, blocks, bytes
    alone = least_room(monkeypatch, model, 1.0)
    assert least_room(monkeypatch, model, 2.0) - alone == 20 * token
    assert least_room(monkeypatch, model, 1.0, disable_cfg1_optimization=True) - alone == 20 * token
    assert alone - least_room(monkeypatch, model, 2.0, "RAM") == 30 * token
    assert model.model.kept_tokens is None


def test_each_prompt_is_placed_beside_what_the_other_keeps(qwen_image_2, model, monkeypatch):
    found, keep = [], qwen_image_2.placement.keep
    monkeypatch.setattr(qwen_image_2.placement, "keep", lambda *args: found.append(args[-1]) or keep(*args))
    monkeypatch.setattr(qwen_image_2.PromptPrefix, "video_memory", 7)
    least_room(monkeypatch, model, 2.0)
    assert found == [7, 7]


def test_what_a_prefix_takes_on_a_card(qwen_image_2, prefix):
    assert prefix.video_memory == 0
    card, ram = (torch.empty(1, 20, 2, 8, device=device) for device in ("meta", "cpu"))
    prefix.cache("on the card", lambda: qwen_image_2.PrefixCache(0, [(card, card)] * 3))
    assert prefix.video_memory == 6 * card.nbytes
    prefix.cache("in RAM", lambda: qwen_image_2.PrefixCache(0, [(ram, ram)] * 3))
    assert prefix.video_memory == 0


def test_a_failed_run_keeps_no_keys_and_values(qwen_image_2, model):
    """The guider of SamplerCustomAdvanced outlives the run, and its conditionings with it."""
    import comfy.samplers
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[torch.randn(1, 20, 64), {}]], [[torch.randn(1, 20, 64), {}]])
    guider.set_cfg(2.0)

    def stop(*args):
        prefixes = [cond["model_conds"]["prefix"].cond for conds in guider.conds.values() for cond in conds]
        assert all(prefix._cache is not None for prefix in prefixes)
        raise InterruptedError

    latent = torch.zeros(1, 64, 4, 4)
    with pytest.raises(InterruptedError):
        guider.sample(torch.randn_like(latent), latent, comfy.samplers.sampler_object("euler"),
                      torch.tensor([1.0, 0.5, 0.0]), callback=stop)
    prefixes = [cond["model_conds"]["prefix"].cond for conds in guider.conds.values() for cond in conds]
    assert len(prefixes) == 2 and all(prefix._cache is None for prefix in prefixes)


def test_lora_hooks_of_another_width_are_refused(qwen_image_2, model):
    from comfy.weight_adapter.lora import LoRAAdapter
    clone = model.clone()
    adapter = LoRAAdapter(set(), (torch.zeros(3072, 4), torch.zeros(4, 3072), None, None, None, None))
    key = "diffusion_model.transformer_blocks.0.attn.to_q.weight"
    clone.hook_patches = {object(): {key: [(1.0, adapter, 1.0, None, None)]}}
    with pytest.raises(ValueError, match=r"Qwen-Image 1.x \(width 3072\)"):
        qwen_image_2.check_lora_shapes(clone)


def test_prompts_must_be_one_or_as_many_as_pictures(qwen_image_2, model):
    cond = {"cross_attn": torch.zeros(2, 20, 64), "model_conds": {}}
    executor = type("Executor", (), {"class_obj": SimpleNamespace(model_patcher=model, conds={"positive": [cond]})})()
    with pytest.raises(ValueError, match="2 prompts for 3 pictures"):
        qwen_image_2.check_run(executor, torch.zeros(3, 64, 4, 4), torch.zeros(3, 64, 4, 4))


def test_video_latents_are_refused(qwen_image_2, model):
    executor = type("Executor", (), {"class_obj": SimpleNamespace(model_patcher=model, conds={})})()
    with pytest.raises(ValueError, match=r"shape \[1, 64, 1, 4, 4\]"):
        qwen_image_2.check_run(executor, torch.zeros(1, 64, 1, 4, 4), torch.zeros(1, 64, 1, 4, 4))


def test_everything_loads_where_core_delays_its_weights(comfyui, monkeypatch, transformer_file, text_encoder_file,
                                                        vae_file):
    """On NVIDIA cards core's layers have no weights, and so no shapes, before their state is loaded."""
    import comfy.memory_management
    import comfy.ops

    from qwen_image_2.nodes.bridge.qwen_image_2 import load_model
    from qwen_image_2.nodes.bridge.text_encoders.qwen3_vl import load_text_encoder
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
    from qwen_image_2.nodes.loaders import variant_of
    assert variant_of("Qwen_Image_2.1_TURBO_bf16.safetensors", "auto") == "turbo"
    assert variant_of("Qwen-Image-2.1-Turbo/transformer/", "auto") == "turbo"
    assert variant_of("qwen_image_2.1_bf16.safetensors", "auto") == "base"
    assert variant_of("qwen_image_2.1_turbo.safetensors", "base") == "base"


def test_preview_factors_fit_the_latent(qwen_image_2):
    latent_format = qwen_image_2.LatentFormat()
    assert len(latent_format.latent_rgb_factors) == 64
    latent = torch.randn(1, 64, 4, 4)
    assert torch.allclose(latent_format.process_out(latent_format.process_in(latent)), latent, atol=1e-5)
