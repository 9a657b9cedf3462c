"""`dev.py render`: reads its arguments, makes the plan and the workers, and says what came out."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from qwen_image_2.messages import Refusal
from qwen_image_2.pages import table

from ..cli import output
from ..cli.errors import UserError
from ..comfyui import models, workflow
from . import plan
from .plan import Plan

HELP = """\
{{column}} in any text of the workflow, and in a --set, is that column's text: --set "Sampler.seed={{seed}}". Files are
called by the workflow's filename_prefix, which may hold columns too, or by that and the row's number.
The same command goes on where it was stopped, and draws nothing twice. See docs/render.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="WORKFLOW.json", help="a workflow in API format")
    parser.add_argument("--table", type=Path, required=True, metavar="FILE", help="CSV, TSV, JSON Lines or XLSX")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where pictures and the journal go")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="change an input")
    parser.add_argument("--models", type=Path, metavar="DIR", help="folder with diffusion_models, text_encoders, vae")
    parser.add_argument("--workers", type=_count, metavar="N", help="so many at once, through Ray: each owns a card, "
                                                                    "or its share of the CPUs")
    parser.add_argument("--ray", metavar="HOST:PORT", help="on the Ray cluster whose head is there")
    parser.epilog = HELP


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers (1 to 1000)")
    return int(text)


def check(options: argparse.Namespace) -> None:
    """Find mistakes before the set-up, which may take minutes. Raises UserError."""
    graph = workflow.load(options.file)
    if options.table.suffix.lower() != ".xlsx":  # that needs the environment's packages
        plan.make(graph, options.set, _table(options.table))
    elif not options.table.is_file():
        raise UserError(f"There is no file {options.table}.")
    output.require_writable(options.out)


def _table(path: Path) -> table.Table:
    try:
        return table.read(path)
    except Refusal as error:
        raise UserError(str(error)) from error


def render(comfyui: Path, options: argparse.Namespace) -> int:
    """Draw all rows. The exit code is 0, 1 where a row has failed, 130 where Ctrl-C has stopped it."""
    from . import machines, pools, ray_pool
    graph = workflow.load(options.file)
    folder = options.models or models.of_comfyui(comfyui)
    if folder is None and workflow.needs_models(graph):
        print("The built-in miniature is used, at its own small size: it draws simple posters only.", flush=True)
        graph = workflow.with_miniature(graph)
    made = plan.make(graph, options.set, _table(options.table))
    kind = pools.WorkerKind("qwen_image_2.tools.render.worker:ComfyWorker", {
        "comfyui": comfyui, "models": folder, "pack": workflow.uses_pack(graph),
        "files": machines.model_files(made.graph)})
    if options.workers is None and options.ray is None:
        return carry_out(made, pools.Plain(kind), options.out, options.file.name)
    ray_pool.require_ray()
    return carry_out(made, ray_pool.RayPool(kind, options.workers, options.ray), options.out, options.file.name)


def carry_out(made: Plan, pool, folder: Path, name: str) -> int:
    """Draw a plan into a folder, with a line of progress, a summary and a contact sheet."""
    from . import journal, summary
    from .driver import Driver, Stop
    line = summary.Line()
    _say_about(made)
    with journal.opened(folder) as book, Stop(_say).listening() as stop:
        driver = Driver(made, pool, book, stop, line)
        try:
            driver.run()
        except BaseException:
            pool.close(at_once=True)
            line.end()
            with contextlib.suppress(Exception):  # the disk may be full, and the reason for stopping counts
                _sum_up(driver, folder, name)
            if driver.counts.left:
                _say(f"{summary.progress(driver.counts)}. The same command goes on from here.")
            raise
        pool.close(at_once=False)
        line.end()
        _sum_up(driver, folder, name)
    counts = driver.counts
    _say(f"{summary.progress(counts)}. See {folder / summary.SHEET} and {folder / summary.SUMMARY}.")
    for entry in [entry for entry in driver.entries if entry["state"] == journal.FAILED][:10]:
        _say(f"Row {entry['row']} failed: {entry['message']}")
    return 130 if counts.left else int(counts.failed > 0)


def _sum_up(driver, folder: Path, name: str) -> None:
    from . import summary
    summary.write(folder, name, driver.plan.rows.name, driver.entries, driver.counts, driver.machines)


def _say_about(made: Plan) -> None:
    """What may be meant otherwise."""
    if unused := made.unused():
        _say(f"Columns that no text asks for: {', '.join(unused[:10])}{', ...' if len(unused) > 10 else ''}.")
    if pairs := table.same_rows(made.rows):
        _say(f"{len(pairs)} rows say the same as an earlier one, such as {pairs[0][0]} and {pairs[0][1]}; all are "
             "drawn.")


def _say(sentence: str) -> None:
    print(sentence, flush=True)
