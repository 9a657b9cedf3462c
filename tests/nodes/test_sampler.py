"""The sampler node's parts in this process: what it tells before a run."""
import re
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


@pytest.fixture
def sampler(comfyui):
    from qwen_image_2.nodes import sampler
    return sampler


def prompt(seed: int, tokens: int = 12, **values) -> list:
    return [[torch.randn(1, tokens, 64, generator=torch.Generator().manual_seed(seed)), values]]


# ---------------------------------------------------------------- the model and the latent of other nodes

def core_node(name: str, *arguments):
    """The first output of one of core's nodes."""
    from comfy_extras import nodes_model_advanced
    node = getattr(nodes_model_advanced, name)()
    return getattr(node, node.FUNCTION)(*arguments)[0]


@pytest.mark.parametrize(("node", "arguments", "words"), [
    ("ModelSamplingAuraFlow", (3.1,), "sets the model's shift.* has no effect.*Remove that node"),
    ("ModelSamplingFlux", (1.15, 0.5, 1024, 1024), "has no effect"),
    ("ModelSamplingSD3", (3.0,), "images would be noise"),
    ("ModelSamplingDiscrete", ("eps", False), "images would be noise"),
])
def test_what_other_nodes_do_to_the_sampling_is_told(sampler, model, node, arguments, words):
    assert re.search(words, sampler.shift_note(core_node(node, model, *arguments)))
    assert sampler.shift_note(model) is None


def test_a_shift_changes_nothing_that_the_sampler_makes(sampler, model):
    """What the note says; core's own SD3 form multiplies the timestep, and does change it."""
    def made(model):
        samples = torch.zeros(1, 64, 4, 6)
        guider = sampler.guider_for(model, prompt(1), None, 1.0)
        return sampler.sample(guider, {"samples": samples}, sampler.noise_for({"samples": samples}, 3),
                              torch.tensor([1.0, 0.6, 0.0]), 3)

    plain = made(model)
    assert torch.equal(made(core_node("ModelSamplingAuraFlow", model, 3.1)), plain)
    assert not torch.equal(made(core_node("ModelSamplingSD3", model, 3.1)), plain)


def test_the_shift_is_capped_above_2048_where_it_is_asked_for(model):
    """mu of 4096 x 4096 is 3.79 and that of 2048 x 2048 1.31 (FlowMatchEulerDiscreteScheduler's formula)."""
    from qwen_image_2.nodes.common.schedules import sigmas_for
    large, native, small = (torch.empty(1, 64, side, side, device="meta") for side in (256, 128, 64))
    exact = sigmas_for(model, "Quality 40", 40, 1.0, large)
    assert exact[20] > 0.95 and torch.equal(sigmas_for(model, "Quality 40", 40, 1.0, large, True),
                                            sigmas_for(model, "Quality 40", 40, 1.0, native))
    for latent_of in (native, small):
        assert torch.equal(*(sigmas_for(model, "Quality 40", 40, 1.0, latent_of, capped) for capped in (True, False)))


# ---------------------------------------------------------------- the canvas of an edit

def latent(width: int, height: int) -> torch.Tensor:
    return torch.zeros(1, 64, height // 16, width // 16)


def edit_note(sampler, canvas: tuple[int, int], *references: tuple[int, int]) -> str | None:
    values = {"reference_latents": [latent(*size) for size in references]} if references else {}
    family_2 = SimpleNamespace(model=SimpleNamespace(family="2.x", pixels_per_latent=16))
    return sampler.canvas_note(family_2, prompt(0, **values), latent(*canvas))


def test_an_edit_on_no_references_canvas_is_pointed_out(sampler):
    assert edit_note(sampler, (1024, 768), (768, 1024), (512, 512), (512, 512)) == (
        "The latent is 1024 x 768 pixels, but no reference has that size (they are 768 x 1024, 512 x 512). Such edits "
        "shift or zoom what they should keep. Use the latent of Encode Edit, with Canvas size set to a reference.")


def test_the_grid_that_fails_is_pointed_out(sampler):
    note = edit_note(sampler, (1024, 1024), (768, 1024), (1024, 1024))
    assert note.startswith("Latent and reference are both 1024 x 1024 pixels, a size at which edits are known")
    assert "Avoid the 1024 grid" in note


@pytest.mark.parametrize(("canvas", "references"), [
    ((1024, 1024), ()), ((1056, 1056), ((1056, 1056),)), ((160, 96), ((96, 160), (160, 96)))])
def test_other_canvases_are_none_of_its_business(sampler, canvas, references):
    assert edit_note(sampler, canvas, *references) is None
