"""Writes workflows/*.json (for the browser) and workflows/api/*.json (for programs) from one description each.

    python tools/dev.py make workflows    # starts a server to ask it for the schemas

A description (workflow_graphs.py, workflow_list.py) names nodes, their inputs and their place; slots, widgets and
links come from the server's schemas, so a renamed input shows here first. A test builds everything again and compares.
"""
import json
import uuid
from pathlib import Path

from .. import tiny
from ..pack import ROOT
from .make import as_program, from_schemas
from .workflow_list import WORKFLOWS
from .workflow_parts import Group, Node, Workflow

FOLDER = ROOT / "workflows"
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
MARKS = "qwen_image_2"  # what the pack's inputs tell its browser extension (nodes/frontend.py)
GROWING = "COMFY_AUTOGROW_V3"  # an input that shows one free socket more than are connected

# Where each published file is, and ComfyUI's model folder that it goes into: Comfy-Org's folders are called so.
COMFY_ORG = "https://huggingface.co/Comfy-Org"
QWEN_2 = f"{COMFY_ORG}/Qwen-Image-2.1/resolve/main"
PLACES = {
    tiny.TRANSFORMER: (QWEN_2, "diffusion_models"),
    tiny.TURBO: (QWEN_2, "diffusion_models"),
    tiny.TEXT_ENCODER: (QWEN_2, "text_encoders"),
    tiny.VAE_FILE: (QWEN_2, "vae"),
    tiny.PRUNA: (QWEN_2, "loras"),
    tiny.TRANSFORMER_1: (f"{COMFY_ORG}/Qwen-Image_ComfyUI/resolve/main/split_files", "diffusion_models"),
    tiny.LAYERED_1: (f"{COMFY_ORG}/Qwen-Image-Layered_ComfyUI/resolve/main/split_files", "diffusion_models"),
    tiny.LAYERED_VAE_1: (f"{COMFY_ORG}/Qwen-Image-Layered_ComfyUI/resolve/main/split_files", "vae"),
    tiny.EDIT_1: (f"{COMFY_ORG}/Qwen-Image-Edit_ComfyUI/resolve/main/split_files", "diffusion_models"),
    tiny.TEXT_ENCODER_1: (f"{COMFY_ORG}/HunyuanImage_2.1_ComfyUI/resolve/main/split_files", "text_encoders"),
    tiny.VAE_1: (f"{COMFY_ORG}/Qwen-Image_ComfyUI/resolve/main/split_files", "vae"),
}
LIGHTNING = "https://huggingface.co/lightx2v/Qwen-Image-2512-Lightning/resolve/main"
CONTROL = "https://huggingface.co/alibaba-pai/Qwen-Image-2.1-Fun-Controlnet-Union/resolve/main"
PUBLISHED = {name: (f"{place}/{folder}/{name}", folder) for name, (place, folder) in PLACES.items()} | {
    tiny.LIGHTNING_1: (f"{LIGHTNING}/{tiny.LIGHTNING_1}", "loras"),
    tiny.CONTROL: (f"{CONTROL}/{tiny.CONTROL}", "model_patches")}

# Pixels around a group's nodes.
GROUP_MARGIN, GROUP_TITLE = 20, 50


# ---------------------------------------------------------------- the two formats

def api_format(workflow: Workflow, schemas: dict) -> dict:
    """The graph as the browser exports it for the server: ids are numbers in order, notes are left out."""
    ids = _ids(workflow)
    graph = {}
    for name, node in workflow.nodes.items():
        if node.node_class in schemas:
            graph[str(ids[name])] = {
                "inputs": {key: [str(ids[value[0]]), value[1]] if isinstance(value, tuple) else value
                           for key, value in (node.inputs | _hidden(node, schemas[node.node_class])).items()},
                "class_type": node.node_class,
                "_meta": {"title": node.title or schemas[node.node_class]["display_name"]},
            }
    return graph


def ui_format(name: str, workflow: Workflow, schemas: dict) -> dict:
    """The graph as the browser saves it."""
    ids, links = _ids(workflow), _links(workflow, schemas)
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"qwen-image-2/{name}")),
        "revision": 0,
        "last_node_id": len(ids),
        "last_link_id": len(links),
        "nodes": [_ui_node(key, node, ids, links, schemas, order)
                  for order, (key, node) in enumerate(workflow.nodes.items())],
        "links": links,
        "groups": [_ui_group(number, group, workflow) for number, group in enumerate(workflow.groups, start=1)],
        "config": {},
        "extra": {"ds": {"scale": 0.6, "offset": [100, 200]}},
        "version": 0.4,
    }


def _ids(workflow: Workflow) -> dict[str, int]:
    return {name: number for number, name in enumerate(workflow.nodes, start=1)}


def _schema_inputs(schema: dict) -> dict:
    """Input name -> its entry in /object_info, in the order in which the browser shows them."""
    return {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}


def _sockets(node: Node, schema: dict) -> dict:
    """What the browser shows as inputs: widgets, sockets, and for a growing input the connected ones and a free one.

    The browser puts sockets without a widget first.
    """
    shown = {}
    for name, spec in _schema_inputs(schema).items():
        if spec[0] != GROWING:
            shown[name] = spec
            continue
        names = [f"{name}.{part}" for part in spec[1]["template"]["names"]]
        connected = sum(key in node.inputs for key in names)
        shown |= {key: ["IMAGE"] for key in names[:connected + 1]}
    plain = {name: spec for name, spec in shown.items() if not _is_widget(spec)}
    return plain | shown


