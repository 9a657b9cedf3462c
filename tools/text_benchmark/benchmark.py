"""Draws prompts on a running server, has Text Check read the pictures, and sums up what it said.

A folder keeps the run: answers.json, a picture for each answer, and in the end sheet.png. It is written after every
picture, so a run that was stopped goes on from there.
"""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ...pages.compare import RIGHT, UNREADABLE
from ..cli import output
from ..cli.errors import UserError
from ..comfyui import workflow
from ..comfyui.client import Client, Result
from ..comfyui.workflow import MINIATURE, Graph
from ..miniature.painter import BUILT_IN, node
from .prompt_sets import Prompt

LENGTHS = (50, 150, 400, 1000)  # tokens, each the most of a class
CELL, CAPTION, GAP = 240, 20, 8  # pixels of the contact sheet
GREEN, RED, INK, PAPER = (0, 120, 45), (190, 0, 0), (60, 60, 60), (236, 236, 236)


@dataclass(frozen=True)
class Settings:
    """What decides about the pictures. files: the loader's, by its inputs. size: class of the canvases. negative: the
    negative prompt of all pictures, which counts where cfg is above 1."""

    files: dict[str, str]
    preset: str = "Quality 40"
    steps: int = 40
    seed: int = 0
    size: str = "2048"
    cfg: float = 1.0
    negative: str = ""

    def graph(self, prompt: Prompt, number: int) -> Graph:
        """Prompt to picture to report; node ids: picture, report, tokens."""
        fixed = isinstance(prompt.canvas, tuple)
        width, height = prompt.canvas if fixed else (1024, 1024)
        graph = {
            "loader": node("QwenImage2Loader", variant="auto", weight_format="as stored", **self.files),
            "encode": node("QwenImage2TextEncode", clip=["loader", 1], prompt=prompt.prompt,
                           negative_prompt=self.negative),
            "canvas": node("QwenImage2EmptyLatent", aspect_ratio="custom" if fixed else prompt.canvas, size=self.size,
                           width=width, height=height, batch_size=1),
            "sampler": node("QwenImage2Sampler", model=["loader", 0], positive=["encode", 0], negative=["encode", 1],
                            latent=["canvas", 0], seed=self.seed + number, preset=self.preset, steps=self.steps,
                            cfg=self.cfg, denoise=1.0),
            "decode": node("QwenImage2VAEDecode", samples=["sampler", 0], vae=["loader", 2]),
            "check": node("QwenImage2TextCheck", image=["decode", 1], expected_text="\n".join(prompt.lines),
                          match_case=False, match_punctuation=False, tolerance=0.0, allow_extra=False),
            "picture": node("SaveImage", images=["decode", 1], filename_prefix="text"),
            "report": node("PreviewAny", source=["check", 1]),
            "tokens": node("PreviewAny", source=["encode", 2]),
        }
        return workflow.with_miniature(graph) if MINIATURE in self.files.values() else graph


def loader_files(client: Client, named: dict[str, str]) -> dict[str, str]:
    """The loader's choices: what is named, else the only file of its kind. Raises UserError where that is not clear."""
    inputs = client.object_info("QwenImage2Loader")["QwenImage2Loader"]["input"]["required"]
    found = {}
    for name in BUILT_IN:
        there = [file for file in inputs[name][1]["options"] if file != MINIATURE]
        if not there:
            raise UserError(f"There are no weights: the folder of --models has no {name.replace('_', ' ')}. Put the "
                            f"three files of Qwen-Image 2.x or 1.x there (docs/memory-and-formats.md, "
                            f"docs/qwen-image-1.md), or leave --models out to ask the miniature.")
        wanted = named.get(name) or (there[0] if len(there) == 1 else None)
        if wanted not in there:
            problem = f"there is no {wanted!r}" if wanted else "there is not just one file"
            raise UserError(f"--{name.replace('_', '-')}: {problem} in the folder of --models; choose one of: "
                            f"{', '.join(there)}.")
        found[name] = wanted
    return found


@dataclass(frozen=True)
class Answer:
    """What Text Check said about one picture; lines as in its report."""

    id: str
    language: str
    layout: str
    tokens: int
    passed: bool
    score: float
    word_accuracy: float
    lines: list[dict] = field(repr=False)
    extra: list[dict] = field(repr=False)

    @property
    def judged(self) -> list[dict]:
        return [line for line in self.lines if line["status"] != UNREADABLE]

    @property
    def length(self) -> str:
        fits = (f"up to {most:,} tokens" for most in LENGTHS if self.tokens <= most)
        return next(fits, f"above {LENGTHS[-1]:,} tokens")


# ---------------------------------------------------------------- a run

