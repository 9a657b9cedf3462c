"""What the miniature learns from: a prompt, its reference pictures, and the picture that should come out."""
import random
from dataclasses import dataclass, replace

from . import scenes
from .scenes import COLOURS, TRANSPARENT, WORDS, Scene
from .wording import describe, instruct

EDIT_SHARE = 0.45
# How often each kind of edit is practised.
EDITS = {"background": 3, "colour": 3, "word": 4, "add": 3, "remove": 2, "cut out": 2, "combine": 3}


@dataclass(frozen=True)
class Example:
    prompt: str
    target: Scene
    references: tuple[Scene, ...] = ()
    edit: str = ""  # a key of EDITS, empty for text-to-image


def invent(rng: random.Random) -> Example:
    """Any example, of a share of scenes as large as chance makes it."""
    return invent_edit(rng) if rng.random() < EDIT_SHARE else invent_prompt(rng)


def invent_prompt(rng: random.Random) -> Example:
    scene = scenes.sample(rng)
    return Example(describe(scene, rng), scene)


def invent_edit(rng: random.Random, edit: str | None = None) -> Example:
    """An edit of one kind, or of any."""
    edit = edit or rng.choices(list(EDITS), EDITS.values())[0]
    while True:
        source = scenes.sample(rng)
        if _allows(edit, source):
            return _MAKERS[edit](rng, source)


def _allows(edit: str, scene: Scene) -> bool:
    opaque = scene.background != TRANSPARENT
    return {"background": opaque, "cut out": opaque and _survives_cutting(scene), "word": scene.word is not None,
            "colour": bool(scene.shapes), "add": len(scene.shapes) < 2,
            "remove": bool(scene.shapes) and (len(scene.shapes) > 1 or scene.word is not None),
            "combine": len(scene.shapes) == 1 and opaque}[edit]


def _survives_cutting(scene: Scene) -> bool:
    return scene.word is None or scene.word.colour in scenes.readable_on(TRANSPARENT)


def _background(rng: random.Random, source: Scene) -> Example:
    def fits(name: str) -> bool:
        return (name != source.background
                and all(shape.colour in scenes.visible_on(name) for shape in source.shapes)
                and (source.word is None or source.word.colour in scenes.readable_on(name)))

    choices = [name for name in COLOURS if fits(name)]
    if not choices:
        return invent_edit(rng, "background")
    new = rng.choice(choices)
    return Example(instruct("background", rng, new), replace(source, background=new), (source,), "background")


def _colour(rng: random.Random, source: Scene) -> Example:
    old = rng.choice(source.shapes)
    new = rng.choice([name for name in scenes.visible_on(source.background) if name != old.colour])
    changed = tuple(replace(shape, colour=new) if shape is old else shape for shape in source.shapes)
    return Example(instruct("colour", rng, new, old), replace(source, shapes=changed), (source,), "colour")


def _word(rng: random.Random, source: Scene) -> Example:
    new = rng.choice([word for word in WORDS if word != source.word.text])
    target = replace(source, word=replace(source.word, text=new))
    return Example(instruct("word", rng, new), target, (source,), "word")


def _add(rng: random.Random, source: Scene) -> Example:
    target = scenes.add_shape(rng, source)
    return Example(instruct("add", rng, shape=target.shapes[-1]), target, (source,), "add")


def _remove(rng: random.Random, source: Scene) -> Example:
    gone = rng.choice(source.shapes)
    target = replace(source, shapes=tuple(shape for shape in source.shapes if shape is not gone))
    return Example(instruct("remove", rng, shape=gone), target, (source,), "remove")


def _cut_out(rng: random.Random, source: Scene) -> Example:
    return Example(instruct("cut out", rng), replace(source, background=TRANSPARENT), (source,), "cut out")


def _combine(rng: random.Random, source: Scene) -> Example:
    """The shape of the first picture alone on the second one's background colour."""
    backgrounds = [name for name in scenes.visible_on(source.shapes[0].colour) if name != source.background]
    second = scenes.sample(rng, source.canvas)
    while second.background not in backgrounds:
        second = scenes.sample(rng, source.canvas)
    target = replace(source, background=second.background, word=None)
    return Example(instruct("combine", rng, shape=source.shapes[0]), target, (source, second), "combine")


_MAKERS = {"background": _background, "colour": _colour, "word": _word, "add": _add, "remove": _remove,
           "cut out": _cut_out, "combine": _combine}


def for_training(rng: random.Random) -> Example:
    """An example none of whose pictures is held out."""
    while True:
        example = invent(rng)
        if not any(map(scenes.held_out, (example.target, *example.references))):
            return example
