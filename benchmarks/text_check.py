"""How often does the text check itself err? Rendered pages with known words, right and with planted errors.

    python tools/dev.py bench text_check [--pages N] [--save]

English, Chinese, both together and Chinese in columns, at four sizes of letters, clean, noisy and on a busy ground.
Measured are false alarms (a right line is called wrong) and noticed errors (a line with one wrong, missing, doubled
or swapped letter is called wrong). Fonts are the system's; a script without a font is left out and said to be.
"""
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import report
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from qwen_image_2.pages import glyphs, ocr
from qwen_image_2.pages.compare import RIGHT, Rules, comparable

SEED = 3
SIDE, LINES = 768, 6
SIZES = (14, 20, 32, 64)  # pixels from the top of the highest letters to the bottom of the lowest
TOLERANCES = (0.0, 0.05, 0.1, 0.15)
LATIN_FONTS = ("DejaVuSans.ttf", "DejaVuSerif-Bold.ttf", "LiberationSans-Regular.ttf", "LiberationSerif-Italic.ttf",
               "LiberationSansNarrow-Bold.ttf", "Arial.ttf", "times.ttf", "Georgia.ttf")
CHINESE_FONTS = ("Noto Sans CJK SC Regular", "Noto Sans CJK SC Bold", "Noto Serif CJK SC Regular", "msyh.ttc",
                 "simsun.ttc", "PingFang.ttc")

ENGLISH = """market harbour night free entry music lantern garden summer coffee bakery morning fresh bread open daily
winter festival gallery museum street river bridge window letter paper printed studio concert theatre ticket sunday
friday autumn mountain village kitchen pepper orange lemon honey winner travel station northern quiet bright golden
silver velvet journey harvest island lighthouse captain anchor compass pocket ribbon candle mirror shadow"""
CHINESE = """海港 夜市 免费 入场 音乐 现场 灯笼 花园 夏天 咖啡 面包 清晨 新鲜 每日 冬季 节日 画廊 博物馆 街道 河流
大桥 窗户 信件 纸张 印刷 工作室 演出 剧院 门票 星期日 秋天 山村 厨房 胡椒 橙子 柠檬 蜂蜜 旅行 车站 北方 安静 明亮 金色
银色 旅程 丰收 岛屿 灯塔 船长 指南针 口袋 丝带 蜡烛 镜子 影子 欢迎 光临 优惠 活动 时间 地点"""


@dataclass(frozen=True)
class Result:
    """One line that was checked. planted: what it said instead, where that was an error."""

    script: str
    size: int
    ground: str
    expected: str
    planted: str | None
    found: str
    status: str
    distance: float


# ---------------------------------------------------------------- pages

def english(rng: random.Random) -> str:
    words = rng.sample(ENGLISH.split(), 2)
    words[1:] = words[1:] if rng.random() < 0.7 else [f"{rng.randrange(8, 22)}:30"]
    return rng.choice((str.upper, str.title, str.capitalize))(" ".join(words))


def chinese(rng: random.Random) -> str:
    return "".join(rng.sample(CHINESE.split(), 3))


def mixed(rng: random.Random) -> str:
    word, name = rng.choice(CHINESE.split()), rng.choice(ENGLISH.split()).title()
    return f"{word} {name} {rng.randrange(2, 99)}{rng.choice('年月日号')}"


def with_an_error(line: str, rng: random.Random) -> str:
    """The line with one letter replaced, dropped, doubled, or swapped with the next one."""
    while True:
        place = rng.randrange(len(line) - 1)
        letter, after = line[place], line[place + 1]
        others = "".join((CHINESE if letter >= "一" else ENGLISH).split())
        new = rng.choice((rng.choice(others), "", letter * 2, after + letter))
        if letter.isupper():
            new = new.upper()
        wrong = line[:place] + new + line[place + (2 if new == after + letter else 1):]
        if letter.isalnum() and after.isalnum() and comparable(wrong, Rules()) != comparable(line, Rules()):
            return wrong


def page(lines: list[str], font: ImageFont.FreeTypeFont, size: int, vertical: bool, ground: str, seed: int
         ) -> np.ndarray:
    """(SIDE, SIDE, 3), 8 bits."""
    rng = np.random.default_rng(seed)
    paper, ink = (("white", "black") if ground != "busy" else (None, "white"))
    picture = Image.new("RGB", (SIDE, SIDE), paper) if paper else _blobs(rng)
    pen = ImageDraw.Draw(picture)
    step = (SIDE - 60) // LINES
    for row, line in enumerate(lines):
        if vertical:
            for number, character in enumerate(line):
                pen.text((60 + step * row, 40 + number * 1.1 * size), character, ink, font)
        else:
            pen.text((40 + int(rng.integers(0, 40)), 40 + step * row), line, ink, font)
    return np.asarray(picture if ground != "noisy" else _noisy(picture, rng))


