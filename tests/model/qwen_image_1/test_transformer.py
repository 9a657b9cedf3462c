"""The transformer of Qwen-Image 1.x against diffusers, tensor by tensor."""
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from qwen_image_2.model.qwen_image_1 import modulation
from qwen_image_2.model.qwen_image_1.spec import TransformerSpec
from qwen_image_2.model.qwen_image_1.transformer import Condition, Transformer, latents, patches
from qwen_image_2.model.runtime import kernels
from qwen_image_2.model.runtime.key_weights import AS_TRAINED, ReferenceWeight
from qwen_image_2.tests import reference_1
from qwen_image_2.tests.reference import error

BOUND = 1e-4
# Sides in latents, even and odd numbers of patches, and larger than the target.
TARGETS = [(8, 12), (6, 10)]
REFERENCES = {0: (), 1: ((4, 10),), 2: ((8, 6), (6, 14)), 3: ((4, 4), (18, 6), (2, 22))}
SIGMA = 0.7315


def ours(theirs, dtype=torch.float32) -> Transformer:
    config = theirs.config
    spec = TransformerSpec(
        layers=config.num_layers, dim=theirs.inner_dim, heads=config.num_attention_heads,
        mlp_dim=4 * theirs.inner_dim, context_dim=config.joint_attention_dim, zero_cond_t=config.zero_cond_t,
        layered=config.use_layer3d_rope)
    model = Transformer(spec, dtype=dtype)
    model.load_state_dict(theirs.state_dict())
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=[False, True], ids=["one time", "zero_cond_t"])
def pair(request):
    theirs = reference_1.transformer(zero_cond_t=request.param)
    return theirs, ours(theirs)


def inputs(batch: int, target: tuple[int, int], references: Sequence[tuple[int, int]], frames: int = 1,
           words: int = 11) -> tuple[torch.Tensor, Condition]:
    generator = torch.Generator().manual_seed(batch + 10 * len(references) + frames)
    x = torch.randn(batch, 16, frames, *target, generator=generator)
    return x, Condition(torch.randn(batch, words, 64, generator=generator), references=tuple(
        torch.randn(1, 16, *size, generator=generator) for size in references))


