"""What came out of a text check: in words, as JSON, drawn onto the image, and as a mask of what to repair."""
import json
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

from ..messages import Message, count_more
from ..model.images.boxes import Box
from .compare import MISPLACED, MISSING, RIGHT, UNREADABLE, WRONG, Comparison, Line
from .layout import NAMED

EXTRA, DOUBTFUL = "extra", "doubtful"  # what was read and not expected, and what could hardly be read
COLOURS = {RIGHT: (0, 170, 60), WRONG: (220, 0, 0), MISSING: (220, 0, 0), MISPLACED: (150, 0, 200),
           EXTRA: (240, 130, 0), UNREADABLE: (130, 130, 130), DOUBTFUL: (130, 130, 130)}
GROWN = 0.3  # of a box's shorter side, on every side: letters that come out larger, and what lies between them


def as_json(comparisons: Sequence[Comparison]) -> str:
    """The whole report of a batch, for programs."""
    return json.dumps({"passed": all(one.passed for one in comparisons),
                       "pictures": [_picture(number, one) for number, one in enumerate(comparisons, start=1)]},
                      ensure_ascii=False, indent=1)


def _picture(number: int, comparison: Comparison) -> dict:
    layout = {"reading_order": not comparison.out_of_order, "out_of_order": list(comparison.out_of_order),
              "missing_boxes": comparison.missing_boxes} if any(line.place for line in comparison.lines) else {}
    return {
        "picture": number, "passed": comparison.passed, "score": round(comparison.score, 4),
        "word_accuracy": round(comparison.word_accuracy, 4), **layout,
        "lines": [{"expected": line.expected, "status": line.status, "found": line.found,
                   "distance": round(line.distance, 4), "words": line.words, "right_words": line.right_words,
                   "boxes": [list(box) for box in line.boxes], **_in_box(line)} for line in comparison.lines],
        "extra": [{"found": piece.text, "box": list(piece.box), "confidence": round(piece.confidence, 4)}
                  for piece in comparison.extra],
    }


def _in_box(line: Line) -> dict:
    """Of a layout's line: its box, where that is, and the share of the writing inside; of a missing line none."""
    if line.place is None:
        return {}
    return {"box_name": line.place.name, "box": list(line.place.box),
            "inside": round(line.inside, 4) if line.boxes else None}


def sentence(number: int, comparison: Comparison) -> str:
    """One line about one image, for people."""
    def having(status: str) -> int:
        return sum(line.status == status for line in comparison.lines)

    lines = Message("lines_right", "{right} of {all} lines right", right=having(RIGHT), all=len(comparison.lines))
    rest = [one for one in (Message("lines_wrong", "{count} wrong", count=having(WRONG)),
                            Message("lines_misplaced", "{count} outside their boxes", count=having(MISPLACED)),
                            Message("lines_missing", "{count} missing", count=having(MISSING)),
                            Message("lines_unreadable", "{count} unreadable", count=having(UNREADABLE)),
                            Message("lines_additional", "{count} additional",
                                    count=len(comparison.extra))) if one.values["count"]]
    verdict = Message("check_passed", "passed") if comparison.passed else Message("check_failed", "failed")
    return Message("check_result", "Image {number}: {verdict}, score {score}, {lines}.", number=number,
                   verdict=verdict, score=f"{comparison.score:.2f}",
                   lines=Message("lines_with_rest", "{lines} ({rest})", lines=lines, rest=rest) if rest else lines)


def layout_notes(number: int, comparison: Comparison) -> list[Message]:
    """What a layout has to say about one image beyond its lines: boxes without writing, another reading order."""
    notes = []
    if comparison.missing_boxes:
        notes.append(Message("boxes_unwritten", "Image {number}: nothing was found of the boxes {names}.",
                             number=number, names=_first_names(comparison.missing_boxes)))
    if comparison.out_of_order:
        notes.append(Message("boxes_out_of_order", "Image {number}: the boxes {names} are read in another order than "
                             "the layout's.", number=number, names=_first_names(comparison.out_of_order)))
    return notes


