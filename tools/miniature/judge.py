"""Reads from the pixels of a poster what is on it. Knows palette, places and sizes; never a prompt or a network.

Background by the frame of the picture, the word by OCR on the enlarged picture, shapes by the contours of what is
left, each with its colour, size and place.
"""
import math
import re
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy
from numpy import ndarray

from .scenes import COLOURS, COLUMNS, DIAMETERS, ROW_HEIGHTS, ROWS, TRANSPARENT, Scene, Shape, Word, draw

FRAME = 3               # pixels at the border that are background
ENLARGED = 4
INK_DISTANCE = 45       # between a pixel's colour and the background's, from which on it belongs to something
MIN_INK = 40          # pixels of the smallest thing that counts as a shape; less is a speck
MIN_CONFIDENCE = 0.5
MIN_KEPT = 100        # pixels that say something about what an edit has kept
GREY = (128, 128, 128)


def look(picture: ndarray) -> Scene:
    """The scene of a picture (H, W, 4), 8 bits."""
    height, width = picture.shape[:2]
    background = _background(picture)
    visible = over(picture, _contrast(picture) if background == TRANSPARENT else (255, 255, 255))
    behind = numpy.array(_contrast(picture) if background == TRANSPARENT else _frame_colour(visible))
    large = cv2.resize(visible, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_CUBIC)
    ink = numpy.linalg.norm(large.astype(float) - behind, axis=2) > INK_DISTANCE
    word, box = _word(large, ink, behind, height)
    if box is not None:
        ink[box] = False
    return Scene(background, tuple(_shapes(large, ink, (width, height))), word, (width, height))


def nearest(colour) -> str:
    return min(COLOURS, key=lambda name: math.dist(COLOURS[name], colour))


# ---------------------------------------------------------------- background

def _frame(picture: ndarray) -> ndarray:
    inner = numpy.zeros(picture.shape[:2], bool)
    inner[FRAME:-FRAME, FRAME:-FRAME] = True
    return picture[~inner]


def _background(picture: ndarray) -> str:
    frame = _frame(picture)
    return TRANSPARENT if numpy.median(frame[:, 3]) < 128 else nearest(numpy.median(frame[:, :3], axis=0))


def _frame_colour(visible: ndarray) -> ndarray:
    return numpy.median(_frame(visible), axis=0)


def over(picture: ndarray, colour) -> ndarray:
    alpha = picture[..., 3:].astype(float) / 255
    return (picture[..., :3] * alpha + numpy.array(colour) * (1 - alpha)).round().astype(numpy.uint8)


def _contrast(picture: ndarray) -> tuple[int, int, int]:
    """A ground for a transparent picture that is far from every colour in it."""
    seen = picture[picture[..., 3] > 128][:, :3].astype(float)
    grounds = ((128, 128, 128), (0, 90, 90), (190, 255, 190), (110, 70, 20))
    if not len(seen):
        return grounds[0]
    return max(grounds, key=lambda ground: numpy.quantile(numpy.linalg.norm(seen - ground, axis=1), 0.05))


# ---------------------------------------------------------------- word

@lru_cache
def _reader():
    from rapidocr import RapidOCR
    return RapidOCR(params={"Global.log_level": "error"})


def _word(large: ndarray, ink: ndarray, behind: ndarray, height: int) -> tuple[Word | None, tuple | None]:
    """The word and the part of the enlarged picture that it covers. Reads letters and digits, in capitals."""
    found = _reader()(large[..., ::-1], use_cls=False)
    if found.boxes is None:
        return None, None
    read = [(re.sub(r"[^A-Z0-9]", "", text.upper()), box) for text, box, score
            in zip(found.txts, found.boxes, found.scores, strict=True) if score >= MIN_CONFIDENCE]
    read = [(text, box) for text, box in read if len(text) > 1]
    if not read:
        return None, None
    text, corners = max(read, key=lambda one: len(one[0]))
    (left, top), (right, bottom) = corners.min(0).astype(int), corners.max(0).astype(int)
    box = slice(max(0, top), bottom), slice(max(0, left), right)
    inside = large[box][ink[box]].astype(float)
    if not len(inside):
        return None, None
    # Letters are thin: their own colour is where they differ most from what is behind them.
    distance = numpy.linalg.norm(inside - behind, axis=1)
    colour = numpy.median(inside[distance >= numpy.quantile(distance, 0.6)], axis=0)
    return Word(text, nearest(colour), _row((top + bottom) / 2 / ENLARGED, height)), box


