"""Wrong words of a picture, repaired in a loop: find what failed, edit it, read again, keep what reads better.

The reader and the edit are handed in, so nothing here knows a model. Boxes are pixels of the picture.
"""
import json
import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..messages import Message
from ..model.images.boxes import Box
from . import report
from .compare import FAILED, MISSING, RIGHT, UNREADABLE, Comparison, Line
from .layout import VERTICAL, Layout
from .layout import Box as PageBox
from .quotation import quote
from .report import GROWN
from .vocabulary import ENGLISH

Picture = TypeVar("Picture")

COLUMN = 1.5      # height to width from which on Chinese stands in a column
SHORTER = 0.8     # of the expected characters: where fewer were read, their place is too small for all of them
BAND_ROOM = 0.1   # of an empty band's height, kept free at its edges
WORDS = "<words>"  # where an instruction of the user's wants the words; else they stand at its end
KEEP = ("Keep the typeface, the size, the colour and the direction of the old lettering, and everything else exactly "
        "as it is. The words:")
CORRECT = ("Correct the lettering in <image1>: set the words exactly as in <image2>, letter by letter, each in its "
           f"place. {KEEP}")
CORRECT_ALONE = f"Correct the lettering: set these words, letter by letter. {KEEP}"
REMOVE = "Remove the lettering and fill its place with what surrounds it. Keep everything else exactly as it is."


@dataclass(frozen=True)
class Written:
    """What must stand in a place; texts that were read as one, or lie in one box, on a line each."""

    text: str
    box: Box


@dataclass(frozen=True)
class Region:
    """A part to edit. lines: all that must be written in it afterwards, what was right included; none: its lettering
    must go."""

    box: Box
    lines: tuple[Written, ...]


@dataclass(frozen=True)
class Attempt:
    region: Region
    number: int   # of the edit, counted from 0 over all rounds: its seed is the first one plus this
    score: float  # of the whole picture with it
    kept: bool


@dataclass(frozen=True)
class Round:
    attempts: tuple[Attempt, ...]
    score: float
    passed: bool


@dataclass(frozen=True)
class Outcome(Generic[Picture]):
    picture: Picture
    first: Comparison  # of the picture as it came
    found: Comparison  # of the picture as it is now
    rounds: tuple[Round, ...]

    @property
    def repaired(self) -> list[Box]:
        """What was edited and kept."""
        return [attempt.region.box for one in self.rounds for attempt in one.attempts if attempt.kept]


# ---------------------------------------------------------------- the loop

def repair(picture: Picture, check: Callable[[Picture], Comparison], edit: Callable[[Picture, Region, int], Picture],
           failed: Callable[[Comparison], Sequence[Region]], attempts: int,
           told: Callable[[int, int, int, float], None] = lambda *_: None) -> Outcome[Picture]:
    """The picture after at most so many rounds. In each, every region that failed is edited once, and an edit is kept
    only if the whole picture reads better with it.

    edit: the picture with one region changed; its number is another one each time. failed: the regions of a
    comparison. told: round, region and regions (from 1), and the score so far, before each edit. Any may raise.
    """
    first = found = check(picture)
    rounds: list[Round] = []
    number = 0
    while not found.passed and len(rounds) < attempts:
        tried: list[Attempt] = []
        regions = failed(found)
        for region in regions:
            told(len(rounds) + 1, len(tried) + 1, len(regions), found.score)
            candidate = edit(picture, region, number)
            verdict = check(candidate)
            kept = (verdict.passed, verdict.score) > (found.passed, found.score)
            tried.append(Attempt(region, number, verdict.score, kept))
            picture, found = (candidate, verdict) if kept else (picture, found)
            number += 1
            if found.passed:
                break
        rounds.append(Round(tuple(tried), found.score, found.passed))
    return Outcome(picture, first, found, tuple(rounds))


# ---------------------------------------------------------------- what failed

