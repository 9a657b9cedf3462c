"""Prompts with what the picture should say: our own file, LongText-Bench's files, the miniature's words."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy
import tomllib

from ...model.images import sizes
from ...pages import compare, ocr
from ...pages.quotation import literals
from ..cli.errors import UserError
from ..miniature import examples, scenes
from ..pack import ROOT

OWN = ROOT / "benchmarks" / "text_prompts.toml"
ENGLISH, CHINESE = "English", "Chinese"
SEED = 11  # of the miniature's questions; training and the other benchmarks have others


@dataclass(frozen=True)
class Prompt:
    """A question and its answer. canvas: an aspect ratio of `sizes`, or (width, height) in pixels."""

    id: str
    prompt: str
    lines: tuple[str, ...]  # what the picture should say
    language: str
    layout: str
    canvas: str | tuple[int, int] = "1:1"


def read(file: Path) -> list[Prompt]:
    """The prompts of a .toml file like our own, or of a .jsonl file like those of LongText-Bench."""
    readers = {".toml": _read_own, ".jsonl": _read_long_text_bench}
    if file.suffix.lower() not in readers:
        raise UserError(f"{file} ends in neither .toml nor .jsonl: give a file like benchmarks/{OWN.name} or one of "
                        f"LongText-Bench.")
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text.") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    prompts = readers[file.suffix.lower()](text, file.name)
    if not prompts:
        raise UserError(f"{file} has no prompts.")
    return prompts


def spread(prompts: list[Prompt], count: int | None) -> list[Prompt]:
    """At most `count` of them, evenly from the whole list."""
    if count is None or count >= len(prompts):
        return prompts
    return [prompts[number * len(prompts) // count] for number in range(count)]


# ---------------------------------------------------------------- our own

def _read_own(text: str, name: str) -> list[Prompt]:
    """[[prompt]] tables with id, language, layout, aspect_ratio and prompt; what is quoted in it is expected."""
    try:
        tables = tomllib.loads(text).get("prompt", [])
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name} is not a TOML file: {error}.") from error
    return [_own(table, f"{name}, prompt {number}") for number, table in enumerate(tables, start=1)]


def _own(table: dict, place: str) -> Prompt:
    keys = ("id", "language", "layout", "aspect_ratio", "prompt")
    found = {key: _words(table, key, place) for key in keys}
    if found["aspect_ratio"] not in sizes.RATIOS:
        raise UserError(f"{place} has the aspect_ratio {found['aspect_ratio']!r}: there are {', '.join(sizes.RATIOS)}.")
    lines = _lines(literals(found["prompt"]), place, "quotes no text that the picture should show")
    return Prompt(found["id"], found["prompt"].strip(), lines, found["language"], found["layout"],
                  found["aspect_ratio"])


# ---------------------------------------------------------------- LongText-Bench

def _read_long_text_bench(text: str, name: str) -> list[Prompt]:
    """One object per line: prompt_id, prompt, category, text (a list of what should be written, or one string), and
    length and text_length, which are not used: lengths are counted in tokens here.

    Source: text_prompts.jsonl and text_prompts_zh.jsonl in textbench/ of github.com/X-Omni-Team/X-Omni (Geng et al.
    2025, arXiv 2507.22058). Those files are not part of this repository.
    """
    return [_of_json(line, number, f"{name}, line {number}") for number, line in enumerate(text.split("\n"), start=1)
            if line.strip()]


def _of_json(line: str, number: int, place: str) -> Prompt:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON: {error}.") from error
    if not isinstance(entry, dict):
        raise UserError(f"{place} is not a JSON object with prompt and text.")
    written = entry.get("text")
    texts = [written] if isinstance(written, str) else written
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{place} has no text: it is a string, or a list of strings, that the picture should show.")
    lines = _lines(texts, place, "has no text that the picture should show")
    language = CHINESE if any("一" <= character <= "鿿" for character in "".join(lines)) else ENGLISH
    return Prompt(str(entry.get("prompt_id", number)), _words(entry, "prompt", place), lines, language,
                  str(entry.get("category", "any")))


def _words(entry: dict, key: str, place: str) -> str:
    if not isinstance(entry.get(key), str) or not entry[key].strip():
        raise UserError(f"{place} has no {key}.")
    return entry[key]


def _lines(texts: Iterable[str], place: str, problem: str) -> tuple[str, ...]:
    try:
        return tuple(compare.expected_lines("\n".join(texts)))
    except ValueError as error:
        raise UserError(f"{place} {problem}.") from error


# ---------------------------------------------------------------- the miniature

def of_miniature(count: int) -> list[Prompt]:
    """Prompts with a word that training never saw in these colours; those whose drawn original the reader misreads
    are left out, because what it cannot read there says nothing about the model."""
    rng, found = random.Random(f"text {SEED}"), []
    while len(found) < count:
        example = examples.invent_prompt(rng)
        word = example.target.word
        if word and scenes.held_out(example.target) and _is_legible(example.target):
            found.append(Prompt(f"{word.text.lower()}-{len(found) + 1}", example.prompt, (word.text,),
                                ENGLISH if example.prompt.isascii() else CHINESE, f"word, {word.row}",
                                example.target.canvas))
    return found


def _is_legible(scene: scenes.Scene) -> bool:
    rules = compare.Rules(known=ocr.known_characters())
    return ocr.check(numpy.asarray(scenes.draw(scene)), [scene.word.text], rules).passed
