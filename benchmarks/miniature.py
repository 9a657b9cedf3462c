"""Is what the miniature draws right? Held-out prompts and edits through a real server, judged from the pixels.

    python tools/dev.py bench miniature [--prompts N] [--edits N] [--save]

A prompt is right when background, every shape (kind, colour, size, place) and the word (text, colour, place) are,
and nothing else is there. An edit is right when all that holds of the wanted result and what had to stay is within
25 dB of the source. The judge first looks at the drawn originals: what it misreads there counts against nobody.
"""
import os
import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import report
from numpy import ndarray
from PIL import Image

from qwen_image_2.tools.comfyui.client import Client
from qwen_image_2.tools.comfyui.server import Server
from qwen_image_2.tools.miniature import examples, judge, scenes
from qwen_image_2.tools.miniature.examples import Example
from qwen_image_2.tools.miniature.painter import Painter
from qwen_image_2.tools.miniature.scenes import TRANSPARENT

SEED = 7                # of the questions; training has others
FULL, SHORT = {"preset": "Quality 40"}, {"preset": "Custom", "steps": 8}
MIN_PSNR = 25.0       # dB


@dataclass(frozen=True)
class Answer:
    example: Example
    picture: ndarray    # (H, W, 4), 8 bits
    seen: scenes.Scene

    @property
    def verdict(self) -> judge.Verdict:
        return judge.compare(self.seen, self.example.target)

    @property
    def psnr(self) -> float | None:
        return judge.psnr_of_kept(self.picture, self.example.references[0], self.example.target)

    @property
    def right_edit(self) -> bool:
        return self.verdict.all and (self.psnr is None or self.psnr >= MIN_PSNR)

    @property
    def alpha_overlap(self) -> float:
        """Intersection over union of what is visible here and in the drawn target."""
        ours, drawn = (picture[..., 3] > 127 for picture in (self.picture, pixels_of(self.example.target)))
        return (ours & drawn).sum() / max(1, (ours | drawn).sum())


def pixels_of(scene: scenes.Scene) -> ndarray:
    return numpy.asarray(scenes.draw(scene))


# ---------------------------------------------------------------- asking

def questions(count: int, invent: Callable[[random.Random], Example], name: str) -> list[Example]:
    """Held-out examples that the judge reads right where they are drawn."""
    rng, found, misread = random.Random(f"{name} {SEED}"), [], 0
    while len(found) < count:
        example = invent(rng)
        if scenes.held_out(example.target):
            legible = judge.compare(judge.look(pixels_of(example.target)), example.target).all
            found += [example] * legible
            misread += not legible
    print(f"{name}: {misread} of {count + misread} drawn originals were misread and left out.", flush=True)
    return found


def answers(painter: Painter, asked: list[Example], sampling: dict) -> list[Answer]:
    pictures = (painter.paint(example, seed, **sampling) for seed, example in enumerate(asked))
    return [Answer(example, picture, judge.look(picture)) for example, picture in zip(asked, pictures, strict=True)]


# ---------------------------------------------------------------- figures

def share(values) -> float:
    return statistics.fmean(map(float, values))


def figures(prompts: list[Answer], short: list[Answer], edits: list[Answer]) -> list[tuple[str, float, float | None]]:
    """Name, value, goal (at least)."""
    with_word = [answer for answer in prompts if answer.example.target.word]
    clear = [answer for answer in prompts + edits if answer.example.target.background == TRANSPARENT]
    everything = share(answer.verdict.all for answer in prompts)
    rows = [
        ("prompts: everything right", everything, 0.90),
        ("prompts: background right", share(answer.verdict.background for answer in prompts), None),
        ("prompts: shapes right", share(answer.verdict.shapes for answer in prompts), None),
        ("prompts: word right (text, colour, place)", share(answer.verdict.word for answer in with_word), 0.85),
        ("prompts: everything right in 8 steps", share(answer.verdict.all for answer in short), everything - 0.05),
        ("edits: everything right and the rest kept", share(answer.right_edit for answer in edits), 0.85),
        ("edits: everything right", share(answer.verdict.all for answer in edits), None),
        ("edits: median PSNR of what should stay (dB)",
         statistics.median(answer.psnr for answer in edits if answer.psnr is not None), MIN_PSNR),
        ("transparent pictures: mean IoU of alpha", share(answer.alpha_overlap for answer in clear), 0.90),
    ]
    for kind in examples.EDITS:
        of_kind = [answer for answer in edits if answer.example.edit == kind]
        if of_kind:
            rows.append((f"edits: {kind} ({len(of_kind)})", share(answer.right_edit for answer in of_kind), None))
    return rows


def table(rows: list[tuple[str, float, float | None]]) -> str:
    cells = [(name, f"{value:.3f}", "" if goal is None else f"at least {goal:.3f}",
              "" if goal is None else "yes" if value >= goal else "NO") for name, value, goal in rows]
    return report.aligned([("measurement", "value", "goal", "met"), *cells])


def _records(name: str, answers: list[Answer]) -> list[dict]:
    return [{"set": name, "prompt": answer.example.prompt, "edit": answer.example.edit, "right": answer.verdict.all,
             "psnr": answer.psnr if answer.example.references else None,
             "wanted": repr(answer.example.target), "seen": repr(answer.seen)} for answer in answers]


def main() -> None:
    parser = report.parser("miniature", __doc__)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="keep what was drawn")
    chosen = parser.parse_args()
    host = report.host()
    asked = questions(chosen.prompts, examples.invent_prompt, "prompts")
    edited = questions(chosen.edits, examples.invent_edit, "edits")
    with tempfile.TemporaryDirectory() as folder, Server(Path(os.environ["COMFYUI_PATH"])) as server:
        painter = Painter(Client(server.url), Path(folder))
        sets = {
            "prompts": answers(painter, asked, FULL),
            "prompts in 8 steps": answers(painter, asked, SHORT),
            "edits": answers(painter, edited, FULL),
        }
    rows = figures(*sets.values())
    print(table(rows))
    if chosen.pictures:
        keep_pictures(chosen.pictures, sets)
    if chosen.save:
        records = [record for name, answers in sets.items() for record in _records(name, answers)]
        data = {"figures": {name: value for name, value, _ in rows}, "answers": records}
        report.keep("miniature", host, data, table(rows))


def keep_pictures(folder: Path, sets: dict[str, list[Answer]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, answers in sets.items():
        for number, answer in enumerate(answers):
            verdict = "right" if answer.verdict.all else "wrong"
            Image.fromarray(answer.picture).save(folder / f"{name.replace(' ', '-')}-{number:03}-{verdict}.png")


if __name__ == "__main__":
    main()
