"""What the command line prints: sentences, one line of progress, a table of times."""

from __future__ import annotations

import shutil
import sys
import time

from ..comfyui.client import Event
from ..comfyui.workflow import Graph


def say(sentence: str) -> None:
    """Tell the person; flushed, so that a pipe shows it when it happens."""
    print(sentence, flush=True)


class Progress:
    """Shows a workflow's events as one line that is rewritten; into a file or pipe, as one line per node."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.begin = time.monotonic()
        self.done: set[str] = set()
        self.rewrites = sys.stdout.isatty()
        self.shown = ""  # node on the line

    def __call__(self, event: Event) -> None:
        if event.kind in ("finished", "cached"):
            self.done.add(event.node)
        elif event.kind == "started":
            self._show(event.node, "")
        elif event.kind == "progress" and self.rewrites:
            self._show(event.node, f" {event.value:.0f}/{event.maximum:.0f}")
        elif event.kind == "text" and self.rewrites:
            self._show(event.node, " " + event.text)

    def _show(self, node: str, more: str) -> None:
        node_class = self.graph[node]["class_type"] if node in self.graph else node
        seconds = time.monotonic() - self.begin
        line = f"[{len(self.done) + 1}/{len(self.graph)}] {seconds:5.1f} s  {node_class}{more}"
        if self.rewrites:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + line[:width].ljust(width), end="", flush=True)
        elif node != self.shown:
            print(line, flush=True)
        self.shown = node

    def end(self) -> None:
        """Leave the line as it is and go on below it."""
        if self.rewrites and self.shown:
            print(flush=True)


def table(seconds: dict[str, float]) -> str:
    """Stages and how long each took, with their sum."""
    rows = [*seconds.items(), ("total", sum(seconds.values()))]
    return "\n".join(f"  {name:<14}{value:8.1f} s" for name, value in rows)
