"""Does a checkpoint write what it is asked to write? Pictures of prompts with known words, read by Text Check.

    python tools/dev.py bench text [--prompts FILE] [--models DIR] [--count N] [--out DIR] [--save]

Without --models the miniature is asked, for its own word prompts. With --models the prompts are those of
benchmarks/text_prompts.toml: 40, English and Chinese, five layouts, 22 to 1,000 tokens. --prompts names another such
file, or text_prompts.jsonl or text_prompts_zh.jsonl of LongText-Bench (github.com/X-Omni-Team/X-Omni).

The files may be of either family. Qwen-Image 1.x wants --preset "Quality 50" --cfg 4 --size 1328.

Scores are those of the node Text Check, by which the pictures are read in the server. They are not LongText-Bench's
own, which another reader (Qwen2.5-VL) gives to words without their order.

--out keeps answers, pictures and a contact sheet in a folder; the same command goes on where it was stopped.
"""
import argparse
import contextlib
import os
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import report

from qwen_image_2.model.images import sizes
from qwen_image_2.pages import ocr
from qwen_image_2.tools.cli import output
from qwen_image_2.tools.cli.errors import UserError
from qwen_image_2.tools.comfyui import models
from qwen_image_2.tools.comfyui.client import Client
from qwen_image_2.tools.comfyui.server import Server
from qwen_image_2.tools.miniature.painter import BUILT_IN
from qwen_image_2.tools.text_benchmark import benchmark, prompt_sets
from qwen_image_2.tools.text_benchmark.benchmark import Run, Settings
from qwen_image_2.tools.text_benchmark.prompt_sets import Prompt

FILES = tuple(BUILT_IN)  # inputs of the loader
WORDS = 40               # prompts of the miniature


def parse() -> argparse.Namespace:
    parser = report.parser("text", __doc__, "figures and contact sheet")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help=".toml, or .jsonl of LongText-Bench")
    parser.add_argument("--count", type=_positive, metavar="N", help="at most so many, evenly from all of them")
    parser.add_argument("--models", type=Path, metavar="DIR", help="folder with diffusion_models, text_encoders, vae")
    for name in FILES:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="NAME", help="where --models has several")
    parser.add_argument("--preset", default="Quality 40",
                        help="the sampler's (Quality 40; for a Turbo model Turbo 8, for one of 1.x Quality 50)")
    parser.add_argument("--steps", type=_positive, default=40, help="only with --preset Custom")
    parser.add_argument("--cfg", type=float, default=1.0, help="the sampler's (1; for base models of 1.x 4)")
    parser.add_argument("--negative", default=" ", metavar="TEXT", help="negative prompt, where --cfg is above 1")
    parser.add_argument("--seed", type=int, default=0, help="of the first prompt; each further one has the next")
    parser.add_argument("--size", choices=[str(side) for side in sizes.CLASSES], default="2048", help="size class")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep answers, pictures and contact sheet, or go on")
    return parser.parse_args()


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def asked(chosen: argparse.Namespace) -> list[Prompt]:
    if chosen.prompts or chosen.models:
        return prompt_sets.spread(prompt_sets.read(chosen.prompts or prompt_sets.OWN), chosen.count)
    return prompt_sets.of_miniature(chosen.count or WORDS)


def named_files(chosen: argparse.Namespace) -> dict[str, str]:
    return {name: getattr(chosen, name) for name in FILES if getattr(chosen, name)}


def check(chosen: argparse.Namespace) -> None:
    """Find mistakes before anything is started."""
    try:
        ocr.require()
    except ValueError as error:
        raise UserError(str(error)) from error
    if chosen.models:
        chosen.models = models.given(chosen.models)
    elif named_files(chosen):
        raise UserError("Model files are named, but not their folder: give it with --models.")


def main() -> int:
    chosen = parse()
    check(chosen)
    prompts, host = asked(chosen), report.host()
    with contextlib.ExitStack() as stack:
        folder = chosen.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        output.require_writable(folder)
        server = stack.enter_context(Server(Path(os.environ["COMFYUI_PATH"]), models=chosen.models))
        client = Client(server.url)
        files = benchmark.loader_files(client, named_files(chosen)) if chosen.models else BUILT_IN
        settings = Settings(files, chosen.preset, chosen.steps, chosen.seed, chosen.size, chosen.cfg,
                            chosen.negative)
        run = Run(folder, prompts, settings, {"commit": host["commit"]})
        if run.answers:
            print(f"{len(run.answers)} of {len(prompts)} are there already.", flush=True)
        try:
            run.draw(client, lambda line: print(line, flush=True))
        finally:  # also of a run that is stopped, or that fails at its tenth picture
            if run.answers:
                finish(run, chosen, host)
    return 0


def name_of_prompts(chosen: argparse.Namespace) -> str:
    if chosen.prompts:
        return chosen.prompts.name
    return prompt_sets.OWN.name if chosen.models else "the miniature's word prompts"


def finish(run: Run, chosen: argparse.Namespace, host: dict) -> None:
    """Table and contact sheet of what there is."""
    partial = "" if run.finished else (f"PARTIAL: {len(run.answers)} of {len(run.prompts)} prompts, the run was "
                                       f"stopped.\n\n")
    settings = asdict(run.settings)
    kept = {**settings.pop("files"), **settings, "prompts": name_of_prompts(chosen)}
    if not chosen.models:
        del kept["size"]  # the miniature has its own
    text = f"{partial}{report.listing(kept)}\n\n{report.aligned(benchmark.rows(run.answers))}"
    print(text, flush=True)
    sheet = benchmark.sheet(run)
    output.write_whole(run.folder / "sheet.png", sheet)
    if chosen.out:
        print(f"Answers, pictures and contact sheet are in {chosen.out}"
              f"{'; the same command goes on from there' if partial else ''}.")
    if chosen.save:
        data = {"settings": kept, "answers": [asdict(answer) for answer in run.answers]}
        paths = report.keep("text-partial" if partial else "text", host, data, text)
        report.keep_file(paths[0].with_suffix(".png"), sheet)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells switch it off for background jobs of scripts
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