def failed_regions(found: Comparison, width: int, height: int, allow_extra: bool = False) -> list[Region]:
    """Where a picture of this size must be edited: around wrong lines, in the boxes of lines that are missing or stand
    elsewhere, around what should not be there. Boxes that touch are one region, and a right line that touches one
    belongs to it, with its words.

    Without a layout a missing line has no place: it goes where something could hardly be read or is not expected, else
    into the highest band of the picture without writing.
    """
    whole = Box(0, 0, width, height)
    strays = [piece.box for piece in found.extra] + [piece.box for piece in found.doubtful]
    targets = _targets(found.lines, strays, whole)
    failing = {number: line for number, line in enumerate(found.lines) if line.status in FAILED}
    areas = [targets[number] if line.place or line.status == MISSING else _grown(targets[number], whole)
             for number, line in failing.items()]
    areas += [_grown(box, whole) for line in failing.values() for box in line.boxes]
    if not allow_extra:
        areas += [_grown(piece.box, whole) for piece in found.extra]
    right = [targets[number] for number, line in enumerate(found.lines) if line.status == RIGHT]
    return [Region(area, _written(area, found.lines, targets)) for area in joined(areas, right)]


def _targets(lines: Sequence[Line], strays: Sequence[Box], whole: Box) -> dict[int, Box]:
    """Where each line must be written, by its number; of what nobody can judge nothing is known."""
    targets: dict[int, Box] = {}
    free = sorted((_grown(box, whole) for box in strays), key=lambda box: (box.top, box.left)) or [
        _empty_band([box for line in lines for box in line.boxes], whole)]
    for number, line in enumerate(lines):
        if line.status == UNREADABLE:
            continue
        if line.status != RIGHT and line.place:
            targets[number] = line.place.box
        elif line.boxes:
            targets[number] = _wide_enough(around(line.boxes), line, whole)
        else:
            assert line.status == MISSING
            targets[number] = free.pop(0) if len(free) > 1 else free[0]
    return targets


def _empty_band(boxes: Sequence[Box], whole: Box) -> Box:
    """The highest band across the picture in which none of the boxes lies, the first of equal ones; it touches none."""
    found, top = [], whole.top
    for box in sorted(boxes, key=lambda box: box.top):
        found.append((top, box.top))
        top = max(top, box.bottom)
    top, bottom = max([*found, (top, whole.bottom)], key=lambda band: band[1] - band[0])
    room = math.ceil(BAND_ROOM * (bottom - top))
    return Box(whole.left, top + room, whole.right, bottom - room) if bottom - top > 2 * room else whole


def _wide_enough(box: Box, line: Line, whole: Box) -> Box:
    """Of a line of which too little was read: with room for all of it, along its longer side."""
    if line.status == RIGHT or len(line.found) >= SHORTER * len(line.expected):
        return box
    more = len(line.expected) / max(1, len(line.found)) - 1
    across, down = (0, round(more * box.height / 2)) if _stands(line.expected, box) else (
        round(more * box.width / 2), 0)
    return _within(Box(box.left - across, box.top - down, box.right + across, box.bottom + down), whole)


def _written(area: Box, lines: Sequence[Line], targets: dict[int, Box]) -> tuple[Written, ...]:
    """The lines that belong into an area, in their order; those with one place together."""
    texts: dict[Box, list[str]] = {}
    for number, box in targets.items():
        if contains(area, box):
            texts.setdefault(box, []).append(lines[number].expected)
    return tuple(Written("\n".join(lines), box) for box, lines in texts.items())


