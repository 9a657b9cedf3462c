"""The miniature's world: posters of a background, one or two shapes and a word, drawn by Pillow.

A `Scene` says everything about a picture. `draw` makes the picture, `sample` invents a scene, `held_out` tells
whether training may see it. What the scenes are called in words is in wording.py.
"""
import hashlib
import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from ...model.images import sizes

VERSION = 1  # of the data: change it with anything below that changes pictures or the order of random choices

COLOURS = {
    "red": (214, 40, 40), "orange": (247, 127, 0), "yellow": (252, 211, 47), "green": (46, 150, 70),
    "blue": (38, 84, 200), "purple": (122, 48, 168), "pink": (245, 150, 190), "white": (250, 250, 250),
    "black": (22, 22, 22),
}
TRANSPARENT = "transparent"
KINDS = ("circle", "square", "triangle", "star")
SIZES = ("small", "large")
COLUMNS, ROWS = ("left", "centre", "right"), ("top", "centre", "bottom")
WORDS = (
    "SALE", "OPEN", "JAZZ", "HELLO", "2026", "LOVE", "MUSIC", "PIZZA", "PARTY", "DANCE", "FREE", "NEW", "HOT", "COOL",
    "YES", "STOP", "GO", "TEA", "CAKE", "FILM", "BOOK", "ART", "SHOW", "TOUR", "PARK", "ZOO", "FISH", "BIKE", "RUN",
    "YOGA", "ROCK", "BLUES", "EXPO", "MENU", "SUN", "MOON", "WIN", "HOME", "NIGHT", "100", "WOW", "KIDS", "TAXI",
    "SNOW", "CAFE", "COFFEE", "SUMMER", "WINTER",
)
CANVASES = sizes.MINIATURE  # width, height

# Where the rows are, by the picture's height. Multiples of 16: a word always falls on the latents alike.
ROW_HEIGHTS = {96: (16, 48, 80), 128: (32, 64, 96), 160: (32, 80, 128)}
DIAMETERS = {"small": 20, "large": 32}
FONT_SIZE, MARGIN = 30, 5
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Shape:
    kind: str
    colour: str
    size: str
    column: str
    row: str


@dataclass(frozen=True)
class Word:
    text: str
    colour: str
    row: str


@dataclass(frozen=True)
class Scene:
    background: str                # a colour, or TRANSPARENT
    shapes: tuple[Shape, ...] = ()
    word: Word | None = None
    canvas: tuple[int, int] = CANVASES[0]


# ---------------------------------------------------------------- drawing

def draw(scene: Scene) -> Image.Image:
    """The picture of a scene, RGBA. What is transparent is white underneath."""
    width, height = scene.canvas
    scale = SUPERSAMPLING
    colour = (*COLOURS["white"], 0) if scene.background == TRANSPARENT else (*COLOURS[scene.background], 255)
    image = Image.new("RGBA", (width * scale, height * scale), colour)
    pen = ImageDraw.Draw(image)
    for shape in scene.shapes:
        _draw_shape(pen, shape, scene.canvas, scale)
    if scene.word:
        x, y = width / 2, row_height(scene.word.row, scene.canvas)
        font = _font(scene.word.text, scene.canvas)
        pen.text((x * scale, y * scale), scene.word.text, COLOURS[scene.word.colour], font, anchor="mm",
                 stroke_width=scale * 0.7, stroke_fill=COLOURS[scene.word.colour])
    small = image.resize(scene.canvas, Image.Resampling.BOX)
    return _white_underneath(small) if scene.background == TRANSPARENT else small


def centre_of(shape: Shape, canvas: tuple[int, int]) -> tuple[float, float]:
    """Where a shape's middle is, in pixels."""
    return canvas[0] * (COLUMNS.index(shape.column) + 1) / 4, row_height(shape.row, canvas)


def row_height(row: str, canvas: tuple[int, int]) -> int:
    """Where a row's middle is, in pixels from the top."""
    return ROW_HEIGHTS[canvas[1]][ROWS.index(row)]


def _draw_shape(pen: ImageDraw.ImageDraw, shape: Shape, canvas: tuple[int, int], scale: int) -> None:
    x, y = centre_of(shape, canvas)
    radius, fill = DIAMETERS[shape.size] / 2, COLOURS[shape.colour]
    if shape.kind == "circle":
        pen.ellipse([scale * v for v in (x - radius, y - radius, x + radius, y + radius)], fill)
    else:
        pen.polygon([(scale * (x + radius * a), scale * (y + radius * b)) for a, b in OUTLINES[shape.kind]], fill)


