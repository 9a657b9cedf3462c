"""Workflow files in API format, and the `--set NODE.INPUT=VALUE` changes to them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from pathlib import Path

from qwen_image_2.model.images import sizes

from ..cli.errors import UserError
from ..pack import node_ids

MINIATURE = "miniature"  # the loaders' name for the model that comes with the pack

Graph = dict[str, dict]  # a workflow in API format: node id -> {"class_type", "inputs", "_meta"}
SUFFIX, PREFIX = " (Qwen-Image 2)", "QwenImage2"  # of our nodes' titles and classes; a person may leave them out
LOADERS = {name for name in node_ids() if name.startswith("QwenImage2Load")}
MODEL_FILES = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin")


def load(file: Path) -> Graph:
    """Read an API-format workflow; anything else is refused with a sentence that says what it is."""
    if not file.is_file():
        raise UserError(f"There is no file {file}.")
    try:
        graph = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8
        raise UserError(f"{file} is not a JSON file: {error}.") from error
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise UserError(
            f"{file} is a workflow in the format of ComfyUI's page; this command needs the API format: "
            "take the file of the same name in workflows/api/, or use Export (API) in ComfyUI's menu."
        )
    if not isinstance(graph, dict) or not graph or not all(_is_node(node) for node in graph.values()):
        raise UserError(f"{file} is not a workflow in API format: each entry must have class_type and inputs.")
    return graph


def _is_node(node: object) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def apply(graph: Graph, assignments: Iterable[str]) -> Graph:
    """A copy of `graph` with each `NODE.INPUT=VALUE` carried out."""
    graph = copy.deepcopy(graph)
    for assignment in assignments:
        node, name, value = _read(graph, assignment)
        inputs = graph[node]["inputs"]
        inputs[name] = parse_value(value, inputs[name])
    return graph


def changed(graph: Graph, assignments: Iterable[str]) -> set[tuple[str, str]]:
    """Node id and input name of every input that `apply` changes."""
    return {_read(graph, assignment)[:2] for assignment in assignments}


def _read(graph: Graph, assignment: str) -> tuple[str, str, str]:
    target, equals, value = assignment.partition("=")
    if not equals or "." not in target:
        raise UserError(f"--set {assignment}: expected NODE.INPUT=VALUE.")
    return *find_input(graph, target), value


def with_miniature(graph: Graph) -> Graph:
    """A copy of `graph` whose loaders take the built-in miniature, and whose sizes are those it was trained on."""
    graph = copy.deepcopy(graph)
    for node in graph.values():
        inputs = node["inputs"]
        if node["class_type"] in LOADERS:
            inputs |= dict.fromkeys(inputs.keys() & {"diffusion_model", "text_encoder", "vae"}, MINIATURE)
        elif node["class_type"] == "QwenImage2EmptyLatent":
            width, height = _miniature_size(inputs)
            inputs |= {"aspect_ratio": "custom", "width": width, "height": height}
        elif node["class_type"] in ("QwenImage2EditEncode", "QwenImage2CropForEdit", "QwenImage2RepairText"):
            inputs["resolution"] = str(sizes.MINIATURE[0][0])
    return graph


def _miniature_size(canvas: dict) -> tuple[int, int]:
    """The size nearest in shape to what an empty latent asks for; a square where that comes from another node, or is no
    shape: the server refuses it."""
    ratio = canvas.get("aspect_ratio")
    numbers = (canvas.get("width"), canvas.get("height")) if ratio == "custom" else str(ratio).split(":")
    try:
        across, down = map(float, numbers)
    except (TypeError, ValueError, OverflowError):
        return sizes.MINIATURE[0]
    if not 0 < across < math.inf or not 0 < down < math.inf:
        return sizes.MINIATURE[0]
    return min(sizes.MINIATURE, key=lambda size: abs(math.log(size[0] / size[1]) - math.log(across) + math.log(down)))


def parse_value(text: str, present: object) -> object:
    """VALUE as JSON where it is JSON (numbers, true, lists, quoted strings), else the text itself.

    An input that holds text keeps text: "1024" in a list of choices is not the number.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, (str, list)) or not isinstance(present, str) else text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # Python would take NaN and Infinity, the server would not


def find_input(graph: Graph, target: str) -> tuple[str, str]:
    """Node id and input name of `NODE.INPUT`. Both may contain dots, so every place to split is tried."""
    parts = target.split(".")
    splits = [(".".join(parts[:cut]), ".".join(parts[cut:])) for cut in range(1, len(parts))]
    known = [(node, name) for text, name in splits for node in find_nodes(graph, text)]
    found = [(node, name) for node, name in known if name in graph[node]["inputs"]]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        several = ", ".join(describe(graph, node) for node, _ in found)
        raise UserError(f"--set {target}: several nodes fit ({several}); name one by its id.")
    if known:
        node, name = known[0]
        there = ", ".join(graph[node]["inputs"]) or "no inputs"
        raise UserError(f"--set {target}: node {describe(graph, node)} has no input {name!r}; it has {there}.")
    there = ", ".join(describe(graph, node) for node in graph)
    raise UserError(f"--set {target}: there is no node {splits[-1][0]!r}; the workflow has {there}.")


def find_nodes(graph: Graph, text: str) -> list[str]:
    """Ids of the nodes that `text` names: the node with this id, else those with this title, else of this class.

    What is written out comes before what is shortened: "Sampler" is the node that somebody has called so, and without
    one "Sampler (Qwen-Image 2)".
    """
    if text in graph:
        return [text]
    names = {node: _names(entry) for node, entry in graph.items()}
    found = ([node for node in graph if names[node][kind] == text] for kind in range(4))
    return next(filter(None, found), [])


def _names(node: dict) -> tuple[str, str, str, str]:
    title, node_class = _title(node), node["class_type"]
    short = node_class.removeprefix(PREFIX) if node_class in node_ids() else node_class
    return title, node_class, title.removesuffix(SUFFIX), short


def _title(node: dict) -> str:
    """What the page calls the node; empty where the file does not say so in words."""
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return title if isinstance(title, str) else ""


def describe(graph: Graph, node: str) -> str:
    """A node as a person finds it: id, class, and title where it differs."""
    node_class, title = graph[node]["class_type"], _title(graph[node])
    return f"{node} ({node_class})" if title in ("", node_class) else f'{node} ({node_class}, "{title}")'


def needs_models(graph: Graph) -> bool:
    """Whether any input names a model file."""
    values = (value for node in graph.values() for value in node["inputs"].values())
    return any(isinstance(value, str) and value.lower().endswith(MODEL_FILES) for value in values)


def uses_pack(graph: Graph) -> bool:
    """Whether any node is one of ours."""
    return any(node["class_type"] in node_ids() for node in graph.values())


def stage(node_class: str) -> str:
    """The stage of making a picture that a node class belongs to, by the words that such names are made of."""
    words = {"decode": "decode", "encode": "encode", "sampler": "sample", "load": "load", "save": "save"}
    return next((name for word, name in words.items() if word in node_class.lower()), "other")
