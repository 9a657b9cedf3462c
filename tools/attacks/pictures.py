"""IMAGE and MASK of any shape, dtype and values, and font files."""
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from PIL import ImageFont
from torch import Tensor

from qwen_image_2.pages import glyphs

from . import mutation
from .attempt import Kind
from .nodes import prepared, run
from .texts import LINES

DTYPES = (torch.float32, torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8,
          torch.int64, torch.bool)
ODD = (float("nan"), float("inf"), -float("inf"), -3.0, 1e30, 255.0, 1e-30)
SIDES = (1, 2, 7, 31, 32, 64, 65)


def tensor(shape: tuple[int, ...], rng: Random) -> Tensor:
    """Values in [0, 1], some of which may be something else; contiguous or not."""
    values = torch.from_numpy(np.random.default_rng(rng.randrange(2**32)).random(shape, np.float32))
    if rng.random() < 0.15 and values.numel():
        values.flatten()[rng.randrange(values.numel())] = rng.choice(ODD)
    if rng.random() < 0.1:
        values *= rng.choice(ODD)
    if rng.random() < 0.1 and values.ndim > 1:
        values = values.transpose(0, -1).contiguous().transpose(0, -1)
    return values.to(rng.choice(DTYPES) if rng.random() < 0.2 else torch.float32)


def image(rng: Random) -> Tensor:
    shape = (rng.choice((1, 1, 1, 2, 3)), rng.choice(SIDES), rng.choice(SIDES), rng.choice((3, 3, 4)))
    if rng.random() < 0.2:
        shape = rng.choice(((0, *shape[1:]), (*shape[:3], 1), (*shape[:3], 2), (*shape[:3], 0), (*shape[:3], 5),
                            shape[1:], (1, *shape), (1, 0, 7, 3), (1, 1, 3000, 3), (), (3,)))
    return tensor(shape, rng)


