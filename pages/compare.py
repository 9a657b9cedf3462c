"""Does an image say what it should? Lines that were read in it against the lines that were expected.

Two lines are equal when their comparable forms are. Always folded: Unicode compatibility (NFKC: full-width forms,
ligatures, composed and decomposed accents), kinds of dashes and quotation marks, spaces, and everything invisible
(control and zero-width characters, directional marks, variation selectors). Unless asked otherwise also folded:
upper and lower case, and punctuation, which only counts between two digits (1.50 is not 150) and as % & @ #.
Never folded: letters, accents, digits, simplified and traditional characters.
"""
import unicodedata
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..messages import Message, Refusal
from ..model.images.boxes import Box
from .matching import left_over, match
from .placement import IN_BOX, Place, by_place, out_of_order, overlap

RIGHT, WRONG, MISSING, UNREADABLE = "right", "wrong", "missing", "unreadable"
MISPLACED = "misplaced"  # right, and not in its box
FAILED = (WRONG, MISSING, MISPLACED)
MIN_CONFIDENCE = 0.5  # of what was read without being expected, to count as writing; the reader's own figure
MIN_EXTRA = 2         # characters; a single one is more often a shape than a letter

# To compare costs the product of what is expected and what was read; a newspaper's page stays below all three.
MAX_CHARACTERS, MAX_LINES, MAX_LINE_LENGTH = 50_000, 1_000, 2_000

FOLDED = str.maketrans({**dict.fromkeys("‐‑‒–—―−﹣", "-"), **dict.fromkeys("‘’‚‛′`´", "'"),
                        **dict.fromkeys("“”„‟″«»「」『』", '"'), "。": ".", "、": ",", "・": "·", "•": "·"})
FIRST_ORNAMENT, SYMBOLS = "\u2300", ("So", "Sk")  # before it: ° © ® ™ and arrows, which do count
MEANINGFUL = frozenset("%&@#")  # punctuation by its category, but read aloud


@dataclass(frozen=True)
class Rules:
    """What counts as equal, and when an image passes."""

    match_case: bool = False
    match_punctuation: bool = False
    tolerance: float = 0.0      # the largest normalized edit distance of a line that still is right
    allow_extra: bool = False   # whether the image may say more than what is expected
    known: Container[str] | None = None  # characters that the reader can read; None: all


@dataclass(frozen=True)
class Found:
    """A piece of writing as it was read: confidence in [0, 1], box in pixels of the image."""

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
    place: Place | None = None  # where a layout wants it
    inside: float = 1.0         # share of its writing that lies there


@dataclass(frozen=True)
class Comparison:
    """lines: as expected, in their order. extra: read and not expected. doubtful: what could hardly be read.
    out_of_order: names of a layout's boxes that are read in another order than the layout's."""

    lines: tuple[Line, ...]
    extra: tuple[Found, ...]
    doubtful: tuple[Found, ...]
    score: float
    word_accuracy: float
    passed: bool
    out_of_order: tuple[str, ...] = ()

    @property
    def failed(self) -> list[Line]:
        return [line for line in self.lines if line.status in FAILED]

    @property
    def missing_boxes(self) -> list[str]:
        """Names of a layout's boxes of which no line was read."""
        found = {line.place.name for line in self.lines if line.place and line.status != MISSING}
        return [name for name in dict.fromkeys(line.place.name for line in self.lines if line.place)
                if name not in found]


# ---------------------------------------------------------------- what is equal