def velocity_of_reference(theirs, x, condition: Condition, sigma):
    every = [*x.unbind(2), *(reference.expand(len(x), -1, -1, -1) for reference in condition.references)]
    shapes = [[(1, latent.shape[-2] // 2, latent.shape[-1] // 2) for latent in every]] * len(x)
    more = {"additional_t_cond": torch.zeros(len(x), dtype=torch.long)} if theirs.config.use_additional_t_cond else {}
    out = theirs(torch.cat([patches(latent, 2) for latent in every], dim=1), condition.text, condition.visible, sigma,
                 shapes, return_dict=False, **more)[0]
    return latents(out[:, :x[0, 0].numel() // 4], x.shape, 2)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("target", TARGETS, ids=["even", "odd"])
@pytest.mark.parametrize("references", REFERENCES)
def test_velocity_equals_the_reference(pair, batch, target, references):
    theirs, model = pair
    x, condition = inputs(batch, target, REFERENCES[references])
    sigma = torch.full((batch,), SIGMA)
    assert error(model(x, sigma, condition), velocity_of_reference(theirs, x, condition, sigma)) < BOUND


@torch.no_grad()
def test_images_of_a_batch_may_have_sigmas_of_their_own(pair):
    theirs, model = pair
    x, condition = inputs(3, TARGETS[1], REFERENCES[2])
    sigma = torch.tensor([0.9, 0.25, 0.9])
    assert error(model(x, sigma, condition), velocity_of_reference(theirs, x, condition, sigma)) < BOUND


@torch.no_grad()
def test_prompts_of_unequal_length_equal_the_reference_and_each_alone(pair):
    theirs, model = pair
    x, condition = inputs(2, TARGETS[1], REFERENCES[1])
    visible = torch.ones(2, 11, dtype=torch.bool)
    visible[1, 7:] = False
    sigma = torch.full((2,), SIGMA)
    masked = Condition(condition.text, visible, condition.references)
    found = model(x, sigma, masked)
    assert error(found, velocity_of_reference(theirs, x, masked, sigma)) < BOUND
    alone = model(x[1:], sigma[1:], Condition(condition.text[1:, :7], references=condition.references))
    assert error(found[1:], alone) < BOUND


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 3, 9])
def test_layers_equal_the_reference(frames):
    """The condition image stands at frame -1; with nine frames text begins after them, not after the widest image."""
    theirs = reference_1.transformer(layered=True)
    x, condition = inputs(1, (6, 10), [(6, 10)], frames)
    sigma = torch.full((1,), SIGMA)
    found = ours(theirs)(x, sigma, condition)
    assert error(found, velocity_of_reference(theirs, x, condition, sigma)) < BOUND


@torch.no_grad()
def test_the_time_of_bfloat16_is_rounded_as_in_the_reference():
    """Unrounded, the embedding would be another one by more than a tenth."""
    theirs = reference_1.transformer().to(torch.bfloat16)
    model = ours(theirs, torch.bfloat16)
    for sigma in (0.98, 0.73, 0.2):
        # The pipelines round the scheduler's 0 to 1000, and divide then.
        time = torch.tensor([sigma * 1000]).to(torch.bfloat16) / 1000
        expected = theirs.time_text_embed(time, torch.zeros(1, 1, dtype=torch.bfloat16))
        found = model.time_text_embed(torch.tensor([sigma]), expected)
        assert error(found.float(), expected.float()) < 0.02


@torch.no_grad()
@pytest.mark.parametrize("sigma", [1.0, 0.75, 0.5])
def test_the_time_is_multiplied_in_the_reference_s_order(sigma):
    """In another one the angles, up to 1000, round apart by 6e-5."""
    theirs = reference_1.transformer()
    time = torch.tensor([sigma])
    assert error(ours(theirs).time_text_embed(time, time), theirs.time_text_embed(time, time)) < 1e-6


@torch.no_grad()
def test_float16_is_clipped_to_its_largest_values():
    theirs = reference_1.transformer()
    for block in theirs.transformer_blocks:
        block.img_mod[1].bias += 3  # gates well above 1
        block.txt_mod[1].bias += 3
        block.img_mlp.net[2].bias.fill_(6e4)
        block.txt_mlp.net[2].bias.fill_(-6e4)
    model, seen = ours(theirs, torch.float16), []

    def around(number, step, image, text):
        image, text = step(image, text)
        seen.append((image.max().item(), text.min().item()))
        return image, text
    x, condition = inputs(1, TARGETS[0], ())
    model(x.half(), torch.tensor([SIGMA]), condition, around=around)
    assert seen[0] == (65504, -65504)


# ---------------------------------------------------------------- modulation apart

def test_modulation_is_no_part_of_what_moves():
    spec = TransformerSpec(layers=2)
    model = Transformer(spec, device="meta")
    state = model.state_dict()
    apart = {name: value for name, value in state.items() if "_mod." in name}
    assert sum(value.numel() for value in state.values()) - sum(p.numel() for p in model.parameters()) == sum(
        value.numel() for value in apart.values()) == 2 * 2 * (18432 * 3072 + 18432)
    assert model.get_submodule("transformer_blocks.1.txt_mod.1").weight.shape == (18432, 3072)


def test_the_published_sizes():
    """FACTS: 1933 tensors, 20,430,401,088 parameters; a third is evaluated once per sigma. The layered one has one
    more."""
    state = Transformer(TransformerSpec(), device="meta").state_dict()
    assert (len(state), sum(value.numel() for value in state.values())) == (1933, 20_430_401_088)
    assert sum(value.numel() for name, value in state.items() if "_mod." in name) == 6_794_772_480 + 120 * 18432
    state = Transformer(TransformerSpec(layered=True), device="meta").state_dict()
    assert (len(state), sum(value.numel() for value in state.values())) == (1934, 20_430_407_232)


@torch.no_grad()
def test_a_run_evaluates_its_sigmas_together_and_once(monkeypatch):
    model = ours(reference_1.transformer())
    x, condition = inputs(1, TARGETS[0], ())
    asked = []
    evaluate = model.evaluate_modulation
    model.modulations._evaluate = lambda sigmas, *place: asked.append(list(sigmas)) or evaluate(sigmas, *place)
    expected = [1.0, 0.5, 0.25]
    model.modulations.begin("weights", expected)
    for sigma in (*expected, 0.75, 0.5):  # one that no schedule had announced
        model(x, torch.tensor([sigma]), condition)
    assert asked == [expected, [0.75]]
    model.modulations.begin("weights", expected)
    model(x, torch.tensor([0.25]), condition)
    assert len(asked) == 2
    model.modulations.begin("other weights", expected)
    model(x, torch.tensor([0.25]), condition)
    assert asked[2:] == [[0.25, 1.0, 0.5]]


@torch.no_grad()
def test_a_table_keeps_no_more_than_its_limit(monkeypatch):
    monkeypatch.setattr(modulation, "MOST_KEPT", 4)
    model = ours(reference_1.transformer())
    x, condition = inputs(1, TARGETS[0], ())
    for sigma in torch.linspace(0.1, 1, 10):
        model(x, sigma.view(1), condition)
        assert len(model.modulations._kept) <= 4
    x, condition = inputs(2, TARGETS[0], ())
    model(x, torch.tensor([1.0, 0.05]), condition)  # one that is kept, and one for which all others are forgotten


# ---------------------------------------------------------------- strength and mask of references

HALF = torch.zeros(32, 80)
HALF[:, :50] = 1
WEIGHTS = {"fainter": (ReferenceWeight(0.3), AS_TRAINED), "off": (ReferenceWeight(0.0), AS_TRAINED),
           "stronger and masked": (ReferenceWeight(2.0, HALF), ReferenceWeight(0.5))}


def biased(condition: Condition, weights, target: int, visible: torch.Tensor | None):
    """Plain attention of all rows, with logarithms of the weights added to the logits of the target's."""
    text, grids = condition.text.shape[1], [[side // 2 for side in each.shape[-2:]] for each in condition.references]
    after = torch.cat([weight.of_tokens(tuple(grid)) for weight, grid in zip(weights, grids, strict=True)])

    def attention(q, k, v, **_):
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        bias = torch.zeros(len(q), 1, q.shape[2], k.shape[2])
        first = text if q.shape[2] == k.shape[2] else 0  # the last block has no text among its queries
        bias[:, :, first:first + target, text + target:] = after.log()
        if visible is not None:
            bias[..., :text].masked_fill_(~visible[:, None, None], -torch.inf)
        return ((q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
    return attention


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True], ids=["one length", "padded"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("which", WEIGHTS)
def test_the_target_looks_as_a_plain_biased_softmax_does(pair, which, batch, padded):
    """Text and references see the reference as ever; the oracle has the same network with another attention."""
    _, model = pair
    x, condition = inputs(batch, TARGETS[1], REFERENCES[2])
    visible = None
    if padded:
        visible = torch.ones(batch, 11, dtype=torch.bool)
        visible[-1, 7:] = False
    sigma, weights = torch.full((batch,), SIGMA), WEIGHTS[which]
    plain = replace(condition, visible=visible)
    expected = model(x, sigma, plain, biased(condition, weights, 15, visible))
    assert error(model(x, sigma, replace(plain, weights=weights)), expected) < BOUND
    assert error(model(x, sigma, plain), expected) > 1e-3
    as_trained = replace(plain, weights=(AS_TRAINED, ReferenceWeight(1.0, torch.ones(9, 9))))
    assert torch.equal(model(x, sigma, as_trained), model(x, sigma, plain))


@torch.no_grad()
def test_at_0_the_target_s_attention_gets_no_key_of_the_reference(pair):
    _, model = pair
    x, condition = inputs(1, TARGETS[1], REFERENCES[2])
    asked = []

    def counted(q, k, v):
        asked.append((q.shape[1], k.shape[1]))
        return kernels.attention(q, k, v)
    weights = (ReferenceWeight(0.0), AS_TRAINED)
    model(x, torch.full((1,), SIGMA), replace(condition, weights=weights), counted)
    text, target, first, second = 11, 15, 12, 21
    every = text + target + first + second
    looking, rest = (target, every - first), (first + second, every)
    assert asked == [looking, (text, every), rest] * (model.spec.layers - 1) + [looking, rest]
