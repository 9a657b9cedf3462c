"""What samples: the prompts that a guider holds, and what a run is given."""
import pytest
import torch

from qwen_image_2.model.qwen_image_1.transformer import patches
from qwen_image_2.tests.nodes.test_sampler import prompt
from qwen_image_2.tests.reference import error

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


@pytest.fixture
def guiders(comfyui):
    from qwen_image_2.nodes.bridge import guider
    return guider


NOISE = torch.randn(1, 64, 4, 6, generator=torch.Generator().manual_seed(1))
SIGMAS = torch.tensor([1.0, 0.5, 0.0])


def run(guider) -> torch.Tensor:
    import comfy.samplers
    return guider.sample(NOISE, torch.zeros_like(NOISE), comfy.samplers.sampler_object("euler"), SIGMAS, seed=0)


def usual(model, positive, negative, cfg):
    """The guider that ComfyUI's own KSampler uses."""
    import comfy.samplers
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


@pytest.fixture
def asked(monkeypatch):
    """What ComfyUI is asked to make room for: (bytes, least bytes) of each run."""
    import comfy.model_management as management
    asked, load = [], management.load_models_gpu

    def recorded(models, memory_required=0, minimum_memory_required=None, **options):
        asked.append((memory_required, minimum_memory_required))
        return load(models, memory_required=memory_required, minimum_memory_required=minimum_memory_required,
                    **options)

    monkeypatch.setattr(management, "load_models_gpu", recorded)
    return asked


@pytest.mark.parametrize("negative", [None, prompt(2, 9)], ids=["no negative", "negative"])
def test_at_cfg_1_no_room_is_made_for_a_prompt_that_is_not_computed(guiders, model, asked, negative):
    positive = prompt(0)
    found = run(guiders.guider_for(model, positive, negative, 1.0))
    alone = usual(model, positive, [], 1.0)
    assert torch.equal(run(alone), found)
    assert torch.equal(run(usual(model, positive, negative or positive, 1.0)), found)
    (ours, _), (theirs, _), (before, _) = asked
    assert ours == theirs < before


def test_a_negative_prompt_is_encoded_above_1_only(guiders, model):
    from qwen_image_2.nodes.bridge.text_encoders.lazy import LazyConditioning
    negative = LazyConditioning(lambda: prompt(2, 9))
    run(guiders.guider_for(model, prompt(0), negative, 1.0))
    assert not negative.is_encoded
    found = run(guiders.guider_for(model, prompt(0), negative, 3.0))
    assert negative.is_encoded and torch.equal(found, run(guiders.guider_for(model, prompt(0), prompt(2, 9), 3.0)))


def test_above_1_both_prompts_count(guiders, model, asked):
    positive, negative = prompt(0), prompt(2, 9)
    found = run(guiders.guider_for(model, positive, negative, 3.0))
    assert torch.equal(run(usual(model, positive, negative, 3.0)), found)
    assert not torch.equal(run(guiders.guider_for(model, positive, negative, 1.0)), found)
    assert asked[0] == asked[1] > asked[2]


def test_nodes_that_replace_the_guidance_get_both_prompts_at_cfg_1(guiders, model):
    seen = []

    def guidance(args):
        seen.append(args["input_uncond"] is not None)
        return args["cond"]

    changed = model.clone()
    changed.set_model_sampler_cfg_function(guidance, disable_cfg1_optimization=True)
    run(guiders.guider_for(changed, prompt(0), None, 1.0))
    assert seen == [True, True]


def test_a_latents_mask_and_the_bar_reach_the_run(guiders, model):
    """The part outside of the mask stays that of the latent; the bar moves once a step."""
    import comfy.utils
    steps, mask = [], torch.zeros(1, 1, 4, 6)
    mask[..., :3] = 1
    latent = {"samples": torch.randn(NOISE.shape, generator=torch.Generator().manual_seed(2)), "noise_mask": mask}
    comfy.utils.set_progress_bar_global_hook(lambda done, total, preview, node_id: steps.append((done, total)))
    try:
        found = guiders.sample(guiders.guider_for(model, prompt(0), None, 1.0), latent, NOISE, SIGMAS, 0)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert steps == [(1, 2), (2, 2)]
    assert torch.allclose(found[..., 3:], latent["samples"][..., 3:], atol=1e-5)
    assert not torch.isclose(found[..., :3], latent["samples"][..., :3]).any()


