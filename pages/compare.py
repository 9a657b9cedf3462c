"""Does a picture say what it should? Lines that were read in it against the lines that were expected.

Two lines are equal when their comparable forms are. Always folded: Unicode compatibility (NFKC: full-width forms,
ligatures, composed and decomposed accents), kinds of dashes and quotation marks, spaces, and everything invisible
(control and zero-width characters, directional marks, variation selectors). Unless asked otherwise also folded:
upper and lower case, and punctuation, which only counts between two digits (1.50 is not 150) and as % & @ #.
Never folded: letters, accents, digits, simplified and traditional characters.
"""
import unicodedata
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..messages import Message, Refusal
from ..model.images.regions import Box

RIGHT, WRONG, MISSING, UNREADABLE = "right", "wrong", "missing", "unreadable"
LEAST_CONFIDENCE = 0.5  # of what was read without being expected, to count as writing; the reader's own figure
LEAST_EXTRA = 2         # characters; a single one is more often a shape than a letter
LEAST_SHARE = 0.5       # of two lines that they have in common, to be taken for the same one
MOST_TRIED = 8          # lines that a left-over piece is tried in

FOLDED = str.maketrans({**dict.fromkeys("‐‑‒–—―−﹣", "-"), **dict.fromkeys("‘’‚‛′`´", "'"),
                        **dict.fromkeys("“”„‟″«»「」『』", '"'), "。": ".", "、": ",", "・": "·", "•": "·"})
FIRST_ORNAMENT, SYMBOLS = "\u2300", ("So", "Sk")  # before it: ° © ® ™ and arrows, which do count
MEANINGFUL = frozenset("%&@#")  # punctuation by its category, but read aloud


@dataclass(frozen=True)
class Rules:
    """What counts as equal, and when a picture passes."""

    match_case: bool = False
    match_punctuation: bool = False
    tolerance: float = 0.0      # the largest normalised edit distance of a line that still is right
    allow_extra: bool = False   # whether the picture may say more than what is expected
    known: Container[str] | None = None  # characters that the reader can read; None: all


@dataclass(frozen=True)
class Found:
    """A piece of writing as it was read: confidence in [0, 1], box in pixels of the picture."""

    text: str
    box: Box
    confidence: float = 1.0


@dataclass(frozen=True)
class Line:
    """What became of one expected line. errors: insertions, deletions and replacements; distance: errors to the
    characters of the longer of both, in [0, 1]."""

    expected: str
    status: str
    found: str = ""
    errors: int = 0
    distance: float = 0.0
    words: int = 0
    right_words: int = 0
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """lines: as expected, in their order. extra: read and not expected. doubtful: what could hardly be read."""

    lines: tuple[Line, ...]
    extra: tuple[Found, ...]
    doubtful: tuple[Found, ...]
    score: float
    word_accuracy: float
    passed: bool

    @property
    def failed(self) -> list[Line]:
        return [line for line in self.lines if line.status in (WRONG, MISSING)]


# ---------------------------------------------------------------- what is equal

