"""Tiles of a large picture: how many, how large, where, and with what weight each counts where they overlap. No torch.

All lengths are pixels, multiples of STEP, unless a function says otherwise.
"""
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STEP = 32         # pixels: two latents of either family along a side, or four
LEAST_OVERLAP = 32
SHARE = 6         # an overlap that nobody chose is a sixth of the tile (what the tiled upscalers in use take)
HARDLY_MORE = 1.05
MAX_FACTOR = 2.0  # along a side in one pass: beyond it the source says too little about what a pixel should be


@dataclass(frozen=True)
class Tiling:
    """Tiles of one size, evenly spaced, the first at 0 and the last at the far edge.

    height, width: of a tile; tops, lefts: where rows and columns of tiles begin; in pixels, or in latents after
    `divided`.
    """

    height: int
    width: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @property
    def places(self) -> list[tuple[int, int]]:
        """(top, left) of every tile, row by row."""
        return [(top, left) for top in self.tops for left in self.lefts]

    @property
    def canvas(self) -> tuple[int, int]:
        """(height, width) of what they cover."""
        return self.tops[-1] + self.height, self.lefts[-1] + self.width

    def divided(self, scale: int) -> "Tiling":
        """The same in latents of so many pixels."""
        return Tiling(self.height // scale, self.width // scale, tuple(top // scale for top in self.tops),
                      tuple(left // scale for left in self.lefts))

    def weights(self) -> tuple[list[list[float]], list[list[float]]]:
        """For each row of tiles the weights of its rows, for each column those of its columns. A tile's weight at a
        place is the product of both; over all tiles they sum to 1 at every place."""
        return weights(self.tops, self.height), weights(self.lefts, self.width)


def up_to_step(length: float) -> int:
    return math.ceil(length / STEP) * STEP


def overlap_of(tile: int, chosen: int) -> int:
    """Pixels that neighbours share at least. chosen: by the user, 0 leaves it to the tile's size."""
    return chosen or max(LEAST_OVERLAP, round(tile / SHARE / STEP) * STEP)


def tiling(width: int, height: int, tile: int, smallest: int, overlap: int) -> Tiling:
    """Tiles of at most `tile` along a side that cover a canvas, each overlapping the next by `overlap` at least.

    No more of them than it takes, and as small as that number allows, but not below `smallest`: that is what the model
    was trained on.
    """
    tops, tall = _along(height, tile, smallest, overlap)
    lefts, wide = _along(width, tile, smallest, overlap)
    return Tiling(tall, wide, tops, lefts)


def _along(length: int, tile: int, smallest: int, overlap: int) -> tuple[tuple[int, ...], int]:
    """Where tiles begin along one side, and their length."""
    if length <= tile:
        return (0,), length
    count = math.ceil((length - overlap) / (tile - overlap))
    side = max(smallest, up_to_step((length + (count - 1) * overlap) / count))
    last = (length - side) // STEP
    return tuple(round(number * last / (count - 1)) * STEP for number in range(count)), side


def weights(starts: Sequence[int], length: int) -> list[list[float]]:
    """Weights of intervals of one length that overlap, which sum to 1 at every place: each fades linearly over what it
    shares with its neighbour, and not at all at the outer ends."""
    raw = []
    for number, start in enumerate(starts):
        before = starts[number - 1] + length - start if number else 0
        after = start + length - starts[number + 1] if number + 1 < len(starts) else 0
        raw.append([min(1.0, (place + 1) / (before + 1), (length - place) / (after + 1)) for place in range(length)])
    total = [0.0] * (starts[-1] + length)
    for start, values in zip(starts, raw, strict=True):
        for place, value in enumerate(values):
            total[start + place] += value
    return [[value / total[start + place] for place, value in enumerate(values)]
            for start, values in zip(starts, raw, strict=True)]


# ---------------------------------------------------------------- size and number

def balance(dim: int, mlp_dim: int) -> float:
    """Tokens at which a block's attention costs as much as its matrices: 4 D^2 + 3 D M products for each token, and
    2 D for each pair of tokens."""
    return (4 * dim + 3 * mlp_dim) / 2


def cost(tiles: Tiling, tokens_each: int, prefix: int, balance: float) -> float:
    """Of a step over all tiles, in tokens whose attention is free. prefix: tokens that each target token sees too."""
    return len(tiles.places) * tokens_each * (1 + (tokens_each + prefix) / balance)


def cheapest(width: int, height: int, sides: Iterable[int], smallest: int, overlap: int, prefix: int,
             balance: float) -> int:
    """The largest of these sides, since it sees most, that covers a canvas with hardly more arithmetic than any.

    Small tiles overlap more, large ones have more attention. overlap: 0 leaves it to the side.
    """
    def price(side: int) -> float:
        tiles = tiling(width, height, side, smallest, overlap_of(side, overlap))
        return cost(tiles, tiles.height * tiles.width // 256, prefix, balance)

    prices = {side: price(side) for side in sides}
    return max(side for side in prices if prices[side] <= HARDLY_MORE * min(prices.values()))


def at_once(count: int, tokens_each: int, room: float, bytes_per_token: int, enough: int) -> int:
    """How many tiles one pass takes: as many as fit into `room` bytes, at least one, and no more than keep a card busy
    (`enough` tokens). Passes of a step are as equal as can be."""
    most = max(1, min(count, int(room // (tokens_each * bytes_per_token)), math.ceil(enough / tokens_each)))
    return math.ceil(count / math.ceil(count / most))


# ---------------------------------------------------------------- passes

def passes(width: int, height: int, target: tuple[int, int]) -> list[tuple[int, int]]:
    """(width, height) after each pass from a picture to a target, each enlarging by MAX_FACTOR at most and all by the
    same factor."""
    factor = max(target[0] / width, target[1] / height)
    count = max(1, math.ceil(math.log(factor, MAX_FACTOR) - 1e-9)) if factor > 1 else 1
    between = [(round(width * (target[0] / width) ** (number / count)),
                round(height * (target[1] / height) ** (number / count))) for number in range(1, count)]
    return [*between, target]