def _star() -> list[tuple[float, float]]:
    """Five points on the unit circle, the notches between them at 0.45 of it."""
    turns = [(math.pi * step / 5, 1.12 if step % 2 == 0 else 0.5) for step in range(10)]
    return [(length * math.sin(angle), -length * math.cos(angle) + 0.06) for angle, length in turns]


OUTLINES = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0, -1), (1.08, 0.85), (-1.08, 0.85)],
    "star": _star(),
}


@lru_cache
def _font(text: str, canvas: tuple[int, int]) -> ImageFont.FreeTypeFont:
    """Pillow's own font, as large as the word allows."""
    largest = min(FONT_SIZE, canvas[1] // 4)
    for size in range(largest * SUPERSAMPLING, 0, -1):
        font = ImageFont.load_default(size)
        if font.getlength(text) <= (canvas[0] - 2 * MARGIN) * SUPERSAMPLING:
            return font
    raise AssertionError(f"{text} does not fit")


def _white_underneath(image: Image.Image) -> Image.Image:
    """Resizing leaves black where nothing is seen; a hard edge between black and a colour is needless work."""
    red, green, blue, alpha = image.split()
    hidden = alpha.point(lambda a: 255 if a == 0 else 0)
    for band in (red, green, blue):
        band.paste(COLOURS["white"][0], mask=hidden)
    return Image.merge("RGBA", (red, green, blue, alpha))


# ---------------------------------------------------------------- inventing

def sample(rng: random.Random, canvas: tuple[int, int] | None = None) -> Scene:
    """A scene in which nothing overlaps and everything can be seen."""
    canvas = canvas or rng.choices(CANVASES, (3, 1, 1))[0]
    background = TRANSPARENT if rng.random() < 0.15 else rng.choice(list(COLOURS))
    word = None
    if rng.random() < 0.8:
        word = Word(rng.choice(WORDS), rng.choice(readable_on(background)), rng.choice(ROWS))
    scene = Scene(background, (), word, canvas)
    for _ in range(rng.choices((0, 1, 2), (1, 6, 3) if word else (0, 6, 4))[0]):
        scene = add_shape(rng, scene)
    return scene


def add_shape(rng: random.Random, scene: Scene) -> Scene:
    """The scene with one more shape of another kind, in a row and a column of its own."""
    kind = rng.choice([kind for kind in KINDS if all(kind != shape.kind for shape in scene.shapes)])
    taken = {shape.row for shape in scene.shapes} | ({scene.word.row} if scene.word else set())
    rows = [row for row in ROWS if row not in taken]
    if not rows:  # three rows are always enough for a word and two shapes
        raise ValueError("There is no room for another shape.")
    columns = [column for column in COLUMNS if all(column != shape.column for shape in scene.shapes)]
    shape = Shape(kind, rng.choice(visible_on(scene.background)), rng.choice(SIZES), rng.choice(columns),
                  rng.choice(rows))
    return replace(scene, shapes=(*scene.shapes, shape))


def visible_on(background: str) -> list[str]:
    """Colours for a shape."""
    if background == TRANSPARENT:
        return list(COLOURS)
    return [name for name in COLOURS if math.dist(COLOURS[name], COLOURS[background]) > 90]


def readable_on(background: str) -> list[str]:
    """Colours for a word: they must differ in brightness too."""
    if background == TRANSPARENT:
        return [name for name in visible_on(background) if name != "white"]
    return [name for name in visible_on(background) if abs(_luma(name) - _luma(background)) > 55]


def _luma(name: str) -> float:
    red, green, blue = COLOURS[name]
    return 0.299 * red + 0.587 * green + 0.114 * blue


# ---------------------------------------------------------------- what training never sees

HELD_OUT_SHARE = 8  # one in so many combinations


def combinations(scene: Scene) -> set[tuple[str, ...]]:
    """What must have been learned apart to be drawn together: word, its colour and the background; each shape, its
    colour and the background."""
    found = {(shape.kind, shape.colour, scene.background) for shape in scene.shapes}
    if scene.word:
        found.add((scene.word.text, scene.word.colour, scene.background))
    return found


def held_out(scene: Scene) -> bool:
    """Whether any combination in the scene is one that training never sees."""
    return any(_hash(combination) % HELD_OUT_SHARE == 0 for combination in combinations(scene))


def _hash(parts: tuple[str, ...]) -> int:
    """The same on every machine and in every run, unlike hash()."""
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:4], "little")
