"""Guidance that users set: a window of CFG, strength and mask of references, core's step caches; both families."""
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from qwen_image_2.messages import Refusal
from qwen_image_2.tests import reference_1
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")
FAMILIES = ("2.x", "1.x")
STEPS = 8
SIGMAS = torch.linspace(1, 0, STEPS + 1)


@pytest.fixture(scope="module")
def models(model, tmp_path_factory):
    from qwen_image_2.nodes.bridge.loading import load_model
    path = tmp_path_factory.mktemp("diffusion_models") / "qwen_image_edit_2509_bf16.safetensors"
    tiny.save_as_they_are(reference_1.transformer().state_dict(), path)
    return {"2.x": model, "1.x": load_model(path, path.name, "auto", "as stored")}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditioning(family: str, seed: int, references: int = 0, **values) -> list:
    """A prompt of twelve states with small references."""
    grid = (64, 4, 4) if family == "2.x" else (16, 1, 8, 8)
    if references:
        values |= {"reference_latents": [draw(seed + number, 1, *grid) for number in range(references)]}
        if family == "2.x":
            values |= {"image_slots": [3, 5][:references]}
    return [[draw(seed, 1, 12, 64), values]]


def noise(family: str) -> torch.Tensor:
    return draw(9, 1, 64, 4, 6) if family == "2.x" else draw(9, 1, 16, 1, 8, 12)


@pytest.fixture
def passes(monkeypatch):
    """(sigma, how many conditionings) of each time that the network runs."""
    import comfy.model_base
    seen, apply = [], comfy.model_base.BaseModel._apply_model

    def counted(self, x, t, *args, **kwargs):
        seen.append((round(t[0].item(), 6), len(args[3]["cond_or_uncond"])))  # c_concat, c_crossattn, control, options
        return apply(self, x, t, *args, **kwargs)
    monkeypatch.setattr(comfy.model_base.BaseModel, "_apply_model", counted)
    return seen


def sampled(models, family: str, cfg: float = 1.0, positive=None, negative=None, window=None, model=None):
    from qwen_image_2.nodes.bridge.guider import guider_for, sample
    guider = guider_for(model or models[family], positive or conditioning(family, 1),
                        negative or conditioning(family, 2), cfg, window=window)
    start = noise(family)
    return sample(guider, {"samples": torch.zeros_like(start)}, start, SIGMAS, 0)


# ---------------------------------------------------------------- a window of CFG

@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("window", [(0.0, 0.25), (0.5, 1.0), (0.25, 0.75)])
def test_outside_of_the_window_no_second_pass_runs(models, passes, family, window):
    from qwen_image_2.nodes.common.guidance import guided_steps
    guided = guided_steps(*window, STEPS)
    sampled(models, family, 4.0, window=(SIGMAS, guided))
    for step, sigma in enumerate(SIGMAS[:-1].tolist()):
        assert sum(count for at, count in passes if at == round(sigma, 6)) == (2 if step in guided else 1), step


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_the_window_are_guided_as_ever_and_others_as_without(models, family):
    """Two runs put together by hand: guided up to a step, without from there on."""
    from qwen_image_2.nodes.bridge.guider import guider_for
    found = sampled(models, family, 4.0, window=(SIGMAS, range(3)))
    x = noise(family)
    for cfg, sigmas in ((4.0, SIGMAS[:4]), (1.0, SIGMAS[3:])):
        guider = guider_for(models[family], conditioning(family, 1), conditioning(family, 2), cfg)
        before, denoised = last_step(guider, x / sigmas[0], sigmas)  # core multiplies noise by the first sigma
        x = before + (before - denoised) / sigmas[-2] * (sigmas[-1] - sigmas[-2])
    assert error(found, models[family].model.process_latent_out(x)) < 1e-5
    assert error(sampled(models, family, 4.0), found) > 1e-3 < error(sampled(models, family, 1.0), found)