def _row(y: float, height: int) -> str:
    return min(ROWS, key=lambda row: abs(ROW_HEIGHTS[height][ROWS.index(row)] - y))


# ---------------------------------------------------------------- shapes

def _shapes(large: ndarray, ink: ndarray, canvas: tuple[int, int]) -> list[Shape]:
    contours, _ = cv2.findContours(ink.astype(numpy.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [_shape(large, contour, canvas) for contour in contours
            if cv2.contourArea(contour) >= MIN_INK * ENLARGED**2]


def _shape(large: ndarray, contour: ndarray, canvas: tuple[int, int]) -> Shape:
    mask = cv2.drawContours(numpy.zeros(large.shape[:2], numpy.uint8), [contour], -1, 1, cv2.FILLED)
    core = cv2.erode(mask, numpy.ones((3, 3)), iterations=ENLARGED) > 0
    colour = numpy.median(large[core if core.any() else mask > 0], axis=0)
    x, y, width, height = (value / ENLARGED for value in cv2.boundingRect(contour))
    centre = x + width / 2, y + height / 2
    column = min(COLUMNS, key=lambda name: abs(canvas[0] * (COLUMNS.index(name) + 1) / 4 - centre[0]))
    size = min(DIAMETERS, key=lambda name: abs(DIAMETERS[name] - max(width, height)))
    return Shape(_kind(contour), nearest(colour), size, column, _row(centre[1], canvas[1]))


def _kind(contour: ndarray) -> str:
    """By how much of its hull and of its upright box an outline fills: notches make a star, slopes a triangle."""
    area = cv2.contourArea(contour)
    _, _, width, height = cv2.boundingRect(contour)
    if area / cv2.contourArea(cv2.convexHull(contour)) < 0.85:
        return "star"
    filled = area / (width * height)
    return "triangle" if filled < 0.65 else "circle" if filled < 0.89 else "square"


# ---------------------------------------------------------------- verdicts

@dataclass(frozen=True)
class Verdict:
    background: bool
    shapes: bool
    word: bool

    @property
    def all(self) -> bool:
        return self.background and self.shapes and self.word


def compare(seen: Scene, wanted: Scene) -> Verdict:
    return Verdict(seen.background == wanted.background, set(seen.shapes) == set(wanted.shapes)
                   and len(seen.shapes) == len(wanted.shapes), seen.word == wanted.word)


def psnr_of_kept(picture: ndarray, source: Scene, target: Scene) -> float | None:
    """dB between an edit's result and its source where nothing should have changed; None where that is next to
    nothing. Transparent pixels are compared over grey."""
    before, after = (numpy.asarray(draw(scene)) for scene in (source, target))
    same = (numpy.abs(before.astype(int) - after).max(2) <= 2).astype(numpy.uint8)
    same = cv2.erode(same, numpy.ones((5, 5)), borderValue=1) > 0  # soft edges belong to what changes
    if same.sum() < MIN_KEPT:
        return None
    error = (over(picture, GREY).astype(float) - over(before, GREY))[same]
    return 10 * math.log10(255**2 / max((error**2).mean(), 1e-9))


def shift(before: ndarray, after: ndarray) -> tuple[float, float]:
    """How far the things in one picture (H, W, 4) lie from those in another, (right, down) in pixels.

    By phase correlation of how much of each pixel is covered, which a change of colours leaves as it is.
    """
    return cv2.phaseCorrelate(_covered(before), _covered(after),
                              cv2.createHanningWindow(before.shape[1::-1], cv2.CV_32F))[0]


def _covered(picture: ndarray) -> ndarray:
    """The share of each pixel (H, W) that is not background: its distance from the background's colour, in units of
    the largest one nearby."""
    visible = over(picture, GREY).astype(numpy.float32)
    distance = numpy.linalg.norm(visible - _frame_colour(visible), axis=2)
    nearby = cv2.dilate(distance, numpy.ones((9, 9)))
    return cv2.GaussianBlur((distance / numpy.maximum(nearby, INK_DISTANCE)).astype(numpy.float32), (0, 0), 1)
