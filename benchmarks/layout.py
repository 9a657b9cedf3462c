"""Does a word follow its box? Held-out words in nine places, drawn by the miniature, judged from the pixels.

    python tools/dev.py bench layout [--layouts N] [--pictures DIR] [--save]

Each layout has one text box in one of 3 x 3 places. Two ways to ask for it: by the prompt, whose words for the place
come from the box (pages/places.py), and by the typeset page as the reference of an edit that gives it another
background. A word follows its box when the middle of its ink is nearest to the middle of that box among the nine; apart
from that, the judge reads it. The miniature was trained on words in the middle column alone.
"""
import os
import random
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy
import report
from numpy import ndarray
from PIL import Image

from qwen_image_2.pages.layout import Box, Layout
from qwen_image_2.pages.page_fonts import Fonts
from qwen_image_2.pages.places import place_of
from qwen_image_2.pages.typeset import WHITE, typeset
from qwen_image_2.pages.vocabulary import ENGLISH
from qwen_image_2.tools.comfyui.client import Client
from qwen_image_2.tools.comfyui.server import Server
from qwen_image_2.tools.miniature import judge, scenes
from qwen_image_2.tools.miniature.examples import Example
from qwen_image_2.tools.miniature.painter import Painter
from qwen_image_2.tools.miniature.scenes import Scene, Word

SEED, GOAL = 11, 0.85
SIDE = 128                 # pixels of the canvas
WIDTH, HEIGHT = 0.62, 0.3  # of the box: the largest of nine places in which the miniature's words keep their size
ACROSS, DOWN = (0.02, 0.19, 0.36), (0.1, 0.35, 0.6)  # its rows are a quarter, half and three quarters down
EM = 0.2                   # share of the height, as large as the miniature's own words
WAYS = ("prompt", "reference")
OWN_WORDS = {"lower third": "at the bottom"}  # of the miniature, where it was not told the brief's


class Asked(NamedTuple):
    layout: Layout
    scene: Scene  # what the prompt asks for, but for the column

    @property
    def box(self) -> Box:
        return self.layout.boxes[0]

    @property
    def word(self) -> Word:
        assert self.scene.word is not None
        return self.scene.word


def questions(count: int) -> list[Asked]:
    """Held-out words and colours, the nine places in turn."""
    rng, found = random.Random(SEED), []
    while len(found) < count:
        row, column = divmod(len(found) % 9, 3)
        background = rng.choice([name for name in scenes.COLOURS if name != "white"])
        word = Word(rng.choice(scenes.WORDS), rng.choice(scenes.readable_on(background)), scenes.ROWS[row])
        scene = Scene(background, (), word, (SIDE, SIDE))
        if scenes.held_out(scene) and "black" in scenes.readable_on(background):
            box = Box("word", "text", word.text, ACROSS[column], DOWN[row], WIDTH, HEIGHT, size=EM, weight="bold",
                      alignment="centre")
            found.append(Asked(Layout(SIDE, SIDE, (box,)), scene))
    return found


def painted(painter: Painter, asked: Asked, way: str, seed: int) -> ndarray:
    """The picture (H, W, 4), 8 bits."""
    if way == "prompt":
        key = place_of(asked.box)
        place = OWN_WORDS.get(key, ENGLISH.places[key])
        prompt = (f'A poster with a {asked.scene.background} background and the word "{asked.word.text}" in '
                  f"{asked.word.colour} {place}.")
        return painter.paint(Example(prompt, asked.scene), seed)
    page = Image.fromarray(typeset(asked.layout, Fonts(), WHITE).page).convert("RGBA")
    return painter.paint(Example(f"Make the background {asked.scene.background}.", asked.scene), seed, [page])


def middle_of_ink(picture: ndarray) -> tuple[float, float] | None:
    """Shares of the width and height; None for a picture without ink."""
    visible = judge.over(picture, (255, 255, 255)).astype(float)
    ink = numpy.linalg.norm(visible - numpy.median(visible, axis=(0, 1)), axis=2) > judge.INK_DISTANCE
    down, across = numpy.nonzero(ink)
    if not len(down):
        return None
    height, width = ink.shape
    return (across.min() + across.max() + 1) / 2 / width, (down.min() + down.max() + 1) / 2 / height


def follows(picture: ndarray, box: Box) -> tuple[bool, bool]:
    """Whether the word is in the box's column and row."""
    middle = middle_of_ink(picture)
    if middle is None:
        return False, False
    return nearest(middle[0] - WIDTH / 2, ACROSS) == box.x, nearest(middle[1] - HEIGHT / 2, DOWN) == box.y


def nearest(side: float, sides: tuple[float, ...]) -> float:
    return min(sides, key=lambda one: abs(one - side))


def main() -> None:
    parser = report.parser("layout", __doc__)
    parser.add_argument("--layouts", type=int, default=50)
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="keep what was drawn")
    chosen = parser.parse_args()
    host, asked, records = report.host(), questions(chosen.layouts), []
    with tempfile.TemporaryDirectory() as folder, Server(Path(os.environ["COMFYUI_PATH"])) as server:
        painter = Painter(Client(server.url), Path(folder))
        for way in WAYS:
            for number, one in enumerate(asked):
                picture = painted(painter, one, way, number)
                column, row = follows(picture, one.box)
                seen = judge.look(picture).word
                records.append({"way": way, "word": one.word.text, "x": one.box.x, "y": one.box.y, "column": column,
                                "row": row, "read": seen.text if seen else ""})
                if chosen.pictures:
                    chosen.pictures.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(picture).save(chosen.pictures / f"{way}-{number:03}.png")
    table = report.aligned([("way", "measurement", "value", "goal"), *rows(records)])
    print(table)
    if chosen.save:
        report.keep("layout", host, {"answers": records}, table)


def rows(records: list[dict]) -> list[tuple[str, str, str, str]]:
    found = []
    for way in WAYS:
        own = [record for record in records if record["way"] == way]
        for name, right in (("place follows the box", [one["column"] and one["row"] for one in own]),
                            ("row", [one["row"] for one in own]), ("column", [one["column"] for one in own]),
                            ("word read right", [one["read"] == one["word"] for one in own])):
            goal = f"at least {GOAL:.2f}, one way" if name.startswith("place") else ""
            found.append((way, name, f"{statistics.fmean(right):.2f}", goal))
    return found


if __name__ == "__main__":
    main()