def last_step(guider, start: torch.Tensor, sigmas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the last step of a run begins with, and its prediction of the image."""
    import comfy.samplers
    seen = []
    guider.sample(start, torch.zeros_like(start), comfy.samplers.sampler_object("euler"), sigmas, seed=0,
                  callback=lambda _, denoised, x, steps: seen.append((x.clone(), denoised.clone())))
    return seen[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_widest_and_the_narrowest_window_are_today_s_runs(models, passes, family):
    everything = sampled(models, family, 4.0, window=(SIGMAS, range(STEPS)))
    assert torch.equal(everything, sampled(models, family, 4.0))
    passes.clear()
    nothing = sampled(models, family, 4.0, window=(SIGMAS, range(0)))
    assert sum(count for _, count in passes) == STEPS and torch.equal(nothing, sampled(models, family, 1.0))


def test_windows_that_meet_share_no_step_and_miss_none(comfyui):
    from qwen_image_2.nodes.common.guidance import guided_steps
    for steps in (1, 4, 8, 25, 40):
        for middle in (0.01, 0.25, 0.3, 0.5, 0.99):
            assert [*guided_steps(0, middle, steps), *guided_steps(middle, 1, steps)] == list(range(steps))
    assert guided_steps(0, 0.25, 40) == range(10) and guided_steps(0.25, 1, 8) == range(2, 8)


@pytest.mark.parametrize("window", [(0.5, 0.5), (0.6, 0.5), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
def test_windows_that_are_none_are_refused(comfyui, window):
    from qwen_image_2.nodes.sampler import QwenImage2Sampler
    assert "CFG starts at" in QwenImage2Sampler.validate_inputs(cfg=4.0, negative=None, cfg_start=window[0],
                                                                cfg_end=window[1])
    assert QwenImage2Sampler.validate_inputs(cfg=4.0, negative=None, cfg_start=0.2, cfg_end=None) is True


def test_what_a_window_does_is_said(comfyui):
    from qwen_image_2.nodes.common.guidance import window_note
    assert window_note(4.0, range(10), 40) == ("CFG 4 guides steps 1 to 10 of 40; the others are one pass each.")
    assert "nothing is guided" in window_note(4.0, range(0), 4)
    assert window_note(4.0, range(40), 40) is None is window_note(1.0, range(10), 40)


def test_the_prefixes_of_both_prompts_count_in_a_window(models, monkeypatch):
    counted, begin = [], type(models["2.x"].model).begin_run
    monkeypatch.setattr(type(models["2.x"].model), "begin_run",
                        lambda self, tokens, *args: counted.append(tokens) or begin(self, tokens, *args))
    for window in (range(2), range(0)):
        sampled(models, "2.x", 4.0, window=(SIGMAS, window))
    assert counted == [24, 12]


# ---------------------------------------------------------------- strength and mask of references

def weighted(positive, *weights):
    from qwen_image_2.nodes.bridge.reference_weights import with_weight
    for number, (strength, mask) in enumerate(weights, start=1):
        positive = with_weight(positive, number, strength, mask)
    return positive


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conditioning_s_weights_reach_the_network(models, family, passes):
    """Through core's sampler machinery: a step equals the network called by hand."""
    from qwen_image_2.model.runtime.key_weights import ReferenceWeight
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    given = conditioning(family, 1, references=2)
    plain = sampled(models, family, positive=given)
    found = sampled(models, family, positive=weighted(given, (0.4, None), (1.0, mask)))
    again = sampled(models, family, positive=weighted(given, (1.0, None), (1.0, torch.ones(5, 5))))
    assert torch.equal(again, plain) and error(found, plain) > 1e-3
    weights = (ReferenceWeight(0.4), ReferenceWeight(1.0, mask))
    assert error(found, by_hand(models[family], given, weights)) < 1e-4


def by_hand(model, given, weights) -> torch.Tensor:
    """Euler with the plain network."""
    from qwen_image_2.model.qwen_image_1.transformer import Condition as Condition1
    from qwen_image_2.model.qwen_image_2.prefix_cache import Condition
    network, family = model.model.diffusion_model, model.model.family
    references = tuple(model.model.process_latent_in(each) for each in given[0][1]["reference_latents"])
    x, plain = noise(family), super(type(network), network)
    if family == "2.x":
        condition = Condition(given[0][0], (3, 5), references)
        cache, keys = network.encode_prefix(condition), condition.key_weights(weights)
    for sigma, after in pairwise(SIGMAS):
        if family == "2.x":
            velocity = plain.forward(x, sigma.view(1), cache, weights=keys)
        else:
            velocity = plain.forward(x, sigma.view(1), Condition1(
                given[0][0], references=tuple(each[:, :, 0] for each in references), weights=weights))
        x = x + (after - sigma) * velocity
    return model.model.process_latent_out(x)


def test_the_prefix_is_computed_once_whatever_the_strength(models, monkeypatch):
    network = type(models["2.x"].model.diffusion_model)
    runs, layers = [], network.prefix_layers
    monkeypatch.setattr(network, "prefix_layers", lambda *args, **kwargs: runs.append(1) or layers(*args, **kwargs))
    sampled(models, "2.x", positive=weighted(conditioning("2.x", 1, references=2), (0.4, None)))
    assert len(runs) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_what_is_not_there_are_refused_before_a_run(models, family):
    for references, key in ((0, "strength_no_reference"), (1, "strength_reference")):
        from qwen_image_2.nodes.bridge.keys import REFERENCE_WEIGHTS_KEY
        given = conditioning(family, 1, references, **{REFERENCE_WEIGHTS_KEY: {2: (0.5, None)}})
        with pytest.raises(Refusal) as refused:
            sampled(models, family, positive=given)
        assert refused.value.message.key == key


@pytest.fixture
def node(comfyui, monkeypatch):
    from qwen_image_2.nodes import reference_strength
    monkeypatch.setattr(reference_strength.QwenImage2ReferenceStrength, "hidden", SimpleNamespace(unique_id=None),
                        raising=False)
    return reference_strength.QwenImage2ReferenceStrength


def test_the_node_sets_one_reference_after_another_and_leaves_the_negative_unread(node):
    from qwen_image_2.nodes.bridge.keys import REFERENCE_WEIGHTS_KEY
    from qwen_image_2.nodes.bridge.text_encoders.lazy import LazyConditioning
    negative = LazyConditioning(lambda: conditioning("2.x", 2, 2))
    first = node.execute(conditioning("2.x", 1, 2), negative, 1, 0.5).result
    mask = torch.ones(1, 4, 4)
    mask[:, 2:] = 0
    out = node.execute(*first, 2, 1.5, mask)
    assert not negative.is_encoded
    for one in out.result:
        weights = one[0][1][REFERENCE_WEIGHTS_KEY]
        assert weights[1] == (0.5, None) and weights[2][0] == 1.5 and torch.equal(weights[2][1], mask[0])
    assert out.ui["qwen_image_2_messages"] == ["Reference 2: strength 1.5; 50 % of it is looked at."]


@pytest.mark.parametrize(("change", "key"), [
    ({"strength": 2.5}, "strength_range"), ({"strength": -0.1}, "strength_range"),
    ({"reference": 3}, "strength_reference"), ({"mask": torch.zeros(1, 4, 4)}, "strength_mask_empty"),
    ({"mask": torch.ones(2, 4, 4)}, "strength_masks"), ({"mask": torch.ones(1, 4, 4) * 7}, "mask_range"),
    ({"positive": conditioning("2.x", 1)}, "strength_no_reference")])
def test_bad_inputs_of_the_node(node, change, key):
    given = dict(positive=conditioning("2.x", 1, 2), negative=conditioning("2.x", 2, 2), reference=1, strength=0.5)
    with pytest.raises(Refusal) as refused:
        node.execute(**(given | change))
    assert refused.value.message.key == key
    if key == "strength_range":
        assert "between 0 and 2" in node.validate_inputs(strength=change["strength"])


# ---------------------------------------------------------------- where references stand

def test_centred_references_follow_the_target_s_parity(models):
    from qwen_image_2.nodes.bridge.keys import CENTRED_KEY
    for rows, same in ((3, False), (4, True)):
        given = conditioning("2.x", 1, reference_latents=[draw(3, 1, 64, rows, 6)], image_slots=[3])
        centred = [[given[0][0], given[0][1] | {CENTRED_KEY: True}]]
        found = sampled(models, "2.x", positive=centred)
        assert torch.equal(found, sampled(models, "2.x", positive=given)) == same


# ---------------------------------------------------------------- step caches of core's

@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["EasyCacheNode", "LazyCacheNode"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_core_s_step_caches_leave_out_steps(models, monkeypatch, family, kind, cfg):
    """With a threshold of 3 they leave out what they can; with 0 nothing, and the picture is that without a node."""
    from comfy_extras import nodes_easycache
    network = type(models[family].model.diffusion_model)
    ran, velocity = [], network._velocity
    monkeypatch.setattr(network, "_velocity", lambda *args, **kwargs: ran.append(1) or velocity(*args, **kwargs))

    def run(threshold: float | None) -> tuple[torch.Tensor, int]:
        ran.clear()
        node = getattr(nodes_easycache, kind)
        cached = None if threshold is None else node.execute(models[family], threshold, 0.15, 0.95, False).result[0]
        return sampled(models, family, cfg, conditioning(family, 1, 1), conditioning(family, 2, 1), model=cached), len(
            ran)
    (plain, every), (same, all_again), (faster, fewer) = (run(threshold) for threshold in (None, 0.0, 3.0))
    assert error(same, plain) < 1e-5 and all_again == every and fewer <= every - 2 and faster.isfinite().all()
