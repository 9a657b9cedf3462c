"""The transformer against diffusers, tensor by tensor."""
from dataclasses import replace

import pytest
import torch

from qwen_image_2.model.checkpoints.checkpoint import Checkpoint, TensorInfo
from qwen_image_2.model.qwen_image_2 import detect
from qwen_image_2.model.qwen_image_2.prefix_cache import Condition, PrefixCache, RecomputedPrefix
from qwen_image_2.model.qwen_image_2.spec import TransformerSpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.model.runtime.kernels import TORCH
from qwen_image_2.tests import reference
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

BOUND = 1e-4
TARGET = (4, 6)
# Rows and columns of the references in latents, odd ones among them, and where their slots stand among 30 states, with
# the images' own states, which only diffusers takes and ignores: one for 2 x 2 latent tokens.
REFERENCES = {0: (), 1: ((2, 10),), 2: ((4, 3), (3, 12))}
FIRST_STATE = (0, 11)


def ours(theirs) -> Transformer:
    state = tiny.to_comfy_transformer(theirs.state_dict())
    tensors = {name: TensorInfo(tuple(value.shape), "F32") for name, value in state.items()}
    config = {"causal_condition": theirs.config.causal_condition}
    model = Transformer(detect.detect_transformer(Checkpoint("reference", tensors, config)).spec)
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module", params=[True, False], ids=["causal_condition", "sampled_condition"])
def pair(request):
    theirs = reference.transformer(causal_condition=request.param)
    return theirs, ours(theirs)