def test_a_run_tells_its_own_guider_and_leaves_the_model_as_it_is(guiders, model):
    from qwen_image_2.nodes.bridge.keys import REPORT_KEY
    told, options = [], model.model_options["transformer_options"]
    guider = guiders.guider_for(model, prompt(0), None, 1.0, told.append)
    assert guider.model_patcher is model
    run(guider)
    assert any("KV cache of prompt and references" in sentence for sentence in told) and REPORT_KEY not in options


# ---------------------------------------------------------------- guidance of core's other nodes

def with_guidance(model, cfg):
    import comfy.samplers
    guider = comfy.samplers.CFGGuider(model)
    generator = torch.Generator().manual_seed(5)
    guider.set_conds(*([[torch.randn(1, tokens, 64, generator=generator), {}]] for tokens in (12, 9)))
    guider.set_cfg(cfg)
    noise = torch.randn(1, 64, 4, 6, generator=generator)
    return guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"),
                         torch.tensor([1.0, 0.5, 0.0]))


def test_renorm_cfg_finds_how_many_channels_there_are(model):
    """With its norm off it is plain guidance; with it, the result is no longer than the conditional one."""
    from comfy_extras.nodes_lumina2 import RenormCFG
    plain = with_guidance(model, 3.0)
    torch.testing.assert_close(with_guidance(RenormCFG.execute(model, 100.0, 0.0).result[0], 3.0), plain)
    renormed = with_guidance(RenormCFG.execute(model, 100.0, 1.0).result[0], 3.0)
    assert renormed.isfinite().all() and not torch.allclose(renormed, plain)


def test_core_nodes_find_every_attribute_that_they_ask_any_model_for(model):
    """Read in comfy_extras 0.30 without a look at the kind of model; FluxKVCache's patch then has no effect."""
    from comfy_extras import nodes_flux
    network = model.model.diffusion_model
    assert network.in_channels == 64 and network.default_ref_method is None
    patched = nodes_flux.FluxKVCache.execute(model).result[0]
    assert torch.equal(with_guidance(patched, 1.0), with_guidance(model, 1.0))
    assert network.default_ref_method is None


def test_core_nodes_for_other_models_are_refused_in_a_sentence(model):
    """What they read of every model, and only another kind has; in comfy_extras 0.30 no other node fails."""
    from comfy_extras import nodes_freelunch, nodes_model_advanced

    from qwen_image_2.messages import Refusal
    for node in (nodes_freelunch.FreeU, nodes_freelunch.FreeU_V2):
        with pytest.raises(Refusal, match=r"needs the UNet of Stable Diffusion \(model_channels\)"):
            node.execute(model, 1.1, 1.2, 0.9, 0.2)
    with pytest.raises(Refusal, match="needs a sampling multiplier"):
        nodes_model_advanced.ModelNoiseScale().patch(model, 1.0)


def test_guidance_of_1_x_keeps_the_norm_of_each_token(guiders):
    """diffusers' pipelines on packed tokens; a node's own guidance stays where there is one, and 2.x is left alone."""
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(2, 16, 1, 6, 10, generator=generator) for _ in range(2))
    found = guiders.rescaled_guidance({"cond": 0.3 * positive, "uncond": 0.3 * negative, "cond_scale": 4.0}) / 0.3
    packed = [patches(latent[:, :, 0], 2) for latent in (positive, negative, found)]
    guided = packed[1] + 4.0 * (packed[0] - packed[1])
    expected = guided * (packed[0].norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
    assert error(packed[2], expected) < 1e-5 < error(guided, expected)


def test_guidance_is_rescaled_for_1_x_alone_and_where_no_node_has_its_own(guiders, model):
    def of(patcher, **more):
        return guiders.guider_for(patcher, prompt(0), prompt(1), 4.0, **more).model_options.get("sampler_cfg_function")
    assert of(model) is None
    older = model.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(older.model), "rescales_guidance", True)
        assert of(older) is guiders.rescaled_guidance and of(older, rescale=False) is None
        older.set_model_sampler_cfg_function(lambda arguments: arguments["cond"])
        assert of(older) is older.model_options["sampler_cfg_function"]
    assert "sampler_cfg_function" not in model.model_options
