"""The commands of dev.py, as they run inside the environment. Each returns an exit code."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..comfyui import browser, models, pictures, workflow
from ..comfyui.client import Client, Result, SavedFile
from ..comfyui.server import Server
from ..pack import ROOT
from . import benchmarks, output, process
from .console import Progress, say, table
from .environment import cache_folder
from .errors import UserError

POSTER = ROOT / "workflows" / "api" / "poster.json"
# What the miniature understands; the workflow's own prompt is for the real model.
MINIATURE_PROMPT = 'A white poster: a large blue triangle at the top and the word "SALE" in red in the centre.'
KEPT_LOGS = 10
MAX_TEST_PROCESSES = 4  # each with ComfyUI in it, a server and a browser: some 5 GiB


@dataclass(frozen=True)
class Setup:
    """Where a command runs, and how long it took to get there."""

    comfyui: Path
    setup_seconds: float


def demo(setup: Setup, target: Path) -> int:
    """Draw the poster workflow into `target`, or beside it where that is taken, and say what each stage took."""
    graph = workflow.apply(_with_miniature(workflow.load(POSTER)), [f"QwenImage2TextEncode.prompt={MINIATURE_PROMPT}"])
    say(f"The prompt: {MINIATURE_PROMPT}")
    times = {"set-up": setup.setup_seconds}
    begin = time.monotonic()
    with _server(setup) as server:
        times["server start"] = time.monotonic() - begin
        client, result = _follow(server, graph)
        if not result.saved:
            raise UserError(f"{POSTER.name} has saved no picture.")
        target = output.unused_name(target.parent, target.name)
        output.write_whole(target, client.view(result.saved[0]))
    _say_messages(graph, result)
    say(f"The picture is {target}. What it took:\n{table(times | _stage_times(graph, result))}")
    return 0


def run(setup: Setup, file: Path, assignments: list[str], model_folder: Path | None, target: Path) -> int:
    """Run a workflow and save what its nodes have written into the folder `target`."""
    graph = workflow.load(file)
    folder = model_folder or models.of_comfyui(setup.comfyui)
    if folder is None and workflow.needs_models(graph):
        graph = _with_miniature(graph)
    graph, changed = workflow.apply(graph, assignments), workflow.changed(graph, assignments)
    with _server(setup, models=folder, require_pack=workflow.uses_pack(graph)) as server:
        graph = pictures.provide(Client(server.url), server.input, graph, changed)
        client, result = _follow(server, graph)
        saved = [_save(client, file, target) for file in result.saved]
    _say_messages(graph, result)
    say("\n".join(f"Saved {path}" for path in saved) or "The workflow has saved no files.")
    return 0


def serve(setup: Setup, port: int, model_folder: Path | None) -> int:
    """Run ComfyUI with its page for a person, until Ctrl-C; pictures and settings stay in the cache folder."""
    data = cache_folder() / "serve"
    folder = model_folder or models.of_comfyui(setup.comfyui)
    if folder is None:
        say(f'No model files are at hand: choose "{workflow.MINIATURE}" in the loader, or give them with --models.')
    kept = {name: data / name for name in ("output", "input", "user")}
    with _server(setup, models=folder, port=port, preview="latent2rgb", **kept) as server:
        say(f"ComfyUI with Qwen-Image 2 is at {server.url} (Ctrl-C stops it).")
        say(f"Pictures, inputs and settings stay in {data}.")
        server.wait()
    return 0


def quantize(setup: Setup, file: Path, target: str, out: Path) -> int:
    """Make `out` of a checkpoint, in another format."""
    from .quantize import quantize as quantize_file
    begin = time.monotonic()
    say(f"Reading {file.name}.")
    quantize_file(setup.comfyui, file, target, out)
    say(f"Saved {out} ({out.stat().st_size / 1e9:.2f} GB, {time.monotonic() - begin:.0f} s).")
    return 0


def test(setup: Setup, arguments: list[str]) -> int:
    """Run pytest in the repository; its exit code is the answer."""
    if importlib.util.find_spec("pytest") is None:
        raise UserError(f"{sys.executable} has no pytest; its pip installs it with -r tools/requirements.txt.")
    if may_need_browser(arguments):
        browser.provide()
    return _python(setup, "-m", "pytest", *side_by_side(arguments), *arguments, cwd=ROOT)


def side_by_side(arguments: list[str]) -> list[str]:
    """For pytest: several processes, each with whole files, where no test is named; one more than cores, because many
    tests wait for a server or a page. Some options, such as --pdb, want one process; a person's own -n counts."""
    named = any((ROOT / argument.partition("::")[0]).exists() for argument in arguments if argument)
    single = {"--pdb", "--trace", "-s", "--capture=no", "--collect-only", "--co"} & set(arguments)
    if named or single or any(argument.startswith(("-n", "--numprocesses")) for argument in arguments):
        return []
    return ["-n", str(min((os.cpu_count() or 1) + 1, MAX_TEST_PROCESSES)), "--dist", "loadfile",
            "--no-loadscope-reorder"]  # the tests know which files take long


def may_need_browser(arguments: list[str]) -> bool:
    """Whether pytest with these arguments may run tests of the page: all tests, or some that are named so."""
    return not arguments or any("browser" in argument.replace("not browser", "") for argument in arguments)


def bench(setup: Setup, arguments: list[str]) -> int:
    """Run benchmarks/NAME.py, or benchmarks/foundation.py, with the further arguments; paths in them are seen from
    where the person is."""
    program, rest = benchmarks.chosen(arguments)
    return _python(setup, str(program), *rest)


def _python(setup: Setup, *arguments: str, cwd: Path | None = None) -> int:
    settings = {**os.environ, "COMFYUI_PATH": str(setup.comfyui)}
    return process.run_foreground([sys.executable, *arguments], cwd=cwd, env=settings)


@contextlib.contextmanager
def _server(setup: Setup, **settings) -> Iterator[Server]:
    say("Starting ComfyUI.")
    log = _new_log()
    with Server(setup.comfyui, log=log, **settings) as server:
        yield server


def _new_log() -> Path:
    """A file for this server's log, and room for it: the oldest logs go."""
    folder = cache_folder() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("server-*.log"), key=os.path.getmtime)[: 1 - KEPT_LOGS]:
        old.unlink(missing_ok=True)
    return folder / f"server-{os.getpid()}.log"


def _follow(server: Server, graph: workflow.Graph) -> tuple[Client, Result]:
    client, progress = Client(server.url), Progress(graph)
    try:
        return client, client.run(graph, progress)
    finally:
        progress.end()


def _with_miniature(graph: workflow.Graph) -> workflow.Graph:
    say("The built-in miniature is used, at its own small size: it draws simple posters only.")
    return workflow.with_miniature(graph)


def _save(client: Client, file: SavedFile, folder: Path) -> Path:
    path = output.unused_name(folder, file.filename)
    output.write_whole(path, client.view(file))
    return path


def _say_messages(graph: workflow.Graph, result: Result) -> None:
    for node, lines in result.messages.items():
        name = workflow.describe(graph, node) if node in graph else node
        say(f"{name}: {' '.join(lines)}")


def _stage_times(graph: workflow.Graph, result: Result) -> dict[str, float]:
    times: dict[str, float] = {}
    for node, seconds in result.seconds.items():
        stage = workflow.stage(graph[node]["class_type"]) if node in graph else "other"
        times[stage] = times.get(stage, 0.0) + seconds
    return dict(sorted(times.items(), key=lambda item: item[0] == "other"))  # in the order of running, "other" last