class Run:
    """The answers in one folder. Raises UserError where the folder holds those of another run."""

    def __init__(self, folder: Path, prompts: list[Prompt], settings: Settings, about: dict[str, object]):
        self.folder, self.prompts, self.settings = folder, prompts, settings
        # All that decides about an answer; what was drawn otherwise may not be mixed with this.
        self.key = json.loads(json.dumps({"prompts": [asdict(prompt) for prompt in prompts], **asdict(settings),
                                          **about}))
        output.require_writable(folder)
        self.answers = self._kept()

    @property
    def finished(self) -> bool:
        return len(self.answers) == len(self.prompts)

    def _kept(self) -> list[Answer]:
        file = self.folder / "answers.json"
        if not file.exists():
            return []
        try:
            kept = json.loads(file.read_text("utf-8"))
            answers = [Answer(**answer) for answer in kept["answers"]]
            other = [name for name in self.key if kept["run"].get(name) != self.key[name]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file} was not written by this benchmark: choose another folder.") from error
        if other:
            raise UserError(f"{self.folder} holds the answers of another run (its {', '.join(other)} differ): choose "
                            f"another folder.")
        return answers

    def picture(self, number: int) -> Path:
        return self.folder / f"{number + 1:03}.png"

    def draw(self, client: Client, say: Callable[[str], None]) -> None:
        """Ask for every answer that is not there yet, one after the other."""
        first = len(self.answers)
        for number in range(first, len(self.prompts)):
            prompt = self.prompts[number]
            result = client.run(self.settings.graph(prompt, number))
            if number == first:
                for note in _notes(result):
                    say(note)
            self._keep(number, result, client)
            answer = self.answers[-1]
            say(f"{number + 1} of {len(self.prompts)}: {prompt.id}, {answer.tokens} tokens, score {answer.score:.2f}"
                f"{', passed' if answer.passed else ''}")

    def _keep(self, number: int, result: Result, client: Client) -> None:
        picture, = (file for file in result.files if file.node == "picture")
        output.write_whole(self.picture(number), client.view(picture))
        report, = json.loads(result.outputs["report"]["text"][0])["pictures"]
        prompt = self.prompts[number]
        self.answers.append(Answer(
            prompt.id, prompt.language, prompt.layout, int(result.outputs["tokens"]["text"][0]),
            **{key: report[key] for key in ("passed", "score", "word_accuracy", "lines", "extra")}))
        content = {"run": self.key, "answers": [asdict(answer) for answer in self.answers]}
        output.write_whole(self.folder / "answers.json", json.dumps(content, ensure_ascii=False, indent=1).encode())


def _notes(result: Result) -> list[str]:
    """What the nodes that make the picture say, such as that a preset is not for this model."""
    return [line for node in ("loader", "sampler", "decode") for line in result.messages.get(node, ())]


# ---------------------------------------------------------------- figures

def rows(answers: list[Answer]) -> list[tuple[str, ...]]:
    """All answers, then by language, layout and length; the first row names the columns."""
    found = [("prompts", "pictures", "word accuracy", "edit distance", "lines right", "passed"), _row("all", answers)]
    for key in ("language", "layout", "length"):
        groups = dict.fromkeys(getattr(answer, key) for answer in sorted(answers, key=_order(key)))
        found += [_row(name, [answer for answer in answers if getattr(answer, key) == name]) for name in groups]
    return found


def _order(key: str) -> Callable[[Answer], object]:
    return lambda answer: answer.tokens if key == "length" else 0


def _row(name: str, answers: list[Answer]) -> tuple[str, ...]:
    """Means over pictures, except that lines are counted over all pictures together. Edit distances are normalized:
    0 is equal, 1 has nothing in common."""
    lines = [line for answer in answers for line in answer.judged]
    return (name, str(len(answers)), f"{statistics.fmean(answer.word_accuracy for answer in answers):.3f}",
            f"{statistics.fmean(line['distance'] for line in lines):.3f}",
            f"{sum(line['status'] == RIGHT for line in lines)} of {len(lines)}",
            f"{sum(answer.passed for answer in answers)} of {len(answers)}")


# ---------------------------------------------------------------- contact sheet

def sheet(run: Run) -> bytes:
    """PNG of all pictures, each with its number and id, and its score: green where it passed."""
    columns = max(1, math.ceil(math.sqrt(1.4 * len(run.answers))))
    down = CELL + CAPTION + GAP
    page = Image.new("RGB", (columns * (CELL + GAP) + GAP, math.ceil(len(run.answers) / columns) * down + GAP), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for number, answer in enumerate(run.answers):
        left, top = GAP + number % columns * (CELL + GAP), GAP + number // columns * down
        with Image.open(run.picture(number)) as file:
            picture = ImageOps.contain(file.convert("RGBA"), (CELL, CELL))
        page.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2), picture)
        pen.text((left, top + CELL + 2), f"{number + 1} {answer.id}"[:28], INK, font)
        pen.text((left + CELL, top + CELL + 2), f"{answer.score:.2f}", GREEN if answer.passed else RED, font,
                 anchor="ra")
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()