def expected_lines(text: str) -> list[str]:
    """The lines of an expected text, without empty and invisible ones. Raises ValueError when none is left, or for more
    than an image can show."""
    if len(text) > MAX_CHARACTERS:
        raise Refusal("expected_long", "The expected text has {count} characters; at most {max} fit into one image. "
                      "Check that Expected text holds the words of one image.", count=f"{len(text):,}",
                      max=f"{MAX_CHARACTERS:,}")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if units(line, Rules(match_punctuation=True))]
    if not lines:
        raise Refusal("no_text_expected", "Expected text is empty. Write the lines that the image should show, one per "
                      "line.")
    if len(lines) > MAX_LINES or max(map(len, lines)) > MAX_LINE_LENGTH:
        raise Refusal("expected_lines", "The expected text has {lines} lines, the longest of {characters} characters; "
                      "at most {most} lines of {longest} characters can be compared.", lines=f"{len(lines):,}",
                      characters=f"{max(map(len, lines)):,}", most=f"{MAX_LINES:,}", longest=f"{MAX_LINE_LENGTH:,}")
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
    knows more than a thousand: they are images, and every font draws others."""
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


# ---------------------------------------------------------------- the verdict

def compare(lines: Sequence[str], found: Sequence[Found], rules: Rules,
            between: Callable[[], None] = lambda: None, places: Sequence[Place] = ()) -> Comparison:
    """Expected lines against what was read. Raises ValueError where the reader knows the script of none of them.

    `between` is called again and again, and may raise. places: where a layout wants each line; none without one.
    """
    judged, boxes = _judged(lines, rules), [piece.box for piece in found]
    texts = [comparable(piece.text, rules) for piece in found]
    groups = match([comparable(lines[number], rules) for number in judged], texts, boxes, between)
    if places:
        groups = by_place(groups, texts, boxes, [places[number] for number in judged])
    verdicts = {number: Line(line, UNREADABLE) for number, line in enumerate(lines)}
    for group in groups:
        between()
        numbers = [judged[number] for number in group.lines]
        pieces = [found[number] for number in group.pieces]
        verdicts |= zip(numbers, _verdicts([lines[number] for number in numbers], pieces, rules))
    left = [found[number] for number in left_over(groups, len(found))]
    extra = [piece for piece in left if piece.confidence >= MIN_CONFIDENCE
             and len(comparable(piece.text, rules)) >= MIN_EXTRA]
    inside = tuple(_placed(verdicts[number], places[number]) if places else verdicts[number]
                   for number in range(len(lines)))
    return _summed(inside, tuple(extra), tuple(piece for piece in left if piece not in extra), rules)


def _placed(line: Line, place: Place) -> Line:
    """The line with what its place makes of it."""
    inside = overlap(line.boxes, place.box) if line.boxes else 1.0
    status = MISPLACED if line.status == RIGHT and inside <= IN_BOX else line.status
    return replace(line, status=status, place=place, inside=inside)


def _judged(lines: Sequence[str], rules: Rules) -> list[int]:
    """Numbers of the lines that the reader can read; refuses where there is none."""
    judged = [number for number, line in enumerate(lines) if not unreadable(line, rules) and comparable(line, rules)]
    if not judged:
        unknown = (" ".join(sorted({letter for line in lines for letter in unreadable(line, rules)})[:10])
                   or Message("only_signs", "only punctuation"))
        raise Refusal("script_unknown", "The OCR model reads Latin, Greek, Chinese and Japanese, and none of the "
                      "expected lines is in these scripts ({scripts}).", scripts=unknown)
    return judged


def _verdicts(lines: Sequence[str], pieces: Sequence[Found], rules: Rules) -> Iterator[Line]:
    """What became of each line of a group; pieces: what was read of them all, in reading order."""
    wanted = [units(line, rules) for line in lines]
    seen = "".join(comparable(piece.text, rules) for piece in pieces)
    alignment = align("".join(character for line in wanted for character, _ in line), seen)
    found, boxes = " ".join(piece.text for piece in pieces), tuple(piece.box for piece in pieces)
    start = 0
    for line, characters in zip(lines, wanted):
        end = start + len(characters)
        # What was inserted between two joined lines counts for the first of them.
        first = start if start == 0 else start + 1
        inserted = sum(alignment.inserted[first:end + 1])
        errors = alignment.kept[start:end].count(False) + inserted
        longer = max(len(characters), len(seen)) if len(lines) == 1 else len(characters)
        distance = errors / longer
        status = MISSING if not pieces else RIGHT if distance <= rules.tolerance else WRONG
        yield Line(line, status, found, errors, min(1.0, distance), *_words(characters, alignment, start), boxes)
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
    """score: 1 - errors / characters, over all lines; characters of extra lines are errors, unless they are allowed.
    With a layout the lines of a box are summed first, and boxes count by their area."""
    judged = [line for line in lines if line.status != UNREADABLE]
    surplus = 0 if rules.allow_extra else sum(len(comparable(piece.text, rules)) for piece in extra)
    sizes = [len(comparable(line.expected, rules)) for line in judged]
    size, words = sum(sizes), sum(line.words for line in judged)
    if judged[0].place:
        score = _by_area(judged, sizes) * size / (size + surplus)
    else:
        score = max(0.0, 1 - (sum(line.errors for line in judged) + surplus) / (size + surplus))
    return Comparison(
        lines, extra, doubtful, score,
        word_accuracy=sum(line.right_words for line in judged) / words,
        passed=all(line.status == RIGHT for line in judged) and (rules.allow_extra or not extra),
        out_of_order=tuple(_out_of_order(judged)))


def _by_area(lines: Sequence[Line], sizes: Sequence[int]) -> float:
    """The share of the boxes' area that is right. Of a line outside of its box only the share inside counts."""
    boxes: dict[Place, list[tuple[float, int]]] = {}
    for line, size in zip(lines, sizes):
        assert line.place is not None
        right = max(0.0, size - line.errors) * (1.0 if line.inside > IN_BOX else line.inside)
        boxes.setdefault(line.place, []).append((right, size))
    areas = {place: place.box.width * place.box.height for place in boxes}
    return sum(areas[place] * sum(right for right, _ in parts) / sum(size for _, size in parts)
               for place, parts in boxes.items()) / sum(areas.values())


def _out_of_order(lines: Sequence[Line]) -> list[str]:
    placed = [line for line in lines if line.place]
    return out_of_order([line.place for line in placed if line.place], [line.boxes for line in placed])
