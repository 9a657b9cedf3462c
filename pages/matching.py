"""Which piece of writing that was read is which expected line?

Three passes, each of which takes groups and returns new ones: every line gets the piece that suits it best, lines that
the reader has joined are put together, and pieces that are left over are added to the lines that they are a part of.
Texts are comparable forms, see compare.py. Lines and pieces are numbers: their places in what `match` is given.
"""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..model.images.boxes import Box

MIN_SHARE = 0.5  # of two lines that they have in common, to be taken for the same one
MAX_TRIED = 8     # lines that a left-over piece is tried in


@dataclass(frozen=True)
class Group:
    """Expected lines and what was read of them, in reading order: one of each, a line in several pieces, or several
    lines that were read as one. No pieces: the line is missing."""

    lines: tuple[int, ...]
    pieces: tuple[int, ...] = ()


def match(lines: Sequence[str], pieces: Sequence[str], boxes: Sequence[Box],
          between: Callable[[], None] = lambda: None) -> list[Group]:
    """Each line in exactly one group, each piece in one at most. boxes: those of the pieces.

    `between` is called before each line and each piece, and may raise: a thousand of both take seconds.
    """
    texts = Texts(lines, pieces, boxes, between)
    groups = assign_one_to_one(texts)
    groups = join_lines(groups, texts)
    return add_pieces(groups, texts)


def left_over(groups: Sequence[Group], pieces: int) -> list[int]:
    """Which of so many pieces belong to no line."""
    taken = {piece for group in groups for piece in group.pieces}
    return [piece for piece in range(pieces) if piece not in taken]


class Texts:
    """What is matched, and how often each character (a column) occurs in each text (a row). These counts say what two
    texts can have in common at most, and cost little for all texts at once. Only characters that both lines and pieces
    have are counted: no other is ever in common."""

    def __init__(self, lines: Sequence[str], pieces: Sequence[str], boxes: Sequence[Box],
                 between: Callable[[], None] = lambda: None):
        self.lines, self.pieces, self.boxes, self.between = lines, pieces, boxes, between
        alphabet = sorted(set("".join(lines)) & set("".join(pieces)))
        columns = {character: column for column, character in enumerate(alphabet)}
        self.line_counts, self.piece_counts = _counts(lines, columns), _counts(pieces, columns)

    def wanted(self, group: Group) -> str:
        return "".join(self.lines[line] for line in group.lines)

    def seen(self, group: Group) -> str:
        return "".join(self.pieces[piece] for piece in group.pieces)

    def shared(self, group: Group) -> int:
        """Characters that what was read has in common with what is expected, in the same order."""
        return lcs_length(self.wanted(group), self.seen(group))

    def unmatched(self, group: Group) -> np.ndarray:
        """Counts of the expected characters minus those read, below 0 where more were read."""
        return self.line_counts[list(group.lines)].sum(0) - self.piece_counts[list(group.pieces)].sum(0)


def _counts(texts: Sequence[str], columns: dict[str, int]) -> np.ndarray:
    counts = np.zeros((len(texts), len(columns)), np.int32)
    for row, text in enumerate(texts):
        np.add.at(counts[row], [columns[character] for character in text if character in columns], 1)
    return counts


@dataclass(frozen=True, order=True)
class Growth:
    """A group as it would be with one line or piece more. The greater one is the better one: the one that gains more,
    and of those the one that lies nearer."""

    gain: int                           # characters more that what was read has in common with what is expected
    nearness: float                     # minus the pixels between the piece and the others of the group
    number: int = field(compare=False)  # of the group that grows
    group: Group = field(compare=False)


# ---------------------------------------------------------------- first pass: one to one

def assign_one_to_one(texts: Texts) -> list[Group]:
    """A group for every line, with the assignment of pieces that fits best over all lines at once."""
    gains = _gains(texts)
    piece_of = {int(line): int(piece) for line, piece in zip(*linear_sum_assignment(gains, maximize=True))
                if gains[line, piece] > 0}
    return [Group((line,), (piece_of[line],) if line in piece_of else ()) for line in range(len(texts.lines))]


