"""Tiles: they cover everything, weigh 1 together, are as few and as small as can be."""
import math
import random
from itertools import pairwise

import pytest

from qwen_image_2.model.images import tiles


@pytest.mark.parametrize("seed", range(20))
def test_they_cover_a_canvas_with_the_overlap_that_was_asked_for(seed):
    rng = random.Random(seed)
    width, height, side = (32 * rng.randint(1, 64) for _ in range(3))
    side = max(side, 128)
    overlap = 32 * rng.randint(1, side // 64)
    found = tiles.tiling(width, height, side, 64, overlap)
    for length, tile, starts in ((height, found.height, found.tops), (width, found.width, found.lefts)):
        assert starts[0] == 0 and starts[-1] + tile == length and tile <= max(side, 64)
        assert all(start % 32 == 0 for start in starts) and tile % 32 == 0
        assert all(first + tile - second >= overlap for first, second in pairwise(starts))
        assert len(starts) == max(1, math.ceil((length - overlap) / (side - overlap))), "no more than it takes"
    assert found.canvas == (height, width) and len(found.places) == len(found.tops) * len(found.lefts)


@pytest.mark.parametrize("starts, length", [((0,), 5), ((0, 4), 6), ((0, 1, 2), 8), ((0, 6), 6), ((0, 3, 5), 7)])
def test_weights_sum_to_one_and_are_never_zero(starts, length):
    found = tiles.weights(starts, length)
    total = [0.0] * (starts[-1] + length)
    for start, values in zip(starts, found, strict=True):
        assert min(values) > 0
        for place, value in enumerate(values):
            total[start + place] += value
    assert total == pytest.approx([1.0] * len(total))
    assert found[0][0] == (1 if len(starts) == 1 or starts[1] > 0 else found[0][0]), "nothing fades at the outer ends"


def test_tiles_are_no_larger_than_their_number_needs_and_not_below_the_smallest():
    assert tiles.tiling(4096, 4096, 1024, 512, 160).width == 960
    assert tiles.tiling(256, 256, 128, 128, 32) == tiles.Tiling(128, 128, (0, 64, 128), (0, 64, 128))


def test_the_cheapest_side_weighs_overlaps_against_attention():
    balance = tiles.balance(4096, 12288)
    assert balance == 26624
    sides = (512, 1024, 2048)
    assert tiles.cheapest(4096, 4096, sides, 512, 0, 300, balance) == 1024
    assert tiles.cheapest(4096, 4096, sides, 512, 0, 300, math.inf) == 2048, "without the cost of attention"
    assert tiles.cheapest(1024, 1024, sides, 512, 0, 300, balance) == 2048, "one tile, whatever its side"


@pytest.mark.parametrize("count, room, enough, expected", [
    (25, 1e9, 1e9, 25), (25, 0, 1e9, 1), (25, 7 * 1000 * 10, 1e9, 7), (8, 7 * 1000 * 10, 1e9, 4),
    (25, 1e9, 3000, 3)])
def test_as_many_at_once_as_fit_and_keep_a_card_busy(count, room, enough, expected):
    assert tiles.at_once(count, 1000, room, 10, enough) == expected


@pytest.mark.parametrize("size, target, expected", [
    ((512, 512), (1024, 1024), [(1024, 1024)]), ((512, 512), (4096, 4096), [(1024,) * 2, (2048,) * 2, (4096,) * 2]),
    ((1000, 600), (3500, 2100), [(1871, 1122), (3500, 2100)]), ((640, 480), (640, 480), [(640, 480)])])
def test_no_pass_enlarges_by_more_than_two(size, target, expected):
    assert tiles.passes(*size, target) == expected