def expected_lines(text: str) -> list[str]:
    """The lines of an expected text, without empty and invisible ones. Raises ValueError when none is left."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if units(line, Rules(match_punctuation=True))]
    if not lines:
        raise Refusal("no_text_expected", "No text is expected: write the lines that the picture should show into "
                      "expected_text, one per line.")
    return lines


def comparable(text: str, rules: Rules) -> str:
    """The form in which lines are compared, see above."""
    return "".join(character for character, _ in units(text, rules))


def units(text: str, rules: Rules) -> list[tuple[str, int]]:
    """Characters of the comparable form, each with the number of its word. Each Chinese character is a word."""
    found, word = [], 0
    for character in unicodedata.normalize("NFKC", text).translate(FOLDED):
        if character.isspace() or _is_ideograph(character):
            word += 1
        if not character.isspace() and not is_invisible(character) and not _is_unknown_mark(character, rules):
            found += [(part, word) for part in (character if rules.match_case else character.casefold())]
        word += _is_ideograph(character)
    if rules.match_punctuation:
        return found
    return [unit for index, unit in enumerate(found) if not _is_punctuation(unit[0]) or _between_digits(found, index)]


def is_invisible(character: str) -> bool:
    return unicodedata.category(character)[0] == "C" or "VARIATION SELECTOR" in unicodedata.name(character, "")


def unreadable(text: str, rules: Rules) -> list[str]:
    """Letters and digits of a line that the reader does not know: nothing it says about such a line means anything."""
    if rules.known is None:
        return []
    return sorted({character for character in unicodedata.normalize("NFKC", text)
                   if character.isalnum() and character not in rules.known})


def _is_unknown_mark(character: str, rules: Rules) -> bool:
    """Signs that the reader cannot read are left out of the comparison, and so are all emoji and ornaments, though it
    knows more than a thousand: they are pictures, and every font draws others."""
    if rules.known is None or character.isalnum():
        return False
    return character not in rules.known or (character >= FIRST_ORNAMENT and unicodedata.category(character) in SYMBOLS)


def _is_ideograph(character: str) -> bool:
    return "\u3040" <= character <= "\u30ff" or "\u3400" <= character <= "\u9fff" or "\uf900" <= character <= "\ufaff" \
        or "\U00020000" <= character <= "\U0003ffff"


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] == "P" and character not in MEANINGFUL


def _between_digits(found: list[tuple[str, int]], index: int) -> bool:
    return 0 < index < len(found) - 1 and found[index - 1][0].isdigit() and found[index + 1][0].isdigit()


# ---------------------------------------------------------------- distances

def common(first: str, second: str) -> int:
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


class Alignment(NamedTuple):
    """kept: for each expected character whether it was found. inserted: found characters in front of each expected
    one, and at the end. Errors (Levenshtein) are those not kept and those inserted."""

    kept: list[bool]
    inserted: list[int]


def align(expected: str, found: str) -> Alignment:
    """A cheapest way from one text to the other."""
    head = next((i for i, pair in enumerate(zip(expected, found)) if pair[0] != pair[1]),
                min(len(expected), len(found)))
    rest = min(len(expected), len(found)) - head
    tail = next((i for i in range(rest) if expected[-1 - i] != found[-1 - i]), rest)
    middle = _align(expected[head:len(expected) - tail], found[head:len(found) - tail])
    return Alignment([True] * head + middle.kept + [True] * tail, [0] * head + middle.inserted + [0] * tail)


def _align(expected: str, found: str) -> Alignment:
    rows = [list(range(len(found) + 1))]
    for i, wanted in enumerate(expected, start=1):
        above, row = rows[-1], [i]
        for j, seen in enumerate(found, start=1):
            row.append(min(above[j - 1] + (wanted != seen), above[j] + 1, row[j - 1] + 1))
        rows.append(row)
    kept, inserted = [False] * len(expected), [0] * (len(expected) + 1)
    i, j = len(expected), len(found)
    while i or j:
        same = i and j and expected[i - 1] == found[j - 1]
        if i and j and rows[i][j] == rows[i - 1][j - 1] + (not same):
            i, j = i - 1, j - 1
            kept[i] = bool(same)
        elif i and rows[i][j] == rows[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
            inserted[i] += 1
    return Alignment(kept, inserted)


# ---------------------------------------------------------------- who is who

@dataclass
class Group:
    """Expected lines (numbers) and what was read of them (numbers), in reading order: one of each, a line in several
    pieces, or several lines that were read as one."""

    lines: list[int]
    pieces: list[int] = field(default_factory=list)


class Matching:
    """Gives each expected line what was read of it. Texts are comparable forms."""

    def __init__(self, lines: Sequence[str], pieces: Sequence[str], boxes: Sequence[Box]):
        self.lines, self.pieces, self.boxes = lines, pieces, boxes
        # How often each character occurs: an upper bound of what two texts have in common, cheap for all at once.
        numbers = {character: number for number, character in enumerate(sorted(set("".join([*lines, *pieces]))))}
        self.line_counts, self.piece_counts = (_counts(texts, numbers) for texts in (lines, pieces))
        self.groups = self._one_to_one()
        self._join_lines()
        while self._add_pieces():
            pass

    @property
    def left(self) -> list[int]:
        """Numbers of the pieces that belong to no line."""
        taken = {piece for group in self.groups for piece in group.pieces}
        return [piece for piece in range(len(self.pieces)) if piece not in taken]

    def wanted(self, lines: Iterable[int]) -> str:
        return "".join(self.lines[line] for line in lines)

    def seen(self, pieces: Iterable[int]) -> str:
        return "".join(self.pieces[piece] for piece in pieces)

    def _unmatched(self, group: Group) -> np.ndarray:
        """Counts of a group's expected characters minus those read, below 0 where more were read."""
        return self.line_counts[group.lines].sum(0) - self.piece_counts[group.pieces].sum(0)

    def _one_to_one(self) -> list[Group]:
        """The assignment with the most in common over all lines at once."""
        gains = np.zeros((len(self.lines), len(self.pieces)))
        lengths = self.piece_counts.sum(1)
        for number, line in enumerate(self.lines):
            overlap = np.minimum(self.line_counts[number], self.piece_counts).sum(1)
            for piece in np.flatnonzero(overlap * 2 >= np.minimum(lengths, len(line))):
                gains[number, piece] = _gain(line, self.pieces[piece])
        groups = [Group([line]) for line in range(len(self.lines))]
        for line, piece in zip(*linear_sum_assignment(gains, maximize=True)):
            if gains[line, piece] > 0:
                groups[line].pieces.append(int(piece))
        return groups

    def _join_lines(self) -> None:
        """A missing line may stand in the same piece as another one: the reader has joined them."""
        for alone in [group for group in self.groups if not group.pieces]:
            text, counts = self.wanted(alone.lines), self.line_counts[alone.lines].sum(0)
            best = None
            for group in self.groups:
                if np.minimum(counts, -self._unmatched(group)).clip(0).sum() * 2 <= len(text):
                    continue
                seen = self.seen(group.pieces)
                before = common(self.wanted(group.lines), seen)
                for place in range(len(group.lines) + 1):
                    lines = group.lines[:place] + alone.lines + group.lines[place:]
                    gain = common(self.wanted(lines), seen) - before
                    if gain * 2 > len(text) and (best is None or gain > best[0]):
                        best = gain, group, lines
            if best:
                best[1].lines = best[2]
                self.groups.remove(alone)

    def _add_pieces(self) -> bool:
        """A piece that is left over may be a part of a line that has been read in several; says whether one was."""
        unmatched = np.stack([self._unmatched(group) for group in self.groups])
        changed = False
        for piece in sorted(self.left, key=lambda piece: -len(self.pieces[piece])):
            text, best = self.pieces[piece], None
            helped = np.minimum(self.piece_counts[piece], unmatched).clip(0).sum(1)
            likely = list(np.flatnonzero(helped * 2 > len(text)))
            likely.sort(key=lambda number: (text in self.wanted(self.groups[number].lines), helped[number]),
                        reverse=True)
            for number in likely[:MOST_TRIED]:
                group = self.groups[number]
                wanted = self.wanted(group.lines)
                before = common(wanted, self.seen(group.pieces))
                for order in self._orders([*group.pieces, piece]):
                    gain = common(wanted, self.seen(order)) - before
                    rank = gain, -self._gap(piece, group.pieces)
                    if gain * 2 > len(text) and (best is None or rank > best[0]):
                        best = rank, number, order
            if best:
                self.groups[best[1]].pieces = best[2]
                unmatched[best[1]] -= self.piece_counts[piece]
                changed = True
        return changed

    def _orders(self, pieces: list[int]) -> list[list[int]]:
        """The ways in which people read pieces: in rows, or in columns from the right or from the left."""
        tops = {piece: (self.boxes[piece].top + self.boxes[piece].bottom) / 2 for piece in pieces}
        lefts = {piece: (self.boxes[piece].left + self.boxes[piece].right) / 2 for piece in pieces}
        rows = _bands(tops, {piece: self.boxes[piece].height for piece in pieces})
        columns = _bands(lefts, {piece: self.boxes[piece].width for piece in pieces})
        return [sorted(pieces, key=lambda piece: (rows[piece], lefts[piece])),
                sorted(pieces, key=lambda piece: (-columns[piece], tops[piece])),
                sorted(pieces, key=lambda piece: (columns[piece], tops[piece]))]

    def _gap(self, piece: int, others: list[int]) -> float:
        """Pixels between a piece and the nearest of the others."""
        box = self.boxes[piece]
        return min((max(0, box.left - other.right, other.left - box.right)
                    + max(0, box.top - other.bottom, other.top - box.bottom)
                    for other in (self.boxes[number] for number in others)), default=0)


