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
    (torch.full((1, 40, 40), 2 / 255), "values below 0.03 do not count"),
    (torch.full((1, 40, 40), -0.5), "outside 0 to 1"),
    (torch.full((1, 40, 40), 255, dtype=torch.uint8), "outside 0 to 1"),
    (torch.zeros(1, 3, 40, 40), r"shape \[1, 3, 40, 40\].*Convert Image to Mask"),
    (torch.zeros(0, 40, 40), "not empty"),
    (torch.zeros(40), r"shape \[40\]"),
    (torch.full((1, 40, 40), 1.5), "outside 0 to 1"),
    (torch.full((1, 40, 40), float("nan")), "outside 0 to 1"),
    (torch.ones(2, 40, 40), "Got 2 masks for 3 images.*Repeat Image Batch"),
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


@pytest.mark.parametrize(("kind", "shape"), [
    (torch.bool, (1, 40, 40)), (torch.half, (40, 40)), (torch.uint8, (1, 1, 40, 40)), (torch.float64, (3, 1, 40, 40))])
def test_every_form_of_a_mask_is_the_same_mask(kind, shape):
    plain = blob(40, 40, 10, 10)[0]
    fitted = regions.fit_mask(plain.to(kind).expand(shape), 3, 80, 40)
    assert fitted.dtype == torch.float32 and torch.equal(fitted, regions.fit_mask(plain, 3, 80, 40))


def test_what_bicubic_scaling_makes_of_a_mask_is_clamped():
    """Core's scaling leaves values outside 0 to 1: at any edge some, and at worst those of the last line."""
    scaled = torch.nn.functional.interpolate(blob(16, 16, 4, 4).unsqueeze(1), (64, 64), mode="bicubic")
    assert scaled.min() < -0.05 and scaled.max() > 1.05
    fitted = regions.fit_mask(scaled, 1, 64, 64)
    assert fitted.min() == 0 and fitted.max() == 1
    regions.fit_mask(torch.tensor([[[-0.445, 1.445]]]), 1, 1, 2)


def test_specks_are_no_part_of_the_region_and_get_no_feather():
    mask = blob(100, 100, 40, 40)
    clean = regions.feathered(regions.fit_mask(mask, 1, 100, 100), 4)
    mask[0, ::99, ::99] = 1 / 255
    mask[0, 0, 50] = 7 / 255
    soft = regions.feathered(regions.fit_mask(mask, 1, 100, 100), 4)
    assert torch.equal(soft, clean) and regions.box_around(soft, 0) == Box(36, 36, 49, 49)


def test_feather_one_reaches_the_diagonal_neighbours():
    mask = torch.zeros(1, 5, 5)
    mask[0, 2, 2] = 1
    diagonal = 1 - 2 ** 0.5 / 2
    expected = torch.tensor([[diagonal, 0.5, diagonal], [0.5, 1, 0.5], [diagonal, 0.5, diagonal]])
    soft = regions.feathered(mask, 1)[0]
    torch.testing.assert_close(soft[1:4, 1:4], expected)
    assert soft.count_nonzero() == 9


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(("parts", "pictures", "masks"), [
    (3, 1, 1), (1, 1, 3), (3, 1, 3), (3, 3, 1), (3, 3, 3), (1, 1, 1)])
def test_batches_are_what_one_after_the_other_gives(parts, pictures, masks, channels):
    image, part = picture(40, 40, channels, batch=pictures), picture(16, 24, 3, batch=parts)
    mask = torch.cat([blob(40, 40, place, 5) for place in (2, 12, 22)[:masks]])
    soft = regions.feathered(regions.fit_mask(mask, pictures, 40, 40), 3)
    box = regions.box_around(soft, 0.2)
    together = regions.put_back(image, part, soft, box)
    count = max(parts, pictures, masks)
    alone = [regions.put_back(*(batch[k % len(batch)].unsqueeze(0) for batch in (image, part, soft)), box)
             for k in range(count)]
    assert len(together) == count and torch.equal(together, torch.cat(alone))
    assert not torch.equal(together[0], image[0])


@pytest.mark.parametrize(("parts", "pictures", "masks", "words"), [
    (2, 3, 3, r"Got 2 edited crops for 3 images; the counts must match.*Rebatch Images"),
    (1, 3, 3, r"Got 1 edited crops for 3 images; the counts must match"),
    (2, 1, 3, r"Got 2 edited crops for 3 masks of one image; the counts must match.*Batch size of Encode Edit to 3")])
def test_parts_that_could_be_anyones_are_refused(parts, pictures, masks, words):
    with pytest.raises(ValueError, match=words):
        regions.put_back(picture(8, 8, batch=pictures), torch.rand(parts, 8, 8, 3), torch.ones(masks, 8, 8),
                         Box(0, 0, 8, 8))


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
