"""How far an edit has moved, and the way back."""
import math

import pytest
import torch

from qwen_image_2.model.images import alignment
from qwen_image_2.model.images.boxes import Box

SIZE = (192, 256)
MASK = torch.zeros(SIZE)
MASK[60:130, 90:170] = 1


def scene(seed: int = 0, down: float = 0.0, right: float = 0.0) -> torch.Tensor:
    """A picture (H, W, 3) of shapes of all sizes; moved where it is drawn, without any resampling."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in SIZE)
    picture = torch.zeros(*SIZE, dtype=torch.float64)
    for _ in range(220):
        y, x, size, grey = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        radius = 2 + 14 * size
        away = (((rows - down - 240 * y + 24)[:, None] ** 2 + (columns - right - 300 * x + 22)[None] ** 2).sqrt()
                - radius)
        picture = torch.lerp(picture, torch.full_like(picture, grey), torch.sigmoid(-2 * away))
    return picture.float()[..., None].expand(-1, -1, 3)


def edit_of(picture: torch.Tensor) -> torch.Tensor:
    """Something else inside the mask, outside a little noise and another brightness."""
    generator = torch.Generator().manual_seed(1)
    edited = 0.95 * picture + 0.02 + 0.01 * torch.randn(picture.shape, generator=generator)
    return torch.where(MASK[..., None] > 0, scene(7), edited).clamp(0, 1)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.27, -0.04), (0.5, 0.5), (3.4, -7.7), (-20.3, 12.6), (30.0, 0.0)])
def test_a_shift_is_measured_to_a_tenth_of_a_pixel(shift):
    found = alignment.measured(scene(), edit_of(scene(0, *shift)), MASK)
    assert found.trusted and math.dist(found[:2], shift) < 0.1
    assert found.noticed == (shift != (0.0, 0.0))


def test_with_a_mask_over_everything_the_whole_picture_counts():
    found = alignment.measured(scene(), scene(0, 2.5, -1.25), torch.ones(SIZE))
    assert found.trusted and math.dist(found[:2], (2.5, -1.25)) < 0.1


def test_what_lies_inside_the_mask_does_not_count():
    """There a picture of its own stands still while all else has moved."""
    moved = torch.where(MASK[..., None] > 0, scene(), scene(0, 5.0, 3.0))
    found = alignment.measured(scene(), moved, MASK)
    assert math.dist(found[:2], (5.0, 3.0)) < 0.1


@pytest.mark.parametrize("other", [
    scene(3), torch.full((*SIZE, 3), 0.5), torch.rand(*SIZE, 3, generator=torch.Generator().manual_seed(2))],
    ids=["another picture", "one colour", "noise"])
def test_pictures_with_nothing_in_common_are_not_trusted(other):
    assert not alignment.measured(scene(), other, torch.zeros(SIZE)).trusted


def test_what_is_too_small_or_too_far_is_not_trusted():
    small = torch.rand(40, 200, 3, generator=torch.Generator().manual_seed(3))
    assert not alignment.measured(small, small, torch.zeros(40, 200)).trusted
    far = alignment.measured(scene(), scene(0, 0.0, 40.0), torch.zeros(SIZE))
    assert far.too_far and far.peak > alignment.TRUSTED and not far.trusted


def test_moving_there_and_back_is_the_same_picture():
    there = alignment.shifted(scene(), 2.0, -3.0)
    assert torch.allclose(there[5:-5, 5:-5], scene()[3:-7, 8:-2], atol=1e-5), "whole pixels"
    assert (alignment.shifted(scene(0, 0.4, 0.3), -0.4, -0.3) - scene())[8:-8, 8:-8].abs().mean() < 0.005


def test_parts_come_back_to_their_sources():
    """Those of a batch each by its own shift; a part of another size is brought to the box's first."""
    image = torch.nn.functional.pad(scene().movedim(-1, 0), (10, 20, 30, 40)).movedim(0, -1)[None]
    box = Box(10, 30, 10 + SIZE[1], 30 + SIZE[0])
    soft = torch.zeros(1, *image.shape[1:3])
    soft[0, 30:30 + SIZE[0], 10:10 + SIZE[1]] = MASK
    parts = torch.stack([scene(0, 4.0, -2.5), scene(), scene(5)])
    out, found = alignment.aligned(image, parts, soft, box)
    assert out.shape == (3, *SIZE, 3) and [each.trusted for each in found] == [True, True, False]
    assert (out[0] - scene())[8:-8, 8:-8].abs().mean() < 0.01 < (parts[0] - scene()).abs().mean()
    assert torch.allclose(out[1:], parts[1:], atol=1 / 250), "left as they were, in 8 bits"
    large = torch.nn.functional.interpolate(parts[:1].movedim(-1, 1), scale_factor=2, mode="bicubic").movedim(1, -1)
    _, (again,) = alignment.aligned(image, large.clamp(0, 1), soft, box)
    assert math.dist(again[:2], (4.0, -2.5)) < 0.1