def _counts(texts: Sequence[str], numbers: dict[str, int]) -> np.ndarray:
    """How often each character (its column) occurs in each text (its row)."""
    counts = np.zeros((len(texts), len(numbers)), np.int32)
    for row, text in enumerate(texts):
        np.add.at(counts[row], [numbers[character] for character in text], 1)
    return counts


def _bands(middles: dict[int, float], sizes: dict[int, int]) -> dict[int, int]:
    """The number of the row (or column) that each piece stands in: the next one starts half a piece further on."""
    bands, band, start = {}, 0, None
    for piece in sorted(middles, key=middles.get):
        if start is not None and middles[piece] - middles[start] > min(sizes[piece], sizes[start]) / 2:
            band += 1
            start = None
        start = piece if start is None else start
        bands[piece] = band
    return bands


def _gain(line: str, piece: str) -> float:
    """How well a piece fits a line: above 0 where they share half of the longer one, or one is a part of the other."""
    longer, shorter = max(len(line), len(piece)), min(len(line), len(piece))
    part = shorter and (piece in line or line in piece)
    if not part and shorter < LEAST_SHARE * longer:
        return 0.0
    shared = shorter if part else common(line, piece)
    if not part and shared < LEAST_SHARE * longer:
        return 0.0
    # What differs counts against it, or a part of a long line would be as welcome as the whole of a short one.
    return max(0.0, 2 * shared - 0.5 * (longer + shorter - 2 * shared))


