"""Does each line stand in its box? Places of a layout, and what was read of its lines.

A line is in its box where more of its writing lies inside than outside. Which of two pieces that read alike is whose
is told by their places. Boxes are pixels of the image.
"""
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..messages import Refusal
from ..model.images.boxes import Box
from .layout import Layout
from .matching import Group

IN_BOX = 0.5  # share of a line's writing that must lie in its box


class Place(NamedTuple):
    """Where a line of a layout belongs. name: of its box; number: of that box in reading order."""

    name: str
    number: int
    box: Box


def texts_of(layout: Layout) -> str:
    """What must be written on the page, as an expected text. Raises Refusal for a layout without."""
    text = "\n".join(box.text for box in layout.boxes if box.literal)
    if not text.strip():
        raise Refusal("layout_without_text", "The layout has no text to look for: its boxes are empty or pictures. "
                      "Write a text into a box, or disconnect it and use Expected text.")
    return text


def places_of(layout: Layout, lines: Sequence[str], width: int, height: int) -> list[Place]:
    """Of each expected line, on an image of this size. lines: of `texts_of`, in their order; what shows nothing may
    have been left out of them."""
    found: list[Place] = []
    for number, box in enumerate(box for box in layout.boxes if box.literal):
        place = Place(box.name, number, Box(*box.pixels(width, height)))
        for line in box.text.splitlines():
            if len(found) < len(lines) and line.strip() == lines[len(found)]:
                found.append(place)
    assert len(found) == len(lines), "the lines are not this layout's"
    return found


# ---------------------------------------------------------------- which piece is whose

def by_place(groups: Sequence[Group], pieces: Sequence[str], boxes: Sequence[Box], places: Sequence[Place]
             ) -> list[Group]:
    """The groups with pieces that read alike exchanged so that each lies in the box of its lines where one does.

    pieces: comparable forms of what was read, boxes: where, places: of each line that was matched.
    """
    alike: dict[str, list[int]] = {}
    for number, text in enumerate(pieces):
        alike.setdefault(text, []).append(number)
    changed = list(groups)
    for numbers in alike.values():
        if len(numbers) < 2:
            continue
        column = {piece: place for place, piece in enumerate(numbers)}
        holders = [(number, piece) for number, group in enumerate(changed) for piece in group.pieces if piece in column]
        if not holders:
            continue
        fits = _shares([boxes[piece] for piece in numbers],
                       [places[changed[number].lines[0]].box for number, _ in holders])
        fits[range(len(holders)), [column[piece] for _, piece in holders]] += 1e-6  # of equal ones each keeps its own
        new = {holders[row]: numbers[place] for row, place in zip(*linear_sum_assignment(fits, maximize=True))}
        for number in {number for number, _ in holders}:
            group = changed[number]
            changed[number] = replace(group, pieces=tuple(new.get((number, piece), piece) for piece in group.pieces))
    return changed


def _shares(boxes: Sequence[Box], places: Sequence[Box]) -> np.ndarray:
    """The share of each box (a column) that lies in each place (a row)."""
    left, top, right, bottom = np.array(boxes, float).T
    edges = np.array(places, float)[..., None]
    across = (np.minimum(right, edges[:, 2]) - np.maximum(left, edges[:, 0])).clip(0)
    down = (np.minimum(bottom, edges[:, 3]) - np.maximum(top, edges[:, 1])).clip(0)
    shares: np.ndarray = across * down / ((right - left) * (bottom - top))
    return shares


def overlap(boxes: Sequence[Box], place: Box) -> float:
    """The share of the boxes' area that lies in the place; 0 without boxes."""
    area = sum(box.width * box.height for box in boxes)
    shared = sum(max(0, min(box.right, place.right) - max(box.left, place.left))
                 * max(0, min(box.bottom, place.bottom) - max(box.top, place.top)) for box in boxes)
    return shared / area if area else 0.0


# ---------------------------------------------------------------- reading order

def out_of_order(places: Sequence[Place], found: Sequence[Sequence[Box]]) -> list[str]:
    """Names of boxes whose lines are read in another order than the layout's, in its order.

    found: what was read of each line, nothing for a missing one. Two lines are out of order where the layout puts one
    wholly above (or wholly beside) the other and the image the other way round; two lines of one box, where the later
    one stands above the earlier.
    """
    read = [number for number, boxes in enumerate(found) if boxes]
    wanted = np.array([places[number].box for number in read], float).reshape(-1, 4)
    seen = np.array([_around(found[number]) for number in read], float).reshape(-1, 4)
    owner = np.array([places[number].number for number in read])
    wrong = np.zeros((len(read), len(read)), bool)
    for start, end in ((1, 3), (0, 2)):  # above, beside
        before = wanted[:, None, end] <= wanted[None, :, start]
        wrong |= before & (seen[:, None, start] >= seen[None, :, end])
    later = np.triu(np.ones_like(wrong), 1)
    wrong |= later & (owner[:, None] == owner) & (seen[:, None, 1] >= seen[None, :, 3])
    mixed = np.flatnonzero((wrong | wrong.T).any(0)).tolist()
    return list(dict.fromkeys(places[read[number]].name for number in mixed))


def _around(boxes: Sequence[Box]) -> Box:
    """The smallest box around all of them."""
    left, top, right, bottom = zip(*boxes)
    return Box(min(left), min(top), max(right), max(bottom))
