"""The MODEL in this process: what a step does with its prefix and with what other nodes bring."""
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from qwen_image_2.model.qwen_image_2.prefix_cache import Condition, PrefixCache
from qwen_image_2.tests.reference import error


@pytest.fixture
def qwen_image_2():
    from qwen_image_2.nodes.bridge import qwen_image_2
    return qwen_image_2


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


def test_old_keys_and_values_are_released_before_new_ones_are_made(qwen_image_2, model, prefix, monkeypatch):
    """Both at once would need twice the memory."""
    events, placement = [], qwen_image_2.prefix_placement
    allocate = placement.allocate_prefix_cache

    class Cache(PrefixCache):
        def release(self):
            events.append("released")

    def make(*args):
        events.append("made" if prefix.cache is None else "made beside the old ones")
        cache, location = allocate(*args)
        return Cache(cache.position, cache.layers), location

    monkeypatch.setattr(placement, "allocate_prefix_cache", make)
    for key in ("plain", "plain", "with LoRA"):
        velocity(model, prefix, weights_key=key)
    assert events == ["made", "released", "made"]


def test_a_place_is_reported_once_however_often_the_weights_change(qwen_image_2, model, prefix, monkeypatch):
    """As under a hook with keyframes, whose every strength makes keys and values of its own."""
    told, calls = [], count_prefix_passes(monkeypatch, model)
    options = {qwen_image_2.REPORT_KEY: told.append}
    for key in range(4):
        velocity(model, prefix, weights_key=key, transformer_options=options)
    assert len(calls) == 4 and len(told) == 1
    velocity(model, prefix, weights_key="out of memory", transformer_options=options,
             first_location=qwen_image_2.CacheLocation.RECOMPUTE)
    assert len(told) == 2 and "recomputed every step" in told[1]


def test_ram_that_cannot_be_pinned_is_said(qwen_image_2, model, prefix, monkeypatch):
    allocate, told = qwen_image_2.prefix_placement.allocate_prefix_cache, []
    monkeypatch.setattr(qwen_image_2.prefix_placement, "allocate_prefix_cache",
                        lambda *args: (allocate(*args)[0], qwen_image_2.CacheLocation.RAM))
    velocity(model, prefix, transformer_options={qwen_image_2.REPORT_KEY: told.append})
    assert told[1:] == ["The KV cache in system RAM could not be pinned: each block waits for its copy."]


def testweights_key_follows_loras_and_hooks(model):
    clone = model.clone()
    inner = clone.model
    before = inner.weights_key()
    inner.current_weight_patches_uuid = "another"
    try:
        assert inner.weights_key() != before
    finally:
        inner.current_weight_patches_uuid = before[0]
    hook = SimpleNamespace(hook_ref=object(), strength=1.0)
    inner.current_patcher = SimpleNamespace(current_hooks=SimpleNamespace(hooks=[hook]))
    try:
        full = inner.weights_key()
        hook.strength = 0.5
        assert inner.weights_key() != full != before
    finally:
        inner.current_patcher = None


def test_attention_overrides_of_other_nodes_are_called(model, prefix):
    calls = []

    def override(function, q, k, v, *args, **kwargs):
        calls.append((q.shape[1], k.shape[1]))
        return function(q, k, v, *args, **kwargs)

    expected = velocity(model, prefix)
    prefix.clear()
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
    patched = [sentence for sentence in told if sentence.startswith("Model patches from another node")]
    assert [sentence[sentence.index("("):sentence.index(")")] for sentence in patched] == [
        "(attn1_patch", "(dit", "(rope_options"] * 2


def test_memory_estimate_counts_the_prefix(qwen_image_2, model):
    inner = model.model
    text = {"cross_attn": torch.zeros(1, 1000, 64)}
    shapes = {name: [shape] for name, shape in inner.extra_conds_shapes(**text).items()}
    without, with_prefix = inner.memory_required([1, 64, 64, 64]), inner.memory_required([1, 64, 64, 64], shapes)
    # As core's newer versions ask.
    assert inner.memory_required([1, 64, 64, 64], cond_shapes=shapes, memory_efficient_attention=True) == with_prefix
    kept = 1000 * 2 * 256 * 2 * 4  # tokens, keys and values, width, blocks, bytes
    assert with_prefix - without == kept + 1000 * qwen_image_2.ACTIVATION_WIDTHS * 256 * 4


@pytest.mark.parametrize("prompts, causal", [(1, True), (3, True), (1, False), (3, False)])
def test_the_room_for_keys_and_values_is_what_they_take(qwen_image_2, model, monkeypatch, prompts, causal):
    """A prompt for each picture of a batch has keys and values of its own; of references too. Where a prefix changes
    with the timestep every picture has."""
    monkeypatch.setattr(model.model.diffusion_model, "spec", replace(model.model.spec, causal_condition=causal))
    told = []
    prefix = qwen_image_2.PromptPrefix(Condition(torch.randn(prompts, 18, 64), (4,), (torch.randn(1, 64, 2, 4),)))
    with torch.no_grad():
        model.model.diffusion_model(torch.randn(3, 64, 4, 6), torch.full((3,), 0.7), prefix=prefix,
                                    transformer_options={qwen_image_2.REPORT_KEY: told.append})
    taken = sum(t.nbytes for pair in prefix.cache.layers for t in pair)
    prefixes = prompts if causal else 3
    assert qwen_image_2.PrefixCond(prefix).size() == [1, prompts, 26]
    assert qwen_image_2.kept_bytes(model.model.spec, prefixes * 26, 4) == taken
    assert f": {prefixes * 26} tokens, {taken / 2**20:.1f} MiB, " in told[0] and told[0].startswith("KV cache of ")


def test_the_decoder_for_previews_is_the_one_that_core_can_read(qwen_image_2, monkeypatch):
    """Newer versions name one for these latents (comfy/latent_formats.py, 0.38); in an older one nothing could."""
    from comfy import latent_formats

    class QwenImage21(latent_formats.LatentFormat):
        def __init__(self):
            self.taesd_decoder_name = "taeqi2_1_decoder"

    monkeypatch.delattr(latent_formats, "QwenImage21", raising=False)
    assert qwen_image_2.LatentFormat().taesd_decoder_name is None
    monkeypatch.setattr(latent_formats, "QwenImage21", QwenImage21, raising=False)
    assert qwen_image_2.LatentFormat().taesd_decoder_name == "taeqi2_1_decoder"


def test_preview_factors_fit_the_latent(qwen_image_2):
    latent_format = qwen_image_2.LatentFormat()
    assert len(latent_format.latent_rgb_factors) == 64
    latent = torch.randn(1, 64, 4, 4)
    assert torch.allclose(latent_format.process_out(latent_format.process_in(latent)), latent, atol=1e-5)