def _gains(texts: Texts) -> np.ndarray:
    """How well each piece (a column) fits each line (a row). Only what can share half of the shorter one is tried."""
    gains = np.zeros((len(texts.lines), len(texts.pieces)))
    lengths = np.array([len(piece) for piece in texts.pieces], np.int32)
    for number, line in enumerate(texts.lines):
        texts.between()
        overlap = np.minimum(texts.line_counts[number], texts.piece_counts).sum(1)
        for piece in np.flatnonzero(overlap * 2 >= np.minimum(lengths, len(line))).tolist():
            gains[number, piece] = _gain(line, texts.pieces[piece])
    return gains


def _gain(line: str, piece: str) -> float:
    """Above 0 where they share half of the longer one, or one is a part of the other."""
    longer, shorter = max(len(line), len(piece)), min(len(line), len(piece))
    part = shorter and (piece in line or line in piece)
    if not part and shorter < MIN_SHARE * longer:
        return 0.0
    shared = shorter if part else lcs_length(line, piece)
    if not part and shared < MIN_SHARE * longer:
        return 0.0
    # What differs counts against it, or a part of a long line would be as welcome as the whole of a short one.
    return max(0.0, 2 * shared - 0.5 * (longer + shorter - 2 * shared))


# ---------------------------------------------------------------- second pass: lines that were read as one

def join_lines(groups: Sequence[Group], texts: Texts) -> list[Group]:
    """A missing line may stand in the same piece as another one: the reader has joined them. It is put into the group
    whose pieces hold more of it than any other's, and more than half of it."""
    read = {number: group for number, group in enumerate(groups) if group.pieces}
    missing = {number: group for number, group in enumerate(groups) if not group.pieces}
    if not read:
        return list(groups)
    surplus = np.stack([-texts.unmatched(group) for group in read.values()])
    for number, group in list(missing.items()):
        texts.between()
        best = max(_joinings(group, list(read.values()), surplus, texts), default=None)
        if best is not None:
            read[list(read)[best.number]] = best.group
            surplus[best.number] = -texts.unmatched(best.group)
            del missing[number]
    return [group for _, group in sorted({**read, **missing}.items())]


def _joinings(missing: Group, groups: Sequence[Group], surplus: np.ndarray, texts: Texts) -> Iterator[Growth]:
    """The groups with the missing line in each place between their own lines, where that explains half of it. surplus:
    for each group, counts of the characters that were read beyond its own lines."""
    lacking, length = texts.unmatched(missing), len(texts.wanted(missing))
    # Of the others too little was read beyond their own lines.
    for number in np.flatnonzero(np.minimum(lacking, surplus).clip(0).sum(1) * 2 > length).tolist():
        group, before = groups[number], texts.shared(groups[number])
        for place in range(len(group.lines) + 1):
            grown = Group(group.lines[:place] + missing.lines + group.lines[place:], group.pieces)
            gain = texts.shared(grown) - before
            if gain * 2 > length:
                yield Growth(gain, 0, number, grown)


# ---------------------------------------------------------------- third pass: lines that were read in pieces

def add_pieces(groups: Sequence[Group], texts: Texts) -> list[Group]:
    """A piece that is left over may be a part of a line that was read in several. A piece that found no place may find
    one beside those that did, so that all are tried again until none is added."""
    before, groups = list(groups), _add_pieces_once(groups, texts)
    while groups != before:
        before, groups = groups, _add_pieces_once(groups, texts)
    return groups


