"""How far an edited picture has moved from its source, by phase correlation, and the way back.

The cross-power spectrum of two pictures of which one has moved has a phase that grows evenly with frequency; its
inverse transform is a peak where the shift is (Kuglin and Hines, 1975). Here the spectrum is multiplied by a Gaussian,
so that the peak is a Gaussian too, and its logarithm a parabola, whose top lies between pixels. What an edit was to
change is left out, and a window that falls to the borders keeps them from being taken for content. Both stand still
while the picture moves, which would draw the measured shift towards none: so it is the pictures' slopes that are
compared, in which flat areas are nothing, and they are compared anew after each step back.

Shapes: H x W pixels, C channels. A shift (down, right) in pixels is where the edit has gone.
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import Box
from .references import resize
from .regions import check_parts, cut

# Of the peak, in pixels: wide enough for three points of the parabola, narrow enough to stand alone.
WIDTH = 1.0
FADE = 8  # pixels over which what lies outside of a mask begins
ROUNDS = 4
CLOSE = 0.005  # pixels: what a further round would add
# The peak as a share of the one that two equal pictures have. Pictures that have nothing in common stay below 0.15,
# noise of 64 x 64 pixels being the worst; an edit keeps 0.4 and more of what it was not to change, with noise and
# another brightness in it.
TRUSTED = 0.2
LEAST_SIDE = 64  # pixels: smaller pictures agree by chance
UNNOTICED = 0.05  # pixels: to move a picture by less blurs it for nothing
LIMIT = 32  # pixels on either axis: beyond it the edit has another composition
# Of the picture that must lie outside of the mask for it alone to be measured.
LEAST_OUTSIDE = 1 / 16


class Alignment(NamedTuple):
    """A measured shift (down, right) in pixels, and the peak it was read from, 1 for equal pictures."""

    down: float
    right: float
    peak: float

    @property
    def noticed(self) -> bool:
        return math.hypot(self.down, self.right) >= UNNOTICED

    @property
    def trusted(self) -> bool:
        return self.peak >= TRUSTED and not self.too_far

    @property
    def too_far(self) -> bool:
        return max(abs(self.down), abs(self.right)) > LIMIT


def aligned(image: Tensor, part: Tensor, mask: Tensor, box: Box) -> tuple[Tensor, list[Alignment]]:
    """Edited parts of IMAGEs (B, H, W, C), for regions.put_back: of the box's size, and back where their source is as
    far as that can be told; and what was measured of each. Arguments and errors as there."""
    check_parts(len(part), len(image), len(mask))
    moved, found = [], []
    for number in range(max(map(len, (part, image, mask)))):
        one, source, soft = (each[number if len(each) > 1 else 0] for each in (part, cut(image, box), cut(mask, box)))
        fitted = resize(one, box.width, box.height)[0, ..., :part.shape[-1]].to(image)
        found.append(measured(source, fitted, soft))
        if found[-1].trusted and found[-1].noticed:
            fitted = shifted(fitted, -found[-1].down, -found[-1].right).clamp(0, 1)
        moved.append(fitted)
    return torch.stack(moved), found


def measured(source: Tensor, edited: Tensor, mask: Tensor) -> Alignment:
    """How far `edited` (H, W, C) has moved from `source` (H, W, C), where mask (H, W) is 0; in the whole picture where
    hardly anything lies outside of the mask. The peak of what is too small for an answer is 0."""
    if min(mask.shape) < LEAST_SIDE:
        return Alignment(0.0, 0.0, 0.0)
    outside = (mask == 0).float()
    if outside.mean() < LEAST_OUTSIDE:
        outside = torch.ones_like(outside)
    weight = _faded(outside) * _window(*mask.shape).to(outside)
    still, moving = (each[..., :3].float().mean(-1) for each in (source, edited))
    down = right = 0.0
    found = _correlated(still, moving, weight)
    for _ in range(ROUNDS):
        if not found.peak >= TRUSTED or max(abs(down + found.down), abs(right + found.right)) > LIMIT:
            break
        down, right = down + found.down, right + found.right
        if math.hypot(found.down, found.right) < CLOSE:
            return Alignment(down, right, found.peak)
        found = _correlated(still, shifted(moving[..., None], -down, -right)[..., 0], weight)
    return Alignment(down + found.down, right + found.right, found.peak)


def shifted(picture: Tensor, down: float, right: float) -> Tensor:
    """(H, W, C) moved by parts of a pixel, bicubic; its borders go on outwards."""
    height, width = picture.shape[:2]
    rows, columns = torch.arange(height) - down, torch.arange(width) - right
    grid = torch.stack(torch.meshgrid((2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1, indexing="xy"), -1)
    moved = F.grid_sample(picture.movedim(-1, 0)[None].float(), grid[None].to(picture.device), mode="bicubic",
                          padding_mode="border", align_corners=False)
    return moved[0].movedim(0, -1).to(picture)


def _correlated(still: Tensor, moving: Tensor, weight: Tensor) -> Alignment:
    """One measurement of greys (H, W)."""
    first, second = (torch.fft.fft2(_gradient(each) * weight) for each in (still, moving))
    cross = second * first.conj()
    low_pass = _gaussian(*still.shape).to(still)
    size = cross.abs()
    # Where neither picture has anything, rounding has a phase, too.
    phase = torch.where(size > 1e-6 * size.max(), cross / size.clamp(min=1e-30), 0)
    surface = torch.fft.ifft2(phase * low_pass).real
    best = int(surface.argmax())
    row, column = divmod(best, surface.shape[1])
    return Alignment(_signed(row + _top(surface[:, column], row), surface.shape[0]),
                     _signed(column + _top(surface[row], column), surface.shape[1]),
                     (surface[row, column] / low_pass.mean()).item())


def _gradient(grey: Tensor) -> Tensor:
    """Of greys (H, W), to the right and, as the imaginary part, downwards: what is flat is nothing, so that neither
    window nor mask cut an edge into it."""
    padded = F.pad(grey[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    return torch.complex(padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1])


def _faded(outside: Tensor) -> Tensor:
    """1 and 0 (H, W) -> falling from 1 to 0 over FADE pixels before what is 0."""
    near, half = 1 - outside[None, None], FADE // 2
    for across in ((2 * FADE + 1, 1), (1, 2 * FADE + 1)):  # one after the other: as good, and far fewer values to read
        near = F.max_pool2d(near, across, 1, [side // 2 for side in across])
    soft = F.avg_pool2d(F.pad(near, [half] * 4, mode="replicate"), 2 * half + 1, 1)
    return (1 - soft[0, 0]).clamp(0, 1)


def _top(line: Tensor, peak: int) -> float:
    """Where between pixels a Gaussian has its top, from its largest value and the two beside it."""
    before, at, after = (line[(peak + step) % len(line)].clamp(min=1e-12).log().item() for step in (-1, 0, 1))
    bend = before - 2 * at + after
    return 0.0 if bend >= 0 else max(-0.5, min(0.5, (before - after) / (2 * bend)))


def _signed(place: float, length: int) -> float:
    """A correlation goes round: what lies beyond the middle is a shift the other way."""
    return place - length if place > length / 2 else place


def _window(height: int, width: int) -> Tensor:
    return torch.outer(*(torch.hann_window(side + 2, periodic=False)[1:-1] for side in (height, width)))


def _gaussian(height: int, width: int) -> Tensor:
    """The spectrum (H, W) of a Gaussian of WIDTH pixels."""
    rows, columns = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    return torch.exp(-2 * (math.pi * WIDTH) ** 2 * (rows[:, None] ** 2 + columns ** 2))
