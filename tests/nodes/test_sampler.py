"""The sampler node's parts in this process: what it hands to ComfyUI, and what it tells before a run."""
import pytest
import torch


@pytest.fixture(autouse=True)
def as_comfyui_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture
def sampler(comfyui):
    from qwen_image_2.nodes import sampler
    return sampler


def prompt(seed: int, tokens: int = 12, **values) -> list:
    return [[torch.randn(1, tokens, 64, generator=torch.Generator().manual_seed(seed)), values]]


def run(guider, batch: int = 1, **options) -> torch.Tensor:
    import comfy.samplers
    noise = torch.randn(batch, 64, 4, 6, generator=torch.Generator().manual_seed(1))
    return guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"),
                         torch.tensor([1.0, 0.5, 0.0]), seed=0, **options)


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
def test_at_cfg_1_no_room_is_made_for_a_prompt_that_is_not_computed(sampler, model, asked, negative):
    positive = prompt(0)
    found = run(sampler.guider_for(model, positive, negative, 1.0))
    alone = usual(model, positive, [], 1.0)
    assert torch.equal(run(alone), found)
    assert torch.equal(run(usual(model, positive, negative or positive, 1.0)), found)
    (ours, _), (theirs, _), (before, _) = asked
    assert ours == theirs < before


def test_above_1_both_prompts_count(sampler, model, asked):
    positive, negative = prompt(0), prompt(2, 9)
    found = run(sampler.guider_for(model, positive, negative, 3.0))
    assert torch.equal(run(usual(model, positive, negative, 3.0)), found)
    assert not torch.equal(run(sampler.guider_for(model, positive, negative, 1.0)), found)
    assert asked[0] == asked[1] > asked[2]


def test_nodes_that_replace_the_guidance_get_both_prompts_at_cfg_1(sampler, model):
    seen = []

    def guidance(args):
        seen.append(args["input_uncond"] is not None)
        return args["cond"]

    changed = model.clone()
    changed.set_model_sampler_cfg_function(guidance, disable_cfg1_optimization=True)
    run(sampler.guider_for(changed, prompt(0), None, 1.0))
    assert seen == [True, True]


def test_masks_and_callbacks_reach_the_run(sampler, model):
    steps = []
    mask = torch.zeros(1, 1, 4, 6)
    mask[..., :3] = 1
    found = run(sampler.guider_for(model, prompt(0), None, 1.0), denoise_mask=mask,
                callback=lambda step, x0, x, total: steps.append((step, total)))
    assert steps == [(0, 2), (1, 2)]
    kept = run(sampler.guider_for(model, prompt(3), None, 1.0), denoise_mask=mask)
    assert torch.equal(found[..., 3:], kept[..., 3:]) and not torch.equal(found[..., :3], kept[..., :3])


# ---------------------------------------------------------------- the canvas of an edit

def latent(width: int, height: int) -> torch.Tensor:
    return torch.zeros(1, 64, height // 16, width // 16)


def edit_note(sampler, canvas: tuple[int, int], *references: tuple[int, int]) -> str | None:
    values = {"reference_latents": [latent(*size) for size in references]} if references else {}
    return sampler.canvas_note(prompt(0, **values), latent(*canvas))


def test_an_edit_on_no_references_canvas_is_pointed_out(sampler):
    assert edit_note(sampler, (1024, 768), (768, 1024), (512, 512), (512, 512)) == (
        "The latent is 1024 x 768 pixels, but no reference is (they are 768 x 1024, 512 x 512): such edits shift or "
        "zoom what they keep. Take the latent from Encode Edit, with the canvas of a reference.")


def test_the_grid_that_fails_is_pointed_out(sampler):
    note = edit_note(sampler, (1024, 1024), (768, 1024), (1024, 1024))
    assert note.startswith("Latent and reference are both 1024 x 1024 pixels: edits on exactly that grid are known")
    assert "grid_guard" in note


@pytest.mark.parametrize(("canvas", "references"), [
    ((1024, 1024), ()), ((1056, 1056), ((1056, 1056),)), ((160, 96), ((96, 160), (160, 96)))])
def test_other_canvases_are_none_of_its_business(sampler, canvas, references):
    assert edit_note(sampler, canvas, *references) is None