def _add_pieces_once(groups: Sequence[Group], texts: Texts) -> list[Group]:
    """With every piece that is left over in the group that it helps most, if it helps one; the longest first."""
    grown = list(groups)
    unmatched = np.stack([texts.unmatched(group) for group in groups])
    for piece in sorted(left_over(groups, len(texts.pieces)), key=lambda piece: -len(texts.pieces[piece])):
        texts.between()
        best = max(_additions(piece, grown, unmatched, texts), default=None)
        if best is not None:
            grown[best.number] = best.group
            unmatched[best.number] = texts.unmatched(best.group)
    return grown


def _additions(piece: int, groups: Sequence[Group], unmatched: np.ndarray, texts: Texts) -> Iterator[Growth]:
    """The likely groups with the piece, in each order of reading in which half of it is new."""
    for number in _likely(piece, groups, unmatched, texts):
        group = groups[number]
        before, gap = texts.shared(group), _gap(piece, group.pieces, texts.boxes)
        for order in reading_orders([*group.pieces, piece], texts.boxes):
            grown = Group(group.lines, tuple(order))
            gain = texts.shared(grown) - before
            if gain * 2 > len(texts.pieces[piece]):
                yield Growth(gain, -gap, number, grown)


def _likely(piece: int, groups: Sequence[Group], unmatched: np.ndarray, texts: Texts) -> list[int]:
    """Numbers of the groups that lack more than half of a piece's characters. First those with a line that holds the
    piece as it is, then those that lack most; only the first few, as to try one is dear."""
    text = texts.pieces[piece]
    helped = np.minimum(texts.piece_counts[piece], unmatched).clip(0).sum(1)
    likely: list[int] = np.flatnonzero(helped * 2 > len(text)).tolist()
    likely.sort(key=lambda number: (text in texts.wanted(groups[number]), helped[number]), reverse=True)
    return likely[:MAX_TRIED]


def _gap(piece: int, others: Sequence[int], boxes: Sequence[Box]) -> float:
    """Pixels between a piece and the nearest of the others; 0 where there are none."""
    box = boxes[piece]
    return min((max(0, box.left - other.right, other.left - box.right)
                + max(0, box.top - other.bottom, other.top - box.bottom)
                for other in (boxes[number] for number in others)), default=0)


# ---------------------------------------------------------------- orders of reading

def reading_orders(pieces: Sequence[int], boxes: Sequence[Box]) -> list[list[int]]:
    """The ways in which people read pieces: in rows, or in columns from the right or from the left."""
    tops = {piece: (boxes[piece].top + boxes[piece].bottom) / 2 for piece in pieces}
    lefts = {piece: (boxes[piece].left + boxes[piece].right) / 2 for piece in pieces}
    rows = _bands(tops, {piece: boxes[piece].height for piece in pieces})
    columns = _bands(lefts, {piece: boxes[piece].width for piece in pieces})
    return [sorted(pieces, key=lambda piece: (rows[piece], lefts[piece])),
            sorted(pieces, key=lambda piece: (-columns[piece], tops[piece])),
            sorted(pieces, key=lambda piece: (columns[piece], tops[piece]))]


def _bands(middles: dict[int, float], sizes: dict[int, int]) -> dict[int, int]:
    """The number of the row (or column) that each piece stands in: the next one starts half a piece further on."""
    bands: dict[int, int] = {}
    band = 0
    start: int | None = None
    for piece in sorted(middles, key=middles.__getitem__):
        if start is not None and middles[piece] - middles[start] > min(sizes[piece], sizes[start]) / 2:
            band += 1
            start = None
        start = piece if start is None else start
        bands[piece] = band
    return bands


# ---------------------------------------------------------------- what two texts have in common

def lcs_length(first: str, second: str) -> int:
    """Length of the longest common subsequence, all of `second` at once in the bits of an integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for index, character in enumerate(second):
        places[character] = places.get(character, 0) | 1 << index
    every = (1 << len(second)) - 1
    row = every
    for character in first:
        match = row & places.get(character, 0)
        row = (row + match | row - match) & every
    return len(second) - row.bit_count()