def inputs(batch: int, grids, dtype=torch.float32):
    generator = torch.Generator().manual_seed(batch + 10 * len(grids))
    ignored = sum(h * w // 4 for h, w in grids)
    slots = tuple(first - sum(h * w // 4 for h, w in grids[:number])
                  for number, first in enumerate(FIRST_STATE[:len(grids)]))
    condition = Condition(
        text=torch.randn(batch, 30 - ignored, 64, generator=generator).to(dtype), slots=slots,
        references=tuple(torch.randn(1, 64, h, w, generator=generator).to(dtype) for h, w in grids))
    target = torch.randn(batch, 64, *TARGET, generator=generator).to(dtype)
    return condition, target, torch.full((batch,), 0.7315)


def velocity_of_reference(theirs, condition: Condition, target, sigma, cached: bool):
    """Run diffusers on the same inputs; with `cached`, its decode step after a prefill."""
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache
    batch = len(target)
    slots = torch.zeros(batch, 30 + TARGET[0] * TARGET[1] // 4, dtype=torch.bool)
    slots[:, 30:] = True
    for first, latent in zip(FIRST_STATE, condition.references, strict=False):
        slots[:, first:first + latent[0, 0].numel() // 4] = True
    text = condition.text.new_full((batch, 30, 64), 1e3)  # of the images' own states nothing must count
    text[:, ~slots[0, :30]] = condition.text
    latents = [r.expand(batch, -1, -1, -1) for r in condition.references] + [target]
    shapes = [[(1, *latent.shape[-2:]) for latent in latents]] * batch
    tokens = torch.cat([latent.flatten(2).transpose(1, 2) for latent in latents], dim=1)

    def run(sigma, **cache):
        return theirs(tokens, text, sigma, shapes, slots, return_dict=False, **cache)[0]

    if cached:
        cache = QwenImage21KVCache(len(theirs.transformer_blocks))
        run(torch.ones_like(sigma), kv_cache=cache, kv_cache_mode="extract")
        out = run(sigma, kv_cache=cache, kv_cache_mode="cached")
    else:
        out = run(sigma)
    return out[:, -TARGET[0] * TARGET[1]:].transpose(1, 2).unflatten(2, TARGET)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("references", [0, 1, 2])
def test_velocity_equals_the_reference(pair, batch, references):
    theirs, model = pair
    condition, target, sigma = inputs(batch, REFERENCES[references])
    cache = model.encode_prefix(condition, sigma)
    expected = velocity_of_reference(theirs, condition, target, sigma, cached=False)
    assert error(model(target, sigma, cache), expected) < BOUND


@torch.no_grad()
@pytest.mark.parametrize("references", [0, 2])
def test_an_mlp_of_two_matrices_equals_the_reference(references):
    """As files have it whose halves cannot be joined."""
    theirs = reference.transformer()
    model = Transformer(replace(ours(theirs).spec, fused_mlp=False)).eval()
    model.load_state_dict(theirs.state_dict())
    condition, target, sigma = inputs(2, REFERENCES[references])
    expected = velocity_of_reference(theirs, condition, target, sigma, cached=False)
    assert error(model(target, sigma, model.encode_prefix(condition)), expected) < BOUND


@torch.no_grad()
def test_parts_equal_the_reference(pair):
    """What later layers would hide: LayerNorm forgives a wrong scale before it."""
    theirs, model = pair
    text = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(3))
    for scale in (1, 1e-3):  # eps matters in the second
        assert error(model.txt_in(text * scale, torch.float32), theirs.txt_in(text * scale)) < 1e-5
    sigma = torch.tensor([0.0, 0.0213, 0.5, 1.0])
    assert error(model.time_text_embed(sigma, torch.float32), theirs.time_text_embed(sigma, text)) < 1e-5
    tokens, time = torch.randn(4, 5, 256) * 1e-3, torch.randn(4, 256)
    assert error(model.norm_out(tokens, time), theirs.norm_out(tokens, time)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("references", [0, 1, 2])
def test_cached_prefix_serves_every_step(batch, references):
    theirs = reference.transformer()
    model = ours(theirs)
    condition, target, sigma = inputs(batch, REFERENCES[references])
    cache = model.encode_prefix(condition)
    model(target, torch.ones(batch), cache)  # another step before
    expected = velocity_of_reference(theirs, condition, target, sigma, cached=True)
    assert error(model(target, sigma, cache), expected) < BOUND


@torch.no_grad()
def test_times_are_rounded_as_the_reference_rounds_them():
    """Its pipeline passes 1000 * sigma through the latents' dtype, and the model was trained on that."""
    theirs = reference.transformer()
    frequencies = theirs.time_text_embed.time_proj.freqs
    model = ours(theirs).bfloat16()
    theirs.bfloat16().time_text_embed.time_proj.freqs = frequencies  # fp32 in a pipeline that is loaded in bf16
    sigma = torch.linspace(0.02, 1, 50)
    rounded = (sigma * 1000).bfloat16() / 1000
    expected, unrounded = (theirs.time_text_embed(times, torch.zeros(1, dtype=torch.bfloat16)).float()
                           for times in (rounded, sigma))
    found = model.time_text_embed(sigma, torch.bfloat16).float()
    # Sums of another order may differ in the last of bf16's 8 bits, and the second layer's by that once more.
    assert error(found, expected) < 2**-7 < 0.1 < error(found, unrounded)


@torch.no_grad()
def test_one_prefix_serves_a_batch_of_targets():
    model = ours(reference.transformer())
    condition, target, sigma = inputs(1, REFERENCES[2])
    targets = torch.cat([target, target.flip(3), -target])
    cache = model.encode_prefix(condition)
    together = model(targets, sigma.expand(3), cache)
    alone = torch.cat([model(t.unsqueeze(0), sigma, cache) for t in targets])
    assert error(together, alone) < 1e-5


@torch.no_grad()
def test_sampled_condition_changes_the_prefix_with_sigma():
    model = ours(reference.transformer(causal_condition=False))
    condition, *_ = inputs(1, ())
    keys = [model.encode_prefix(condition, torch.tensor([sigma])).layers[0][0] for sigma in (0.9, 0.1)]
    assert error(*keys) > 1e-3
    with pytest.raises(ValueError, match="causal_condition"):
        model.encode_prefix(condition)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_to_fp32_as_the_references(dtype):
    theirs = reference.transformer()
    exact = velocity_of_reference(theirs, *inputs(2, REFERENCES[2]), cached=False)
    condition, target, sigma = inputs(2, REFERENCES[2], dtype)
    model = ours(theirs).to(dtype)
    found = model(target, sigma, model.encode_prefix(condition))
    theirs_rounded = velocity_of_reference(theirs.to(dtype), condition, target, sigma.to(dtype), cached=False)
    assert found.dtype == dtype
    assert (found.float() - exact).norm() < 1.2 * (theirs_rounded.float() - exact).norm()


@torch.no_grad()
def test_fp16_is_clipped_like_the_reference():
    theirs = reference.transformer().half()
    for block in theirs.transformer_blocks:
        block.img_mlp.out.weight *= 3e4  # every block overflows fp16
    model = ours(theirs).half()
    condition, target, sigma = inputs(1, (), torch.float16)
    found = model(target, sigma, model.encode_prefix(condition))
    assert torch.isfinite(found).all()


@torch.no_grad()
def test_text_states_beyond_fp16_survive():
    model = ours(reference.transformer()).half()
    condition, target, sigma = inputs(1, ())
    huge = Condition(condition.text * 1e6)  # as single channels of the real encoder's states are
    velocities = [model(target.half(), sigma, model.encode_prefix(c, dtype=torch.float16)) for c in (condition, huge)]
    assert error(velocities[1].float(), velocities[0].float()) < 0.02


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 2)])
def test_odd_targets_run(size):
    model = ours(reference.transformer())
    condition, *_ = inputs(1, ())
    target = torch.randn(1, 64, *size)
    assert model(target, torch.ones(1), model.encode_prefix(condition)).shape == target.shape


@torch.no_grad()
def test_no_mask_for_images_and_none_of_target_size():
    calls = []

    def attention(q, k, v, causal=False):
        calls.append((q.shape[1], k.shape[1], causal))
        return TORCH.attention(q, k, v, causal)

    model = ours(reference.transformer())
    model.kernels = replace(TORCH, attention=attention)
    condition, target, sigma = inputs(1, REFERENCES[1])
    model(target, sigma, model.encode_prefix(condition))
    # Prefix: image of 20, then 25 states of text (5 of 30 were the slot). The last block needs keys only.
    assert calls == [(20, 20, False), (25, 45, True), (24, 69, False), (24, 69, False)]


def test_rotations_are_prepared_before_they_reach_the_device():
    """Not every device knows complex numbers."""
    prepared, used = [], []

    def norm_rope(q, k, norm_q, norm_k, rope):
        used.append((rope.device.type, rope.dtype))
        return norm_q(q), norm_k(k)

    def prepare(rotations):
        prepared.append(rotations.device.type)
        return torch.view_as_real(rotations)

    kernels = replace(TORCH, norm_rope=norm_rope, prepare_rotations=prepare)
    model = Transformer(TransformerSpec(layers=2, heads=2, context_dim=64), kernels=kernels, device="meta")
    cache = model.encode_prefix(Condition(torch.empty(1, 5, 64, device="meta")))
    model(torch.empty(1, 64, 4, 6, device="meta"), torch.empty(1, device="meta"), cache)
    assert prepared == ["cpu", "cpu"] and set(used) == {("meta", torch.float32)} and len(used) == 4


def test_gradients_flow_through_prefix_and_target():
    model = ours(reference.transformer())
    condition, target, sigma = inputs(2, REFERENCES[1])
    model(target, sigma, model.encode_prefix(condition)).square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not missing


def test_slots_and_references_must_agree():
    text, latent = torch.zeros(1, 30, 64), torch.zeros(1, 64, 4, 4)
    with pytest.raises(ValueError, match="1 image placeholders, but 0 reference"):
        Condition(text, (0,))
    with pytest.raises(ValueError, match="0 image placeholders, but 1 reference"):
        Condition(text, (), (latent,))


@pytest.mark.parametrize(("slots", "words"), [
    ((-1,), "placeholder 1 stands at position -1 of the prompt; 0 to 12 are possible"),
    ((13,), "placeholder 1 stands at position 13 of the prompt; 0 to 12 are possible"),
    ((4, 2), "placeholder 2 stands at position 2 of the prompt; 4 to 12 are possible")])
def test_slots_lie_inside_the_prompt_and_in_order(slots, words):
    text, latents = torch.zeros(1, 12, 64), (torch.zeros(1, 64, 4, 4),) * len(slots)
    with pytest.raises(ValueError, match=words):
        Condition(text, slots, latents)
    assert Condition(text, (0, 12, 12), latents[:1] * 3)  # without text between them, to the very end


def test_a_batch_of_references_is_one_or_as_many_as_prompts():
    latent = torch.zeros(2, 64, 4, 4)
    with pytest.raises(ValueError, match="Reference 1 is a batch of 2 latents for 3 prompts"):
        Condition(torch.zeros(3, 12, 64), (2,), (latent,))
    assert Condition(torch.zeros(2, 12, 64), (2,), (latent,))


def test_joint_buffer_is_reused():
    cache = PrefixCache(5, [(torch.ones(1, 5, 2, 4), torch.ones(1, 5, 2, 4))] * 2)
    k = torch.zeros(2, 3, 2, 4)
    with torch.no_grad():
        first, _ = cache.join(0, k, k)
        second, _ = cache.join(1, k, k)
    assert first.data_ptr() == second.data_ptr()
    assert first.shape == (2, 8, 2, 4) and first[:, :5].all() and not first[:, 5:].any()


@torch.no_grad()
@pytest.mark.parametrize("references", [0, 2])
def test_a_prefix_computed_anew_in_every_step_gives_the_same(pair, references):
    _, model = pair
    condition, target, sigma = inputs(2, REFERENCES[references])
    kept = model.encode_prefix(condition, sigma)
    nothing = RecomputedPrefix(kept.position, compute=lambda: model.prefix_layers(condition, sigma))
    for _ in range(2):
        assert torch.equal(model(target, sigma, nothing), model(target, sigma, kept))
