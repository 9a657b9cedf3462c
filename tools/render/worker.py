"""One ComfyUI server that draws job after job and keeps its models loaded."""

from __future__ import annotations

import copy
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..cli.errors import UserError
from ..comfyui import pictures
from ..comfyui.client import Client, Result, ServerGone
from ..comfyui.server import Server, ServerError
from ..comfyui.workflow import Graph, describe
from . import machines
from .plan import PREFIX, Job

START = 600.0  # seconds that a server has to answer, beside others that read the same disk
DRAWN, REFUSED, LOST = "drawn", "refused", "lost"
CHECKS = "qwen_image_2_text_check"  # what Text Check tells the page (nodes/text_check.py)


@dataclass(frozen=True)
class Drawn:
    """A file that a node has saved."""

    node: str
    name: str
    content: bytes


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    kind: str  # DRAWN; REFUSED: another try would end the same; LOST: the server ended with the job in hand
    sentence: str = ""
    files: tuple[Drawn, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()  # what the nodes said
    lines: tuple[dict, ...] = ()  # of Text Check: expected, found, status


@dataclass
class ComfyWorker:
    """A server on this machine, started with the first job or by `start`."""

    comfyui: Path
    models: Path | None = None
    pack: bool = True  # whether the workflow needs the pack's nodes
    files: tuple[str, ...] = ()  # model files that the workflow names
    environment: Mapping[str, str] = field(default_factory=dict)
    server: Server | None = None

    def facts(self) -> dict[str, str]:
        """What must be the same on every machine."""
        return machines.facts(self.comfyui, self.models, self.files)

    def start(self) -> None:
        """Raises ServerError where ComfyUI does not start."""
        if self.server is None:
            server = Server(self.comfyui, models=self.models, require_pack=self.pack, environment=self.environment,
                            time_limit=START)
            self.server = server.__enter__()

    def stop(self) -> None:
        """End the server and remove its folder."""
        server, self.server = self.server, None
        if server is not None:
            server.__exit__(None, None, None)

    def draw(self, job: Job) -> Outcome:
        """Raises ServerError where ComfyUI does not start."""
        self.start()
        begin = time.monotonic()
        try:
            return self._drawn(job, begin)
        except (ServerGone, ServerError) as error:
            sentence = self._why(error)
            self.stop()
            return Outcome(LOST, sentence)
        except UserError as error:
            return Outcome(REFUSED, str(error), seconds=time.monotonic() - begin)

    def _drawn(self, job: Job, begin: float) -> Outcome:
        client = Client(self.server.url)
        graph = pictures.provide(client, self.server.input, job.graph, job.own_pictures)
        result = client.run(_in_own_folder(graph, job.number))
        files = tuple(Drawn(file.node, file.filename, client.view(file)) for file in result.saved)
        self._tidy(job.number)
        notes = tuple(f"{describe(graph, node) if node in graph else node}: {' '.join(lines)}"
                      for node, lines in result.messages.items())
        return Outcome(DRAWN, files=files, seconds=time.monotonic() - begin, notes=notes, lines=_lines(result))

    def _tidy(self, number: int) -> None:
        """A thousand pictures would fill the disk of a worker's temporary folder: they are the driver's now."""
        shutil.rmtree(self.server.output / str(number), ignore_errors=True)
        shutil.rmtree(self.server.folder / "temp", ignore_errors=True)

    def _why(self, error: Exception) -> str:
        """A server that has ended says more than a connection that was closed."""
        try:
            self.server.process.wait(2)
            self.server.check_alive()
        except ServerError as ended:
            return str(ended)
        except subprocess.TimeoutExpired:  # it still runs
            pass
        return str(error)


def _in_own_folder(graph: Graph, number: int) -> Graph:
    """A copy whose savers write into a folder for the row, so that ComfyUI, which keeps what it has made, does not
    answer a row that says the same as an earlier one with files that are gone."""
    graph = copy.deepcopy(graph)
    for entry in graph.values():
        if isinstance(entry["inputs"].get(PREFIX), str):
            entry["inputs"][PREFIX] = f"{number}/{entry['inputs'][PREFIX]}"
    return graph


def _lines(result: Result) -> tuple[dict, ...]:
    """The lines that Text Check has looked for, of all pictures."""
    checked = [picture for ui in result.outputs.values() for picture in ui.get(CHECKS, ())]
    return tuple({name: row[name] for name in ("expected", "found", "status")}
                 for picture in checked for row in picture["rows"])
