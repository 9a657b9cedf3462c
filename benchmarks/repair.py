"""Does Repair Text repair? Posters of the miniature with one wrong word, repaired by the miniature, read by RapidOCR.

    python tools/dev.py bench repair [--pictures N] [--letters] [--keep DIR] [--save]

Each poster is drawn by Pillow with one letter of its word replaced. The edit is told what the miniature was taught
("Replace the word with ..."). By default its only reference is the region, because the miniature has learned two
references for one kind of edit alone, which leaves no word; --letters asks for them. A picture gets worse where its
score falls, or a pixel outside of what was repaired changes a bit. Beside the node's own reader, the miniature's judge
reads the word.
"""
import io
import json
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import report
from PIL import Image

from qwen_image_2.pages import ocr
from qwen_image_2.pages.compare import Rules
from qwen_image_2.tools.comfyui.client import Client
from qwen_image_2.tools.comfyui.server import Server
from qwen_image_2.tools.miniature import judge, scenes
from qwen_image_2.tools.miniature.painter import BUILT_IN, node

SEED, GOAL, ROUNDS, FEATHER = 20, 0.85, 3, 4
LETTERS = "ABCDEFGHIKLMNOPRSTUVWXYZ"
INSTRUCTION = "Replace the word with <words>."


@dataclass(frozen=True)
class Question:
    word: str
    drawn: str  # instead of it
    scene: scenes.Scene  # with the wrong word


@dataclass(frozen=True)
class Answer:
    word: str
    drawn: str
    rounds: int
    passed: bool
    before: float
    score: float
    judged: str       # the word that the miniature's judge reads
    kept_bits: bool   # outside of what was repaired


def questions() -> Iterator[Question]:
    """Opaque posters whose right word the reader reads, and whose wrong one it reads as something else."""
    rng, rules = random.Random(SEED), Rules(known=ocr.known_characters())
    while True:
        scene = scenes.sample(rng)
        if scene.background == scenes.TRANSPARENT or scene.word is None or not scene.word.text.isalpha():
            continue
        word, place = scene.word.text, rng.randrange(len(scene.word.text))
        drawn = word[:place] + rng.choice(LETTERS.replace(word[place], "")) + word[place + 1:]
        wrong = replace(scene, word=replace(scene.word, text=drawn))
        if drawn not in scenes.WORDS and passes(scene, word, rules) and not passes(wrong, word, rules):
            yield Question(word, drawn, wrong)


def passes(scene: scenes.Scene, word: str, rules: Rules) -> bool:
    return ocr.check(np.asarray(scenes.draw(scene).convert("RGB")), [word], rules).passed


def graph(name: str, question: Question, seed: int, letters: bool, **sampling) -> dict:
    return {
        "loader": node("QwenImage2Loader", variant="auto", weight_format="as stored", **BUILT_IN),
        "picture": node("LoadImage", image=name),
        "repair": node("QwenImage2RepairText", model=["loader", 0], clip=["loader", 1], vae=["loader", 2],
                       image=["picture", 0], expected_text=question.word, seed=seed, cfg=1.0, negative_prompt="",
                       instruction=INSTRUCTION, letters=letters, font="Noto Sans (built-in)", context=4.0,
                       resolution="128", feather=FEATHER, match_case=False, match_punctuation=False, tolerance=0.0,
                       allow_extra=False, **sampling),
        "save": node("SaveImage", images=["repair", 0], filename_prefix="repair"),
        "mask": node("MaskToImage", mask=["repair", 4]),
        "saved mask": node("SaveImage", images=["mask", 0], filename_prefix="mask"),
        "report": node("PreviewAny", source=["repair", 1]),
    }


def answered(client: Client, folder: Path, question: Question, seed: int, letters: bool, **sampling
             ) -> tuple[Answer, np.ndarray]:
    """And the picture (H, W, 3)."""
    path = folder / "poster.png"
    source = scenes.draw(question.scene).convert("RGB")
    source.save(path)
    result = client.run(graph(client.upload_image(path), question, seed, letters, **sampling))
    pictures = {file.node: np.asarray(Image.open(io.BytesIO(client.view(file))).convert("RGB"))
                for file in result.files}
    told = json.loads(result.outputs["report"]["text"][0])
    outside = pictures["saved mask"][..., 0] == 0
    kept = bool((pictures["save"] == np.asarray(source))[outside].all())
    opaque = np.dstack([pictures["save"], np.full(outside.shape, 255, np.uint8)])
    seen = judge.look(opaque).word
    return Answer(question.word, question.drawn, len(told["rounds"]), told["passed"], told["score_before"],
                  told["score"], seen.text if seen else "", kept), pictures["save"]


def rows(answers: list[Answer]) -> list[tuple[str, str, str]]:
    def share(good: list[bool]) -> str:
        return f"{sum(good) / len(good):.2f} ({sum(good)} of {len(good)})"

    found = [(f"pass after at most {rounds} round{'s' * (rounds > 1)}",
              share([one.passed and one.rounds <= rounds for one in answers]),
              f"at least {GOAL:.2f}" if rounds == ROUNDS else "") for rounds in range(1, ROUNDS + 1)]
    worse = sum(one.score < one.before or not one.kept_bits for one in answers)
    return [*found, ("got worse", str(worse), "none"),
            ("word right to the miniature's judge", share([one.judged == one.word for one in answers]), "")]


def main() -> None:
    parser = report.parser("repair", __doc__)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--letters", action="store_true", help="with the typeset letters as the second reference")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the pictures, before and after")
    parser.add_argument("--small", action="store_true", help="two steps of one round: whether it runs")
    chosen = parser.parse_args()
    host, answers = report.host(), []
    sampling = {"preset": "Custom", "steps": 2, "attempts": 1} if chosen.small else {
        "preset": "Quality 40", "steps": 40, "attempts": ROUNDS}
    with tempfile.TemporaryDirectory() as folder, Server(Path(os.environ["COMFYUI_PATH"])) as server:
        client = Client(server.url)
        for number, question in enumerate(islice(questions(), chosen.pictures)):
            answer, picture = answered(client, Path(folder), question, 1000 * number, chosen.letters, **sampling)
            answers.append(answer)
            print(f"{number + 1}. {answer.drawn} -> {answer.word}: {'passed' if answer.passed else 'failed'} after "
                  f"{answer.rounds}, score {answer.before:.2f} -> {answer.score:.2f}, judged {answer.judged!r}",
                  flush=True)
            if chosen.keep:
                chosen.keep.mkdir(parents=True, exist_ok=True)
                both = np.hstack([np.asarray(scenes.draw(question.scene).convert("RGB")), picture])
                Image.fromarray(both).save(chosen.keep / f"{number:03}.png")
    table = report.aligned([("measurement", "value", "goal"), *rows(answers)])
    print(table)
    if chosen.save:
        report.keep("repair", host, {"letters": chosen.letters, "answers": [asdict(one) for one in answers]}, table)


if __name__ == "__main__":
    main()