def _first_names(names: Sequence[str]) -> list[str]:
    more = [count_more(len(names) - NAMED)] if len(names) > NAMED else []
    return [*map(repr, names[:NAMED]), *more]


def rows(comparison: Comparison) -> list[dict]:
    """What a person compares: every expected line, then what was read without being expected, then what could hardly
    be read. number: the expected line's, from 1, or None; boxes: [left, top, right, bottom] in pixels."""
    lines = [_row(number, line.status, line.expected, line.found, line.boxes)
             for number, line in enumerate(comparison.lines, start=1)]
    others = [_row(None, kind, "", piece.text, [piece.box])
              for kind in (EXTRA, DOUBTFUL) for piece in getattr(comparison, kind)]
    return lines + others


def _row(number: int | None, status: str, expected: str, found: str, boxes: Iterable[Box]) -> dict:
    return {"number": number, "status": status, "colour": "#{:02x}{:02x}{:02x}".format(*COLOURS[status]),
            "expected": expected, "found": found, "boxes": [list(box) for box in boxes]}


def failed_lines(comparisons: Iterable[Comparison]) -> str:
    """The expected lines that are wrong or missing in any image, each once, one per line."""
    return "\n".join(dict.fromkeys(line.expected for one in comparisons for line in one.failed))


def mask(comparison: Comparison, height: int, width: int, allow_extra: bool,
         between: Callable[[], None] = lambda: None) -> ndarray:
    """1 where the writing failed (H, W): wrong lines and, unless allowed, additional ones. With a layout also the boxes
    of lines that are missing or stand elsewhere.

    Without one a missing line has no place. What could hardly be read is likely to be it, and counts then; when
    nothing else failed either, the whole image does. `between` is called before each box, and may raise.
    """
    boxes = [box for line in comparison.lines if line.status in (WRONG, MISPLACED) for box in line.boxes]
    boxes += [line.place.box for line in comparison.failed if line.place]
    missing = any(line.status == MISSING and not line.place for line in comparison.lines)
    if not allow_extra or missing:
        boxes += [piece.box for piece in comparison.extra]
    if missing:
        boxes += [piece.box for piece in comparison.doubtful]
    failed = np.zeros((height, width), np.float32)
    for box in boxes:
        between()
        room = round(GROWN * min(box.width, box.height))
        failed[max(0, box.top - room):box.bottom + room, max(0, box.left - room):box.right + room] = 1
    if missing and not boxes:
        failed[:] = 1
    return failed


def overlay(picture: ndarray, comparison: Comparison, between: Callable[[], None] = lambda: None) -> ndarray:
    """The image (H, W, 3), 8 bits, with a box around everything that was read: green right, red wrong, purple outside
    of its box, orange not expected, grey hardly readable. Numbers are those of the expected lines. `between` is called
    before the image and each line, and may raise."""
    between()
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    thick = max(1, round(min(image.size) / 300))
    font = ImageFont.load_default(max(10, 6 * thick))
    for kind in (DOUBTFUL, EXTRA):
        for piece in getattr(comparison, kind):
            between()
            _frame(pen, piece.box, COLOURS[kind], thick)
    for number, line in enumerate(comparison.lines, start=1):
        between()
        for box in line.boxes:
            _frame(pen, box, COLOURS[line.status], thick)
            _label(pen, box, str(number), COLOURS[line.status], font)
    return np.asarray(image)


def _frame(pen: ImageDraw.ImageDraw, box: Box, colour: tuple[int, int, int], thick: int) -> None:
    pen.rectangle((box.left, box.top, box.right - 1, box.bottom - 1), outline=colour, width=thick)


def _label(pen: ImageDraw.ImageDraw, box: Box, text: str, colour: tuple[int, int, int],
           font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    """On the box's upper left corner, outside of it where there is room."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    up = max(0, box.top - (bottom - top) - 2)
    pen.rectangle((box.left, up, box.left + right - left + 3, up + bottom - top + 3), fill=colour)
    pen.text((box.left + 2 - left, up + 1 - top), text, font=font, fill=(255, 255, 255))
