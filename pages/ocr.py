"""Reads what is written in an image, with RapidOCR's models, which lie in its package: nothing is downloaded.

RapidOCR is an optional extra and heavy, so it is imported when an image is read and not before.
"""
import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from PIL import Image

from ..messages import Refusal
from ..model.images.boxes import Box
from .compare import Comparison, Found, Rules, compare
from .placement import Place

INSTALL = 'python -m pip install "rapidocr>=3.10,<4" onnxruntime'
MAX_SIDE = 4096     # pixels that the detector is given at most; its time grows with the area
FIRST_SIDE = 1024       # images smaller than this are enlarged before the first look
MAX_RATIO = 4       # longer side to shorter
GROUNDS = ((255, 255, 255), (0, 0, 0))  # what transparent images are looked at on


def require() -> None:
    """Raises ValueError with the install command where RapidOCR is not there."""
    for name in ("rapidocr", "onnxruntime"):
        _package(name)


def _package(name: str) -> Path:
    """The folder of an installed package, or the refusal of `require`."""
    found = find_spec(name)
    # A folder without a file of its own is none: RapidOCR's stays when it is uninstalled, with models that it has
    # downloaded.
    if found is None or found.origin is None:
        raise Refusal("ocr_missing", "Text Check needs RapidOCR, which is not installed. Run {command} with ComfyUI's "
                      "Python and restart ComfyUI.", command=INSTALL)
    return Path(found.origin).parent


def _model(kind: str) -> Path:
    """A model file in RapidOCR's package; by its path, or RapidOCR would download one that it does not find."""
    folder = _package("rapidocr") / "models"
    found = sorted(path for path in folder.glob("*.onnx") if f"_{kind}_" in path.name and "PP-OCR" in path.name)
    if not found:
        raise Refusal("ocr_models", "The installed RapidOCR contains no models. Run {command} --force-reinstall with "
                      "ComfyUI's Python.", command=INSTALL)
    return found[-1]


@lru_cache(maxsize=1)
def _reader() -> Callable[[ndarray], Any]:  # its own annotation is of all that any of its settings gives
    require()
    from rapidocr import RapidOCR
    return RapidOCR(params={
        "Global.log_level": "error", "Global.use_cls": False, "Global.max_side_len": MAX_SIDE,
        "Global.text_score": 0.0,  # what it doubts is told apart here, by its confidence
        "EngineConfig.onnxruntime.intra_op_num_threads": _threads(),
        "Det.model_path": str(_model("det")), "Rec.model_path": str(_model("rec"))})


def _threads() -> int:
    """As many as OMP_NUM_THREADS gives this process for its other computations; else -1, ONNX Runtime's own choice. Its
    threads wait for each other actively, so too many of them make a shared machine many times slower."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list has one number for each level
    return int(given) if given.isdecimal() else -1


@lru_cache(maxsize=1)
def known_characters() -> frozenset[str]:
    """Every character that the reader can read; its model file lists them."""
    require()
    import onnxruntime
    session = onnxruntime.InferenceSession(str(_model("rec")), providers=["CPUExecutionProvider"])
    return frozenset(session.get_modelmeta().custom_metadata_map["character"].splitlines())


def read(image: ndarray, factor: float = 1.0) -> list[Found]:
    """What stands in an image (H, W, 3), 8 bits, from top to bottom; read in the image enlarged by `factor`."""
    height, width = image.shape[:2]
    if factor != 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    found = _reader()(np.ascontiguousarray(_padded(image)[..., ::-1]))  # RapidOCR wants BGR
    if found.boxes is None or found.txts is None:
        return []
    return [Found(text, _box(corners / factor, width, height), float(score))
            for text, corners, score in zip(found.txts, found.boxes, found.scores, strict=True)]


def _padded(image: ndarray) -> ndarray:
    """Continued by its last row or column where it is very long: the detector enlarges by the shorter side, and would
    make gigabytes of an image of 900 x 2."""
    height, width = image.shape[:2]
    rows, columns = max(0, width // MAX_RATIO - height), max(0, height // MAX_RATIO - width)
    return np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge")


def _box(corners: ndarray, width: int, height: int) -> Box:
    """The upright box around four corners (x, y), within the image and never empty."""
    left, top = np.floor(corners.min(0)).astype(int)
    right, bottom = np.ceil(corners.max(0)).astype(int)
    left, top = min(max(0, left), width - 1), min(max(0, top), height - 1)
    return Box(int(left), int(top), int(min(max(right, left + 1), width)), int(min(max(bottom, top + 1), height)))


def check(image: ndarray, lines: list[str], rules: Rules, between: Callable[[], None] = lambda: None,
          places: Sequence[Place] = ()) -> Comparison:
    """Compare an image (H, W, 3 or 4), 8 bits, with expected lines. places: where a layout wants each.

    It is looked at until it passes: as it is and at twice that size, small ones once at several times their size,
    transparent ones on white and on black. The best look counts, because what one look gets wrong and another gets
    right is the reader's error and not the image's.
    `between` is called before each look and while its lines are compared, and may raise.
    """
    found = []
    for look, factor in _looks(image):
        between()
        found.append(compare(lines, read(look, factor), rules, between, places))
        if found[-1].passed:
            break
    return max(found, key=lambda look: (look.passed, look.score))  # of equal ones the first


def _looks(image: ndarray) -> Iterator[tuple[ndarray, float]]:
    """Opaque images (H, W, 3), each with how much it is enlarged."""
    side = max(image.shape[:2])
    first = max(1, FIRST_SIDE // side)
    factors = [1, 2] if first == 1 and 2 * side <= MAX_SIDE else [first]
    solid = image.shape[2] == 3 or image[..., 3].min() == 255
    grounds = [image[..., :3]] if solid else [_over(image, colour) for colour in GROUNDS]
    for factor in factors:
        for ground in grounds:
            yield ground, float(factor)


def _over(image: ndarray, colour: tuple[int, int, int]) -> ndarray:
    alpha = image[..., 3:].astype(np.float32) / 255
    return (image[..., :3] * alpha + np.array(colour, np.float32) * (1 - alpha)).round().astype(np.uint8)
