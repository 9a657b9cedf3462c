"""Rules of editing: resizing, names in the prompt, and which pictures cannot be references."""
import pytest
import torch

from qwen_image_2.model.images import references


@pytest.mark.parametrize("image, words", [
    (torch.full((8, 8, 3), float("nan")), "Reference 2 contains NaN"),
    (torch.full((8, 8, 4), float("inf")), "Reference 2 contains NaN or infinite"),
    (torch.zeros(0, 8, 3), r"Reference 2 is empty \(8 x 0 pixels\)"),
    (torch.zeros(8, 8, 1), "Reference 2 has 1 channels; references are RGB or RGBA"),
    (torch.zeros(8, 136, 3), "Reference 2 is 136 x 8: its longer side is more than 16 times the shorter one"),
])
def test_pictures_that_cannot_be_references(image, words):
    with pytest.raises(ValueError, match=words):
        references.check_reference(2, image)


def test_a_resize_without_a_change_keeps_every_value():
    image = torch.randint(0, 256, (64, 96, 4)) / 255
    assert torch.equal(references.resize(image, 96, 64)[0], image)


def test_rgb_becomes_opaque():
    assert (references.resize(torch.rand(40, 50, 3), 64, 32)[..., 3] == 1).all()


@pytest.mark.parametrize("prompt, named", [
    ("make it blue", set()), ("put <image1> on <image2>", {1, 2}), ("<image2><image2> and image1", {2})])
def test_names_in_a_prompt(prompt, named):
    assert references.named_references(prompt, 3) == named


@pytest.mark.parametrize("prompt", ["<image0>", "<image4>", "<image1> with <image10>"])
def test_names_of_references_that_are_not_there(prompt):
    with pytest.raises(ValueError, match=r"but the references are <image1> to <image3>"):
        references.named_references(prompt, 3)


@pytest.mark.parametrize("canvas, given, failing", [
    ((1024, 1024), [(1024, 1024)], True), ((1024, 1024), [(512, 512), (1024, 1024)], True),
    ((1024, 1024), [(992, 1024)], False), ((1056, 1056), [(1024, 1024)], False)])
def test_the_grid_that_fails(canvas, given, failing):
    assert references.off_failing_grid(canvas, given) == failing
