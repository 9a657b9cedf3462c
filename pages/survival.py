"""Which lines of a picture did not survive what was done to it."""
from collections.abc import Iterable
from dataclasses import dataclass

from ..messages import Message
from ..model.images.boxes import Box
from .compare import RIGHT, Comparison, Line

MARGIN = 1 / 4  # of a line's height, on every side: the reader's boxes cut off accents and the ends of strokes


@dataclass(frozen=True)
class Survival:
    """The same expected lines before and after."""

    before: Comparison
    after: Comparison

    @property
    def lost(self) -> list[Line]:
        """Lines that were right and are no longer, as they were read before."""
        return [old for old, new in zip(self.before.lines, self.after.lines, strict=True)
                if old.status == RIGHT != new.status]


def around(lines: Iterable[Line], width: int, height: int) -> list[Box]:
    """What the lines cover in a picture, with a margin."""
    return [_grown(box, width, height) for line in lines for box in line.boxes]


def _grown(box: Box, width: int, height: int) -> Box:
    margin = round(MARGIN * min(box.width, box.height))
    return Box(max(0, box.left - margin), max(0, box.top - margin), min(width, box.right + margin),
               min(height, box.bottom + margin))


def right(found: Comparison) -> int:
    return sum(line.status == RIGHT for line in found.lines)


def in_words(survival: Survival, again: Comparison) -> Message:
    """again: as it was read after the lost lines were put back, or the picture as it is where none was."""
    total, lost = len(survival.before.lines), survival.lost
    if not lost:
        return Message("words_survived", "Words: {after} of {total} lines are right, {before} were before.",
                       after=right(survival.after), total=total, before=right(survival.before))
    return Message("words_put_back", "Words: {count} lines were right before and wrong after ({lines}); they were put "
                   "back from the source. {after} of {total} lines are right, {before} were before.",
                   count=len(lost), lines=[line.expected for line in lost], after=right(again), total=total,
                   before=right(survival.before))
