"""The sampler node's parts in this process: what it tells before a run."""
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
