"""A workflow with `{{column}}` in its texts, and a table -> jobs, checked before the first is drawn."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_image_2.pages import table
from qwen_image_2.pages.table import Row, Table

from ..cli.errors import UserError
from ..comfyui import workflow
from ..comfyui.pictures import LOADERS
from ..comfyui.server import EXAMPLE
from ..comfyui.workflow import Graph

PREFIX = "filename_prefix"  # the input by which core's savers and the pack's name their files
NAMED = 3  # pairs of rows that a sentence names


@dataclass(frozen=True)
class Job:
    """One row to draw."""

    number: int  # of the row
    graph: Graph
    key: str  # the same for the same graph, and the same names of its files: who has this key is drawn already
    own_pictures: tuple[tuple[str, str], ...] = ()  # inputs that name a file of the person's
    lost: tuple[tuple[str, str], ...] = ()  # workers that ended with it in hand, and of what


@dataclass(frozen=True)
class Plan:
    """A template and the rows to fill in."""

    graph: Graph  # with --set carried out
    original: Graph  # without it: says which inputs hold numbers
    rows: Table
    changed: frozenset[tuple[str, str]]  # what --set has changed

    def job(self, row: Row) -> Job:
        """Raises UserError for a row of which no picture can be made."""
        if row.problem:
            raise UserError(str(row.problem))
        graph = copy.deepcopy(self.graph)
        for node, name, value in _texts(self.graph):
            graph[node]["inputs"][name] = _filled(value, row.cells, self._original(node, name))
        own = tuple(_own_pictures(graph, self.changed | {(node, name) for node, name, _ in _texts(self.graph)}))
        for node, name in own:
            graph[node]["inputs"][name] = _picture(graph[node]["inputs"][name], row.number)
        return Job(row.number, graph, self._key(graph, row), own)

    def named_by_row(self, node: str) -> bool:
        """Whether a node's files bear the row's number, because no column is in their name."""
        return not table.columns_in(str(self.graph.get(node, {"inputs": {}})["inputs"].get(PREFIX, "")))

    def unused(self) -> list[str]:
        """Columns that no text asks for."""
        used = {column for _, _, value in _texts(self.graph) for column in _columns(value)}
        return [column for column in self.rows.columns if column not in used]

    def _original(self, node: str, name: str) -> object:
        return self.original[node]["inputs"].get(name)

    def _key(self, graph: Graph, row: Row) -> str:
        numbered = any(self.named_by_row(node) for node in _savers(graph))
        text = json.dumps([graph, row.number if numbered else None], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def make(graph: Graph, assignments: list[str], rows: Table) -> Plan:
    """Raises UserError for a column that is not there, for a workflow that saves nothing, and for two rows whose files
    would have the same name."""
    plan = Plan(workflow.apply(graph, assignments), graph, rows, frozenset(workflow.changed(graph, assignments)))
    texts = list(_texts(plan.graph))
    try:
        table.require_columns((column for _, _, value in texts for column in _columns(value)), rows.columns)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not texts:
        raise UserError("No text of the workflow has a column in it, so all rows would be the same: write "
                        f"{{{{{rows.columns[0]}}}}} where that column's text belongs, or --set NODE.INPUT="
                        f"{{{{{rows.columns[0]}}}}}.")
    _require_names(plan)
    return plan


def _require_names(plan: Plan) -> None:
    savers = list(_savers(plan.graph))
    if not savers:
        raise UserError("The workflow saves nothing: no node of it has a filename_prefix.")
    for node in savers:
        if plan.named_by_row(node):
            continue
        prefix = plan.graph[node]["inputs"][PREFIX]
        names = [(row.number, Path(table.filled(prefix, row.cells)).name) for row in plan.rows.rows if not row.problem]
        count = Counter(name.casefold() for _, name in names)
        if twice := [(number, name) for number, name in names if count[name.casefold()] > 1]:
            some = ", ".join(f"row {number} ({name})" for number, name in twice[:2 * NAMED])
            raise UserError(f"{len(twice)} rows would save files of the same name through "
                            f"{workflow.describe(plan.graph, node)}: {some}. Let its {PREFIX} hold a column that "
                            "differs in each.")


def _savers(graph: Graph) -> Iterator[str]:
    return (node for node, entry in graph.items() if isinstance(entry["inputs"].get(PREFIX), str))


# ---------------------------------------------------------------- texts

def _texts(graph: Graph) -> Iterator[tuple[str, str, object]]:
    """Every input with a column in it: node, name, value."""
    for node, entry in graph.items():
        for name, value in entry["inputs"].items():
            if _columns(value):
                yield node, name, value


def _columns(value: object) -> list[str]:
    if isinstance(value, str):
        return table.columns_in(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [column for part in parts for column in _columns(part)]


def _filled(value: object, cells: Mapping[str, str], present: object) -> object:
    """The value with its columns; a number or a switch again where the workflow had one."""
    if isinstance(value, dict):
        return {name: _filled(part, cells, None) for name, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, cells, None) for part in value]
    if not isinstance(value, str):
        return value
    text = table.filled(value, cells)
    return workflow.parse_value(text.strip().lower(), present) if isinstance(present, (int, float)) else text


# ---------------------------------------------------------------- pictures

def _own_pictures(graph: Graph, touched: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for node, name in sorted(touched):
        value = graph[node]["inputs"][name]
        if graph[node]["class_type"] in LOADERS and name == "image" and isinstance(value, str) and value != EXAMPLE:
            yield node, name


def _picture(value: str, number: int) -> str:
    """An absolute path: a worker does not stand where the person does."""
    path = Path(os.path.expanduser(value)).absolute()
    try:
        there = path.is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        raise UserError(f"Row {number}: there is no picture file {path}.")
    return str(path)
