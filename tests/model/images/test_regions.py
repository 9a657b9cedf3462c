"""Masked edits: what lies outside the mask does not change, at any size."""
import pytest
import torch

from qwen_image_2.model.images import regions
from qwen_image_2.model.images.boxes import Box


def picture(height, width, channels=3, batch=1):
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(height * width))


def blob(height, width, top, left, size=5, batch=1):
    mask = torch.zeros(batch, height, width)
    mask[:, top:top + size, left:left + size] = 1
    return mask


def edit(image, mask, feather, context=0.5, part_channels=4):
    """Cut, 'edit' into something else entirely at another size, and put back."""
    soft = regions.feathered(regions.fit_mask(mask, *image.shape[:3]), feather)
    box = regions.box_around(soft, context)
    part = 1 - torch.rand(len(image), 32, 64, part_channels)
    return regions.put_back(image, part, soft, box), soft


@pytest.mark.parametrize("size", [(64, 64), (63, 97), (31, 200), (1080, 333)])
@pytest.mark.parametrize("feather", [0, 1, 16])
@pytest.mark.parametrize("channels", [3, 4])
def test_outside_is_bit_identical(size, feather, channels):
    image = picture(*size, channels)
    out, soft = edit(image, blob(*size, size[0] // 2, size[1] // 3), feather)
    outside = soft == 0
    assert outside.any() and torch.equal(out[outside], image[outside])
    assert not torch.equal(out[soft == 1], image[soft == 1])


def test_masks_at_the_border():
    image = picture(40, 50)
    for top, left in ((0, 0), (35, 45), (0, 45), (35, 0)):
        out, soft = edit(image, blob(40, 50, top, left), feather=8)
        assert torch.equal(out[soft == 0], image[soft == 0])


def test_a_full_mask_changes_everything_and_fits():
    image = picture(33, 47)
    out, soft = edit(image, torch.ones(1, 33, 47), feather=4)
    assert (soft == 1).all() and out.shape == image.shape and not torch.isclose(out, image).all()


def test_the_feather_falls_with_the_distance():
    mask = blob(41, 41, 18, 18)
    soft = regions.feathered(mask, 10)
    right = soft[0, 20, 22:]  # from the mask's edge outwards
    assert right[0] == 1 and (right.diff() <= 0).all() and (right[1:11] < 1).all()
    assert (right[1:11] > 0).all() and (right[11:] == 0).all()


def test_the_blend_is_monotone():
    """Black picture, white edit: brightness never rises with the distance from the mask."""
    image, mask = torch.zeros(1, 41, 41, 3), blob(41, 41, 18, 18)
    soft = regions.feathered(mask, 10)
    out = regions.put_back(image, torch.ones(1, 16, 16, 3), soft, regions.box_around(soft, 0.5))
    assert (out[0, 20, 22:, 0].diff() <= 0).all()


def test_soft_masks_keep_their_softness():
    mask = blob(41, 41, 18, 18) * 0.5
    assert regions.feathered(mask, 0).max() == 0.5


def test_transparency_outside_and_of_rgb_edits_is_kept():
    image = picture(40, 40, 4)
    soft = regions.feathered(blob(40, 40, 10, 10), 3)
    out = regions.put_back(image, torch.rand(1, 20, 20, 3), soft, regions.box_around(soft, 0.2))
    assert torch.equal(out[..., 3], image[..., 3])


def test_batches():
    image = picture(40, 40, 3, batch=3)
    out, soft = edit(image, blob(40, 40, 5, 5), feather=2)
    assert out.shape == image.shape and torch.equal(out[soft == 0], image[soft == 0])
    masks = torch.cat([blob(40, 40, p, p) for p in (2, 12, 22)])
    out, soft = edit(image, masks, feather=2)
    assert torch.equal(out[soft == 0], image[soft == 0])


@pytest.mark.parametrize("mask, words", [
    (torch.zeros(1, 40, 40), "The mask is empty"),
    (torch.full((1, 40, 40), 1.5), "outside 0 to 1"),
    (torch.full((1, 40, 40), float("nan")), "outside 0 to 1"),
    (torch.ones(2, 40, 40), "There are 2 masks for 3 pictures"),
])
def test_unusable_masks(mask, words):
    with pytest.raises(ValueError, match=words):
        regions.fit_mask(mask, 3, 40, 40)


def test_masks_of_another_size_are_stretched():
    mask = regions.fit_mask(blob(20, 20, 5, 5, size=10)[0], 2, 80, 40)
    assert mask.shape == (2, 80, 40) and mask[:, 40, 20].all() and not mask[:, :15].any()


def test_box_and_context():
    mask = blob(100, 100, 40, 10, size=20)
    assert regions.box_around(mask, 0) == Box(10, 40, 30, 60)
    assert regions.box_around(mask, 0.5) == Box(0, 30, 40, 70)


def test_parts_must_be_as_many_as_pictures():
    with pytest.raises(ValueError, match="2 edited parts for 1 pictures"):
        regions.put_back(picture(8, 8), torch.rand(2, 8, 8, 3), torch.ones(1, 8, 8), Box(0, 0, 8, 8))


@pytest.mark.parametrize("sides", [(5, 0, 0, 0), (3, 4, 5, 6), (40, 0, 90, 70)])
def test_extended_canvas_mirrors_and_masks(sides):
    image = picture(11, 17)
    left, top, right, bottom = sides
    out, mask = regions.extended(image, *sides)
    assert out.shape == (1, 11 + top + bottom, 17 + left + right, 3) == (*mask.shape, 3)
    assert torch.equal(out[:, top:top + 11, left:left + 17], image)
    assert (mask[:, top:top + 11, left:left + 17] == 0).all() and mask.sum() == mask.numel() - 11 * 17
    if left:
        assert torch.equal(out[:, top:top + 11, left - 1], image[:, :, 1])


def test_a_picture_one_pixel_wide_can_be_extended():
    out, _ = regions.extended(picture(5, 1), 3, 0, 2, 0)
    assert out.shape == (1, 5, 6, 3)