def _is_widget(spec: list) -> bool:
    options = spec[1] if len(spec) > 1 else {}
    return not options.get("forceInput") and (isinstance(spec[0], list) or spec[0] in WIDGET_TYPES)


def _links(workflow: Workflow, schemas: dict) -> list[list]:
    """[id, from node, from slot, to node, to slot, type]"""
    ids, links = _ids(workflow), []
    for name, node in workflow.nodes.items():
        names = list(_sockets(node, schemas[node.node_class])) if node.node_class in schemas else []
        for key, value in node.inputs.items():
            if isinstance(value, tuple):
                source, slot = value
                io_type = schemas[workflow.nodes[source].node_class]["output"][slot]
                links.append([len(links) + 1, ids[source], slot, ids[name], names.index(key), io_type])
    return links


def _ui_node(name: str, node: Node, ids: dict, links: list, schemas: dict, order: int) -> dict:
    common = {"id": ids[name], "type": node.node_class, "pos": list(node.at), "size": list(node.size), "flags": {},
              "order": order, "mode": 0}
    if node.node_class == "MarkdownNote":
        return common | {"title": node.title, "inputs": [], "outputs": [], "properties": {},
                         "widgets_values": [node.text]}
    schema = schemas[node.node_class]
    entry = common | {
        "inputs": [_ui_input(slot, key, spec, links, ids[name])
                   for slot, (key, spec) in enumerate(_sockets(node, schema).items())],
        "outputs": [{"name": label, "type": io_type,
                     "links": [link[0] for link in links if link[1:3] == [ids[name], slot]] or None}
                    for slot, (label, io_type) in enumerate(zip(schema["output_name"], schema["output"], strict=True))],
        "properties": {"Node name for S&R": node.node_class} | _origin(schema) | _files(node),
        "widgets_values": _widget_values(node, schema),
    }
    return entry | ({"title": node.title} if node.title else {})


def _origin(schema: dict) -> dict:
    """Where a node comes from, so that a missing pack can be offered for installation."""
    return {"cnr_id": "comfy-core" if not schema["python_module"].startswith("custom_nodes") else "qwen-image-2"}


def _files(node: Node) -> dict:
    """The published files among a node's inputs: the page offers to download those that are missing."""
    models = [{"name": name, "url": PUBLISHED[name][0], "directory": PUBLISHED[name][1]}
              for name in node.inputs.values() if name in PUBLISHED]
    return {"models": models} if models else {}


def _ui_input(slot: int, name: str, spec: list, links: list, node_id: int) -> dict:
    link = next((link[0] for link in links if link[3:5] == [node_id, slot]), None)
    io_type = "COMBO" if isinstance(spec[0], list) else spec[0]
    entry = {"name": name, "type": io_type, "link": link}
    return entry | ({"widget": {"name": name}} if _is_widget(spec) else {})


def _widget_values(node: Node, schema: dict) -> list:
    values, inputs = [], node.inputs | _hidden(node, schema)
    for name, spec in _schema_inputs(schema).items():
        if _is_widget(spec):
            options = spec[1] if len(spec) > 1 else {}
            # What is linked keeps its default, which shows when the link is taken away.
            value = inputs[name]
            values.append(options.get("default", "") if isinstance(value, tuple) else value)
            if control := options.get("control_after_generate"):  # True, or what it starts with
                values.append("randomize" if control is True else control)
            if options.get("image_upload"):
                values.append("image")  # the upload button's own value
    return values


def _hidden(node: Node, schema: dict) -> dict:
    """The inputs of rows that are not in use (js/rows.js): descriptions leave them out, the page sends their defaults.
    """
    specs = {name: spec[1] for name, spec in _schema_inputs(schema).items() if len(spec) > 1}
    return {name: options["default"] for name, options in specs.items()
            if "row_of" in options.get(MARKS, {}) and name not in node.inputs}


def _ui_group(number: int, group: Group, workflow: Workflow) -> dict:
    boxes = [(*workflow.nodes[name].at, *workflow.nodes[name].size) for name in group.members]
    left, top = min(b[0] for b in boxes), min(b[1] for b in boxes)
    right, bottom = max(b[0] + b[2] for b in boxes), max(b[1] + b[3] for b in boxes)
    return {"id": number, "title": group.title, "color": "#3f789e", "font_size": 22, "flags": {},
            "bounding": [left - GROUP_MARGIN, top - GROUP_TITLE - GROUP_MARGIN, right - left + 2 * GROUP_MARGIN,
                         bottom - top + GROUP_TITLE + 2 * GROUP_MARGIN]}


# ---------------------------------------------------------------- writing

def build(schemas: dict) -> dict[Path, str]:
    """Path -> file content."""
    out = {}
    for name, workflow in WORKFLOWS.items():
        out[FOLDER / f"{name}.json"] = _text(ui_format(name, workflow, schemas))
        out[FOLDER / "api" / f"{name}.json"] = _text(api_format(workflow, schemas))
    return out


def _text(graph: dict) -> str:
    return json.dumps(graph, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    from_schemas(build)


if __name__ == "__main__":
    as_program(main)