def joined(areas: Iterable[Box], others: Sequence[Box]) -> list[Box]:
    """The areas, those that touch as one, each with the others that touch it; from top to bottom."""
    regions: list[Box] = []
    waiting = list(areas)
    while waiting:
        area = waiting.pop()
        near = [box for box in others if touch(area, box) and not contains(area, box)]
        taken = [region for region in regions if touch(area, region)]
        if near or taken:
            regions = [region for region in regions if region not in taken]
            waiting.append(around([area, *near, *taken]))
        else:
            regions.append(area)
    return sorted(regions, key=lambda box: (box.top, box.left))


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box around all of them."""
    left, top, right, bottom = zip(*boxes)
    return Box(min(left), min(top), max(right), max(bottom))


def touch(one: Box, other: Box) -> bool:
    return (one.left <= other.right and other.left <= one.right
            and one.top <= other.bottom and other.top <= one.bottom)


def contains(outer: Box, inner: Box) -> bool:
    return (outer.left <= inner.left and outer.top <= inner.top
            and inner.right <= outer.right and inner.bottom <= outer.bottom)


def _grown(box: Box, whole: Box) -> Box:
    room = round(GROWN * min(box.width, box.height))
    return _within(Box(box.left - room, box.top - room, box.right + room, box.bottom + room), whole)


def _within(box: Box, whole: Box) -> Box:
    return Box(max(whole.left, box.left), max(whole.top, box.top), min(whole.right, box.right),
               min(whole.bottom, box.bottom))


# ---------------------------------------------------------------- how it is asked for

def instruction_for(region: Region, own: str, letters: bool) -> str:
    """What the edit of a region is told. own: the user's words instead of the pack's; letters: whether the typeset
    letters are <image2>."""
    if not region.lines:
        return REMOVE
    words = ", ".join(quote(line, ENGLISH.pairs) for one in region.lines for line in one.text.split("\n"))
    if WORDS in own:
        return own.replace(WORDS, words)
    return f"{own.strip() or (CORRECT if letters else CORRECT_ALONE)} {words}"


def letters_of(region: Region, crop: Box, width: int, height: int) -> Layout:
    """A page of width x height whose texts stand where they belong in the crop around the region, as large as their
    places allow."""
    boxes = []
    for number, one in enumerate(region.lines, start=1):
        x, y = (one.box.left - crop.left) / crop.width, (one.box.top - crop.top) / crop.height
        w, h = one.box.width / crop.width, one.box.height / crop.height
        upright = _stands(one.text, one.box)
        size = min(w * width / height if upright else h, 1.0)
        boxes.append(PageBox(f"line {number}", "text", one.text, x, y, w, h, size=size, alignment="centre",
                             direction=VERTICAL if upright else "auto"))
    return Layout(width, height, tuple(boxes))


def _stands(text: str, box: Box) -> bool:
    """Whether a text is written in a column."""
    wide = any(unicodedata.east_asian_width(character) in "WF" for character in text)
    return wide and len(text) > 1 and box.height > COLUMN * box.width


# ---------------------------------------------------------------- what came of it

def notes(outcome: Outcome) -> list[str]:
    """For people: each round, then the last check."""
    if not outcome.rounds:
        return [Message("repair_unneeded", "The image says what it should: nothing was edited.")]
    rounds = (Message("repair_round", "Round {number}: {kept} of {all} edits kept, score {score}.", number=number,
                      kept=sum(attempt.kept for attempt in one.attempts), all=len(one.attempts),
                      score=f"{one.score:.2f}") for number, one in enumerate(outcome.rounds, start=1))
    return [*rounds, report.sentence(1, outcome.found), *report.layout_notes(1, outcome.found)]


def as_json(outcome: Outcome, seed: int, room: int) -> str:
    """The report for programs. room: pixels around a region over which an edit fades into the picture."""
    rounds = [{"round": number, "score": round(one.score, 4), "passed": one.passed,
               "regions": [{"box": list(attempt.region.box), "words": [line.text for line in attempt.region.lines],
                            "seed": seed + attempt.number, "score": round(attempt.score, 4), "kept": attempt.kept}
                           for attempt in one.attempts]} for number, one in enumerate(outcome.rounds, start=1)]
    return json.dumps({"passed": outcome.found.passed, "score_before": round(outcome.first.score, 4),
                       "score": round(outcome.found.score, 4), "feather": room, "rounds": rounds,
                       "check": json.loads(report.as_json([outcome.found]))["pictures"][0]},
                      ensure_ascii=False, indent=1)