def mask(shape: tuple[int, ...], rng: Random) -> Tensor:
    """For a picture of this shape, or nearly."""
    fitting = (shape[0], *shape[1:3]) if len(shape) == 4 else (1, 8, 8)
    how = rng.random()
    if how < 0.5:
        found = torch.zeros(fitting)
        found[..., :max(1, fitting[1] // 2), : max(1, fitting[2] // 2)] = rng.choice((1.0, 0.5, 0.01, 1.4))
        return found
    shapes = (fitting, fitting[1:], (1, *fitting[1:]), (fitting[0], 1, *fitting[1:]), (5, *fitting[1:]), (1, 64, 1),
              (), (0,), (3,), (*fitting, 3), (1, 0, 0), (2, 2, 9, 9))
    return tensor(rng.choice(shapes), rng)


class RegionAttack(NamedTuple):
    image: Tensor
    mask: Tensor
    context: float
    feather: int
    part: Tensor | None  # None: the region as it was cut
    sides: tuple[int, int, int, int]


def region(folder: Path) -> Kind:
    """Extend Canvas, Crop for Edit and Stitch Edit."""
    from qwen_image_2.nodes import region as nodes
    extend, crop, stitch = map(prepared, (nodes.QwenImage2ExtendCanvas, nodes.QwenImage2CropForEdit,
                                          nodes.QwenImage2StitchEdit))

    def attack(rng: Random) -> RegionAttack:
        drawn = image(rng)
        return RegionAttack(drawn, mask(tuple(drawn.shape), rng), rng.choice((0.0, 0.5, 4.0)),
                            rng.choice((0, 1, 16, 512)), image(rng) if rng.random() < 0.4 else None,
                            tuple(rng.choice((0, 0, 1, 100)) for _ in range(4)))

    def try_it(given: RegionAttack) -> list[str]:
        with torch.inference_mode():
            (part, _, cut), said = run(crop, image=given.image, mask=given.mask, context=given.context,
                                       resolution="128", feather=given.feather)
            run(stitch, region=cut, part=part if given.part is None else given.part)
            run(extend, image=given.image, **dict(zip(("left", "top", "right", "bottom"), given.sides)))
        return said

    return Kind(attack, try_it)


class ReferencesAttack(NamedTuple):
    images: dict[str, Tensor | None]
    resolution: str
    canvas: str
    sides: tuple[int, int]


def references(folder: Path) -> Kind:
    """The references of Encode Edit, up to what the text encoder and the VAE are given."""
    from qwen_image_2.model.images.references import resize
    from qwen_image_2.nodes import edit
    from qwen_image_2.nodes.common.images import connected_references

    def attack(rng: Random) -> ReferencesAttack:
        count = rng.choice((0, 1, 1, 1, 1, 2, 3, 11))
        images = {f"image_{number}": None if rng.random() < 0.1 else image(rng) for number in range(count)}
        return ReferencesAttack(images, rng.choice(("128", "256", edit.AS_IT_IS)),
                                rng.choice((edit.LAST, edit.FIRST, edit.CUSTOM, "x" * 5000)),
                                (rng.choice((-1, 64, 1000, 1024, 10**30)), 64))

    def try_it(given: ReferencesAttack) -> list[str]:
        found = connected_references(given.images)
        wanted, _, note = edit.plan_sizes(found, given.resolution, given.canvas, *given.sides, True)
        for picture, size in zip(found, wanted):
            edit.preview(resize(picture, *size)[0])
        return [note] if note else []

    return Kind(attack, try_it)


class DeckAttack(NamedTuple):
    images: list[Tensor]
    texts: list[str | None]
    notes: list[str | None]
    files: str


def deck(folder: Path) -> Kind:
    """Save Deck: pictures, words and notes, as PowerPoint and PDF."""
    import folder_paths

    from qwen_image_2.nodes import decks
    node, output = prepared(decks.QwenImage2SaveDeck, {}, {}), folder / "decks"
    output.mkdir()

    def attack(rng: Random) -> DeckAttack:
        def words() -> list[str | None]:
            return [rng.choice((None, mutation.text(LINES, rng, 3000))) for _ in range(rng.randrange(4))]
        images = [image(rng) for _ in range(rng.randint(1, 2))]
        return DeckAttack(images, words(), words(), rng.choice(list(decks.FILES)))

    def try_it(given: DeckAttack) -> list[str]:
        folder_paths.set_output_directory(str(output))
        _, said = run(node, images=given.images, filename_prefix=["deck"], files=[given.files],
                      page=[decks.BY_PICTURES], texts=given.texts, notes=given.notes)
        for file in output.iterdir():
            file.unlink()
        return said

    return Kind(attack, try_it)


# ---------------------------------------------------------------- fonts

class FontAttack(NamedTuple):
    content: bytes
    suffix: str
    text: str
    size: int
    vertical: bool


def font(folder: Path) -> Kind:
    """A file in models/fonts, and words to set in it."""
    whole = _font_file()

    def attack(rng: Random) -> FontAttack:
        text = mutation.text(LINES, rng, 3000) if rng.random() < 0.3 else "NIGHT\nMARKET"
        size, vertical = rng.choice((16, 96, 512)), rng.random() < 0.3
        if rng.random() < 0.2:
            return FontAttack(rng.choice([*mutation.NO_FILES, b"ttcf" + b"\xff" * 60, whole[:5000]]),
                              rng.choice(glyphs.EXTENSIONS), text, size, vertical)
        content = whole if rng.random() < 0.2 else mutation.damaged(whole, rng, 0, rng.choice((300, None)))
        return FontAttack(content, rng.choice((".ttf", ".otf")), text, size, vertical)

    def try_it(given: FontAttack) -> list[str]:
        path = folder / f"font{given.suffix}"
        path.write_bytes(given.content)
        glyphs.faces.cache_clear()
        lines = glyphs.clean_lines(given.text)
        for name, face in glyphs.named_faces(path, path.name).items():
            glyphs.render(lines, face, name, given.size, given.vertical)
        return []

    return Kind(attack, try_it)


def _font_file() -> bytes:
    """Pillow's own font, which lies inside its code."""
    font = ImageFont.load_default(16)
    return font.font_bytes
