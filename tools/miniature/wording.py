"""Scenes and changes of scenes in words: English, and a few ways to say it in Chinese."""
import random
import re

from .scenes import COLUMNS, ROWS, TRANSPARENT, Scene, Shape, Word

CHINESE_SHARE = 0.15

# fmt: off
CHINESE = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "purple": "紫色",
    "pink": "粉色", "white": "白色", "black": "黑色", TRANSPARENT: "透明",
    "circle": "圆形", "square": "方形", "triangle": "三角形", "star": "星形", "small": "小", "large": "大",
}
CHINESE_PLACES = (("左上方", "上方", "右上方"), ("左边", "中间", "右边"), ("左下方", "下方", "右下方"))  # row, column
CHINESE_ROWS = dict(zip(ROWS, ("上方", "中间", "下方"), strict=True))

WITH_BOTH = (
    "A poster with a {background} background, {shapes} and the word {word}.",
    "{background} background, {shapes}, the word {word}.",
    "A {background} poster: {shapes} and the word {word}.",
    "The word {word} with {shapes} on a {background} background.",
)
WITH_SHAPES = (
    "A poster with a {background} background and {shapes}.",
    "{background} background, {shapes}.",
    "A {background} poster: {shapes}.",
    "{shapes} on a {background} background.",
)
WITH_WORD = (
    "A poster with a {background} background and the word {word}.",
    "{background} background, the word {word}.",
    "A {background} poster: the word {word}.",
    "The word {word} on a {background} background.",
)
# fmt: on


def describe(scene: Scene, rng: random.Random) -> str:
    """A prompt for the scene, one of many."""
    chinese = rng.random() < CHINESE_SHARE
    return _describe_in_chinese(scene) if chinese else _describe_in_english(scene, rng)


def _describe_in_english(scene: Scene, rng: random.Random) -> str:
    templates = WITH_BOTH if scene.shapes and scene.word else WITH_SHAPES if scene.shapes else WITH_WORD
    shapes = list(scene.shapes)
    rng.shuffle(shapes)
    text = rng.choice(templates).format(
        background=scene.background, shapes=" and ".join(map(shape_phrase, shapes)),
        word=scene.word and word_phrase(scene.word))
    return _article(text[0].upper() + text[1:])


def _article(text: str) -> str:
    return re.sub(r"\b([Aa]) (?=orange)", r"\1n ", text)


def shape_phrase(shape: Shape) -> str:
    return f"a {shape.size} {shape.colour} {shape.kind} {_place(shape)}"


def _place(shape: Shape) -> str:
    row, column = shape.row, shape.column
    if row == column == "centre":
        return "in the centre"
    if row == "centre":
        return f"on the {column}"
    return f"at the {row}" if column == "centre" else f"at the {row} {column}"


def word_phrase(word: Word) -> str:
    row = "in the centre" if word.row == "centre" else f"at the {word.row}"
    return f'"{word.text}" in {word.colour} {row}'


def _describe_in_chinese(scene: Scene) -> str:
    parts = [f"{CHINESE[scene.background]}背景的海报", *map(_chinese_shape, scene.shapes)]
    if scene.word:
        parts.append(f"{CHINESE_ROWS[scene.word.row]}写着{CHINESE[scene.word.colour]}的“{scene.word.text}”")
    return "，".join(parts) + "。"


def _chinese_shape(shape: Shape) -> str:
    place = CHINESE_PLACES[ROWS.index(shape.row)][COLUMNS.index(shape.column)]
    return f"{place}有一个{CHINESE[shape.colour]}的{CHINESE[shape.size]}{CHINESE[shape.kind]}"


# ---------------------------------------------------------------- edits

# {new}: a colour or a word; {kind}: which shape; {shape}: a shape in full.
INSTRUCTIONS = {
    "background": ("Change the background to {new}.", "Make the background {new}."),
    "colour": ("Change the {kind} to {new}.", "Make the {kind} {new}."),
    "word": ('Replace the word with "{new}".', 'Change the text to "{new}".'),
    "add": ("Add {shape}.",),
    "remove": ("Remove the {kind}.",),
    "cut out": ("Remove the background.", "Make the background transparent."),
    "combine": ("Put the {kind} of <image1> on the background of <image2>.",
                "The {kind} of <image1> on the background of <image2>."),
}
CHINESE_INSTRUCTIONS = {
    "background": "把背景改成{new}。",
    "colour": "把{kind}改成{new}。",
    "word": "把文字改成“{new}”。",
    "add": "{shape}。",
    "remove": "去掉{kind}。",
    "cut out": "去掉背景。",
    "combine": "把<image1>的{kind}放到<image2>的背景上。",
}


def instruct(edit: str, rng: random.Random, new: str = "", shape: Shape | None = None) -> str:
    """An instruction for one kind of edit."""
    if rng.random() < CHINESE_SHARE:
        return CHINESE_INSTRUCTIONS[edit].format(
            new=CHINESE.get(new, new), kind=shape and CHINESE[shape.kind],
            shape=shape and _chinese_shape(shape).replace("有一个", "加一个"))
    return _article(rng.choice(INSTRUCTIONS[edit]).format(
        new=new, kind=shape and shape.kind, shape=shape and shape_phrase(shape)))
