"""Does an edit stay where its source is? Recoloured backgrounds at ten sizes of the source, through a real server.

    python tools/dev.py bench alignment [--edits N] [--save]

The shift between source and result is measured by phase correlation of their outlines, in pixels of the result. Half
a latent token would be 8 pixels.
"""
import os
import random
import statistics
import tempfile
from pathlib import Path

import numpy
import report
from PIL import Image

from qwen_image_2.model.images import sizes
from qwen_image_2.tools.comfyui.client import Client
from qwen_image_2.tools.comfyui.server import Server
from qwen_image_2.tools.miniature import examples, judge, scenes
from qwen_image_2.tools.miniature.painter import Painter

GOAL = 0.5  # pixels
SEED = 11
# Width and height of the sources; each is resized to one of the miniature's canvases.
SIZES = ((128, 128), (160, 96), (96, 160), (127, 127), (131, 129), (157, 95), (97, 163), (200, 200), (321, 193),
         (255, 425))


def source_of(rng: random.Random, canvas: tuple[int, int]) -> examples.Example:
    """A recolouring with enough outlines to measure: a word, and at least a shape."""
    while True:
        example = examples.invent_edit(rng, "background")
        source = example.references[0]
        if source.canvas == canvas and source.word and source.shapes:
            return example


def shifts(painter: Painter, size: tuple[int, int], count: int) -> list[float]:
    """Length of the shift of each of some edits, in pixels."""
    canvas = sizes.reference_size(*size, 128)
    rng = random.Random(f"alignment {SEED} {size}")
    found = []
    for seed in range(count):
        example = source_of(rng, canvas)
        source = scenes.draw(example.references[0]).resize(size, Image.Resampling.LANCZOS)
        picture = painter.paint(example, seed, sources=[source])
        before = numpy.asarray(source.resize(canvas, Image.Resampling.LANCZOS))
        found.append(float(numpy.hypot(*judge.shift(before, picture))))
    return found


def main() -> None:
    parser = report.parser("alignment", __doc__)
    parser.add_argument("--edits", type=int, default=5, help="of each size")
    chosen = parser.parse_args()
    host = report.host()
    with tempfile.TemporaryDirectory() as folder, Server(Path(os.environ["COMFYUI_PATH"])) as server:
        painter = Painter(Client(server.url), Path(folder))
        found = {size: shifts(painter, size, chosen.edits) for size in SIZES}
    rows = [("source", "canvas", "median shift (px)", "largest", f"below {GOAL}")]
    for size, values in found.items():
        canvas = sizes.reference_size(*size, 128)
        rows.append((f"{size[0]} x {size[1]}", f"{canvas[0]} x {canvas[1]}", f"{statistics.median(values):.3f}",
                     f"{max(values):.3f}", "yes" if max(values) < GOAL else "NO"))
    text = report.aligned(rows)
    print(text)
    if chosen.save:
        data = {"shifts": {f"{width} x {height}": values for (width, height), values in found.items()}}
        report.keep("alignment", host, data, text)


if __name__ == "__main__":
    main()
