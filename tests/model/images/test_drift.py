"""Colours and layout of a source: measured as CIE says, held without touching detail."""
import pytest
import torch

from qwen_image_2.model.images import drift


def soft(seed: int, height: int = 96, width: int = 128) -> torch.Tensor:
    small = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1)


# Bruce Lindbloom's calculator, sRGB and D65.
@pytest.mark.parametrize("rgb, expected", [
    ((1, 1, 1), (100, 0, 0)), ((0, 0, 0), (0, 0, 0)), ((1, 0, 0), (53.24, 80.09, 67.20)),
    ((0, 0, 1), (32.30, 79.19, -107.86)), ((0.5, 0.5, 0.5), (53.39, 0, 0)), ((0.01, 0.02, 0.01), (1.07, -0.76, 0.53))])
def test_lab_is_that_of_cie(rgb, expected):
    found = drift.lab(torch.tensor(rgb).reshape(1, 3, 1)).flatten()
    assert found.tolist() == pytest.approx(expected, abs=0.35)


def test_a_change_of_colour_is_found_where_it_is():
    source = soft(0)
    changed = source.clone()
    changed[:, 32:64, 96:, 0] = (changed[:, 32:64, 96:, 0] - 0.3).clamp(min=0)
    found = drift.differences(changed, source)
    assert found.shape == (1, 3, 4) and found[0, 1, 3] > drift.LIMIT
    found[0, 1, 3] = 0
    assert not found.any()
    assert drift.region(drift.differences(changed, source)).sum() == 6, "the cell and its five neighbours"


def test_held_pictures_have_the_source_s_colours_and_their_own_detail():
    source = soft(0)
    detail = 0.05 * torch.randn(source.shape, generator=torch.Generator().manual_seed(1))
    made = ((source + detail) * 0.7 + 0.1).clamp(0, 1)
    found = drift.held(made, source)
    assert drift.differences(made, source).max() > drift.LIMIT > 2 > drift.differences(found, source).max()
    fine = [each - torch.nn.functional.avg_pool2d(each.movedim(-1, 1), 3, 1, 1).movedim(1, -1)
            for each in (made, found)]
    assert (fine[1] - fine[0])[:, 2:-2, 2:-2].abs().mean() < 0.1 * fine[0].abs().mean()