def _blobs(rng: np.random.Generator) -> Image.Image:
    """Dark colours that run into each other, with fine grain."""
    coarse = Image.fromarray(rng.integers(0, 150, (12, 12, 3), dtype=np.uint8)).resize((SIDE, SIDE),
                                                                                      Image.Resampling.BICUBIC)
    grain = rng.integers(-12, 13, (SIDE, SIDE, 1))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 160).astype(np.uint8))


def _noisy(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Slightly blurred, with noise, and saved as a JPEG of middling quality."""
    values = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7))) + rng.normal(0, 20, (SIDE, SIDE, 3))
    file = BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


# ---------------------------------------------------------------- fonts

def fonts(names: tuple[str, ...]) -> dict[str, tuple[Path, int]]:
    """Those of the system's faces whose names contain one of these."""
    there = {}
    for folder in glyphs.system_folders():
        for path in glyphs.font_files(folder):
            there |= glyphs.named_faces(path, path.name)
    return {name: face for name, face in sorted(there.items()) if any(wanted in name for wanted in names)}


# ---------------------------------------------------------------- measuring

def measure(script: str, invent: Callable[[random.Random], str], faces: list[tuple[Path, int]], vertical: bool,
            pages: int) -> list[Result]:
    results, rules = [], Rules(known=ocr.known_characters())
    for size in SIZES:
        for ground in ("clean", "noisy", "busy"):
            rng = random.Random(f"{SEED} {script} {size} {ground}")
            for number in range(2 * pages):
                lines = [invent(rng)[:SIDE // size - 2] for _ in range(LINES)]
                planted = [with_an_error(line, rng) for line in lines] if number % 2 else lines
                path, index = rng.choice(faces)
                shown = page(planted, ImageFont.truetype(path, size, index=index), size, vertical, ground,
                             rng.randrange(2**32))
                for line, wrong, judged in zip(lines, planted, ocr.check(shown, lines, rules).lines, strict=True):
                    results.append(Result(script, size, ground, line, wrong if number % 2 else None, judged.found,
                                          judged.status, judged.distance))
            print(f"{script}, {size} px, {ground}: {summary(results[-2 * pages * LINES:])}", flush=True)
    return results


def false_alarms(results: list[Result], tolerance: float = 0.0) -> float:
    """Share of the right lines that are called wrong."""
    return statistics.fmean(one.distance > tolerance for one in results if one.planted is None)


def noticed(results: list[Result], tolerance: float = 0.0) -> float:
    """Share of the wrong lines that are called wrong."""
    return statistics.fmean(one.distance > tolerance for one in results if one.planted is not None)


def summary(results: list[Result]) -> str:
    return f"{false_alarms(results):.1%} false alarms, {noticed(results):.1%} of the errors noticed"


def rows(results: list[Result]) -> list[tuple[str, ...]]:
    """By script, size and ground, each over everything else; then all of it at several tolerances."""
    found = [("lines", "right ones", "false alarms", "errors noticed")]
    for key in ("script", "size", "ground"):
        for value in dict.fromkeys(getattr(one, key) for one in results):
            part = [one for one in results if getattr(one, key) == value]
            found.append(_row(f"{value} px" if key == "size" else str(value), part, 0.0))
    return found + [_row(f"all, tolerance {tolerance:g}", results, tolerance) for tolerance in TOLERANCES]


def _row(name: str, results: list[Result], tolerance: float) -> tuple[str, ...]:
    right = sum(one.planted is None for one in results)
    return name, str(right), f"{false_alarms(results, tolerance):.1%}", f"{noticed(results, tolerance):.1%}"


def main() -> None:
    parser = report.parser("text_check", __doc__)
    parser.add_argument("--pages", type=int, default=2, help="right ones of each kind, and as many with errors")
    chosen = parser.parse_args()
    host, latin, han = report.host(), fonts(LATIN_FONTS), fonts(CHINESE_FONTS)
    kinds = [("English", english, latin, False), ("Chinese", chinese, han, False), ("mixed", mixed, han, False),
             ("Chinese in columns", chinese, han, True)]
    results, begin = [], time.monotonic()
    for script, invent, faces, vertical in kinds:
        if faces:
            results += measure(script, invent, list(faces.values()), vertical, chosen.pages)
        else:
            print(f"{script} is left out: none of its fonts is installed.")
    settings = {"fonts": ", ".join([*latin, *han]), "seconds": round(time.monotonic() - begin),
                "wrong right lines": ", ".join(f"{one.expected} as {one.found or 'nothing'}" for one in results
                                               if one.planted is None and one.status != RIGHT)[:2000]}
    text = f"{report.listing(settings)}\n\n{report.aligned(rows(results))}"
    print(text)
    if chosen.save:
        report.keep("text_check", host, {"settings": settings, "lines": [asdict(r) for r in results]}, text)


if __name__ == "__main__":
    main()
