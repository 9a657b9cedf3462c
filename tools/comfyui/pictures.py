"""A person's own pictures in a workflow: found on this machine, looked at, put into the server's input folder."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli.errors import UserError
from .server import EXAMPLE
from .workflow import Graph, describe

if TYPE_CHECKING:
    from .client import Client

LOADERS = ("LoadImage", "LoadImageMask")  # core's, whose input is known before there is a server to ask
Inputs = Collection[tuple[str, str]]  # node ids and input names


def check(graph: Graph, changed: Inputs) -> None:
    """Refuse a picture that is not on this machine before the set-up and the server, which take their time."""
    for node, name in changed:
        value = graph[node]["inputs"][name]
        if graph[node]["class_type"] in LOADERS and name == "image" and isinstance(value, str) and value != EXAMPLE:
            _require(graph, node, name)


def provide(client: Client, folder: Path, graph: Graph, changed: Inputs) -> Graph:
    """A copy of `graph` whose pictures all lie in `folder`, the server's input folder.

    What --set has `changed` is a path on this machine first: that picture is uploaded. Raises UserError for a picture
    that is in neither place, and for a file that is none.
    """
    graph = copy.deepcopy(graph)
    for node, name in _picture_inputs(client, graph):
        inputs, own = graph[node]["inputs"], (node, name) in changed
        if own and _is_file(_path(inputs[name])):
            inputs[name] = client.upload_image(_looked_at(_path(inputs[name])))
        elif not _is_file(folder / inputs[name]):
            if own:
                _require(graph, node, name)
            raise UserError(
                f"{describe(graph, node)} needs the picture {inputs[name]}, which this server does not have: "
                f"name the file with --set {node}.{name}=FILE."
            )
    return graph


def _picture_inputs(client: Client, graph: Graph) -> Iterator[tuple[str, str]]:
    """The inputs that ComfyUI's page fills by an upload, as far as they name a file: no link, no "a.png [output]"."""
    for node, entry in graph.items():
        takes = client.object_info(entry["class_type"]).get(entry["class_type"], {}).get("input", {})
        for name, spec in {**takes.get("required", {}), **takes.get("optional", {})}.items():
            value, uploaded = entry["inputs"].get(name), len(spec) > 1 and spec[1].get("image_upload")
            if uploaded and isinstance(value, str) and value and not value.endswith("]"):
                yield node, name


def _path(value: str) -> Path:
    return Path(os.path.expanduser(value))  # no shell has done it: ~ does not begin the word


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for any, or a folder that may not be looked into
        return False


def _require(graph: Graph, node: str, name: str) -> None:
    path = _path(graph[node]["inputs"][name])
    if not _is_file(path):
        raise UserError(f"--set {node}.{name}: there is no picture file {path.absolute()}.")


def _looked_at(path: Path) -> Path:
    """The path itself. Raises UserError where it is no picture, or only a part of one: ComfyUI would take that."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all are Pillow's
        reason = getattr(error, "strerror", None) or "it is none, or damaged"
        raise UserError(f"{path} cannot be read as a picture: {reason}.", str(error)) from error
    return path