# ---------------------------------------------------------------- the verdict

def compare(lines: Sequence[str], found: Sequence[Found], rules: Rules) -> Comparison:
    """Expected lines against what was read."""
    judged = [number for number, line in enumerate(lines) if not unreadable(line, rules)
              and comparable(line, rules)]
    if not judged:
        unknown = (" ".join(sorted({letter for line in lines for letter in unreadable(line, rules)})[:10])
                   or Message("only_signs", "only signs"))
        raise Refusal("script_unknown", "The reader knows none of the expected lines' script ({scripts}): it reads "
                      "Latin, Greek, Chinese and Japanese.", scripts=unknown)
    matching = Matching([comparable(lines[number], rules) for number in judged],
                        [comparable(piece.text, rules) for piece in found], [piece.box for piece in found])
    verdicts = {number: Line(line, UNREADABLE) for number, line in enumerate(lines)}
    for group in matching.groups:
        for number, verdict in _verdicts(group, matching, [lines[number] for number in judged], found, rules):
            verdicts[judged[number]] = verdict
    left = [found[number] for number in matching.left]
    extra = [piece for piece in left if piece.confidence >= LEAST_CONFIDENCE
             and len(comparable(piece.text, rules)) >= LEAST_EXTRA]
    return _summed(tuple(verdicts[number] for number in range(len(lines))), tuple(extra),
                   tuple(piece for piece in left if piece not in extra), rules)


def _verdicts(group: Group, matching: Matching, lines: Sequence[str], found: Sequence[Found], rules: Rules):
    """(number of the line, its Line) for the lines of a group."""
    pieces = [found[number] for number in group.pieces]
    seen = matching.seen(group.pieces)
    alignment = align(matching.wanted(group.lines), seen)
    alone, start = len(group.lines) == 1, 0
    for place, number in enumerate(group.lines):
        wanted = units(lines[number], rules)
        end = start + len(wanted)
        # What was inserted between two joined lines counts for the first of them.
        first = start if place == 0 else start + 1
        inserted = sum(alignment.inserted[first:end + 1])
        errors = alignment.kept[start:end].count(False) + inserted
        distance = errors / max(len(wanted), alone and len(seen))
        words, right = _words(wanted, alignment, start)
        status = MISSING if not pieces else RIGHT if distance <= rules.tolerance else WRONG
        yield number, Line(lines[number], status, " ".join(piece.text for piece in pieces), errors,
                           min(1.0, distance), words, right, tuple(piece.box for piece in pieces))
        start = end


def _words(wanted: list[tuple[str, int]], alignment: Alignment, start: int) -> tuple[int, int]:
    """Words of a line, and how many were found without a wrong, missing or additional character."""
    words: dict[int, bool] = {}
    for index, (_, word) in enumerate(wanted):
        whole = alignment.kept[start + index] and not (word in words and alignment.inserted[start + index])
        words[word] = words.get(word, True) and whole
    return len(words), sum(words.values())


def _summed(lines: tuple[Line, ...], extra: tuple[Found, ...], doubtful: tuple[Found, ...], rules: Rules
            ) -> Comparison:
    """score: 1 - errors / characters, over all lines; characters of extra lines are errors, unless they are allowed."""
    judged = [line for line in lines if line.status != UNREADABLE]
    surplus = 0 if rules.allow_extra else sum(len(comparable(piece.text, rules)) for piece in extra)
    errors = sum(line.errors for line in judged)
    size = sum(len(comparable(line.expected, rules)) for line in judged)
    words = sum(line.words for line in judged)
    return Comparison(
        lines, extra, doubtful,
        score=max(0.0, 1 - (errors + surplus) / (size + surplus)),
        word_accuracy=sum(line.right_words for line in judged) / words,
        passed=all(line.status == RIGHT for line in judged) and (rules.allow_extra or not extra))
