"""Writes the lists in the nodes' help pages, js/docs/<node>/en.md and zh.md, and the list of all nodes, docs/nodes.md.

    python tools/dev.py make help    # starts a server to ask it for the schemas

Title, inputs and outputs come from the schemas, in Chinese from locales/zh/nodeDefs.json, so that every sentence about
an input has one home. What a node is for, the example and the hints are written by hand and stay as they are. A test
makes the lists again and compares.
"""
import json
import re
from dataclasses import dataclass
from pathlib import Path

from ..pack import ROOT
from .labels import label
from .make import as_program, from_schemas

FOLDER = ROOT / "js" / "docs"
ALL_NODES = ROOT / "docs" / "nodes.md"
TRANSLATION = ROOT / "locales" / "zh" / "nodeDefs.json"
GROWING = "COMFY_AUTOGROW_V3"
# Menus that differ from machine to machine.
FROM_FOLDERS = {"diffusion_model", "text_encoder", "vae", "vision_projector", "lora", "font", "enhancer",
                "system_prompt", "control_model", "file"}


@dataclass(frozen=True)
class Language:
    """The words of the lists. Headings are also where the hand-written parts begin and end."""

    inputs: str
    outputs: str
    example: str
    nothing: str
    default: str
    upto: str
    optional: str
    choices: str
    comma: str
    colon: str
    types: dict[str, str]


LANGUAGES = {
    "en": Language("Inputs", "Outputs", "Example", "None.", "default {}", "{} to {}", "optional", "one of {}",
                   ", ", ": ", {"INT": "whole number", "FLOAT": "number", "STRING": "text", "BOOLEAN": "switch"}),
    "zh": Language("输入", "输出", "示例", "无。", "默认 {}", "{} 到 {}", "可选", "可选值：{}",
                   "，", "：", {"INT": "整数", "FLOAT": "小数", "STRING": "文本", "BOOLEAN": "开关"}),
}


def inputs_of(schema: dict) -> dict[str, tuple[str, dict, bool]]:
    """Name -> type, options, optional or not, from a node's entry in ComfyUI's /object_info."""
    return {name: (*_type_and_options(name, spec), group == "optional")
            for group in ("required", "optional") for name, spec in schema["input"].get(group, {}).items()}


def _type_and_options(name: str, spec: list) -> tuple[str, dict]:
    io_type, options = spec[0], (spec[1] if len(spec) > 1 else {})
    if io_type != GROWING:
        return io_type, options
    template = options["template"]
    (io_type, options), = template["input"]["required"].values()
    return io_type, {**options, "min": template["min"], "max": len(template["names"])}


def outputs_of(schema: dict) -> list[tuple[str, str, str]]:
    """Name, type and tooltip of each output."""
    tooltips = schema.get("output_tooltips") or [None] * len(schema["output"])
    outputs = zip(schema["output_name"], schema["output"], tooltips, strict=True)
    return [(name, io_type, tooltip or "") for name, io_type, tooltip in outputs]


def page(schema: dict, language: str, translation: dict, before: str) -> str:
    """The page as it should be, with the hand-written parts of `before`."""
    words, own = LANGUAGES[language], translation[schema["name"]] if language == "zh" else {}
    about, rest = hand_written(before, words)
    takes = [_input_line(name, spec, words, own.get("inputs", {}).get(name, {}))
             for name, spec in inputs_of(schema).items()]
    gives = [_output_line(output, words, own.get("outputs", {}).get(str(number), {}))
             for number, output in enumerate(outputs_of(schema))]
    return "\n\n".join([
        f"# {own.get('display_name', schema['display_name'])}", about,
        f"## {words.inputs}", "\n".join(takes) or words.nothing,
        f"## {words.outputs}", "\n".join(gives) or words.nothing,
        rest]) + "\n"


def hand_written(text: str, words: Language) -> tuple[str, str]:
    """What stands between the title and the lists, and everything from the example on."""
    found = re.fullmatch(rf"# [^\n]*\n(.*?)\n## {words.inputs}\n.*?\n(## {words.example}\n.*)", text, re.DOTALL)
    if found is None:
        raise ValueError(f"The page needs a title and the headings {words.inputs} and {words.example}.")
    return found[1].strip(), found[2].strip()


def _input_line(name: str, spec: tuple[str, dict, bool], words: Language, own: dict) -> str:
    io_type, options, optional = spec
    facts = [words.types.get(io_type, io_type)]
    if io_type == "COMBO":
        facts = [] if name in FROM_FOLDERS else [words.choices.format(" / ".join(map(str, options["options"])))]
    if "min" in options:
        facts.append(words.upto.format(options["min"], options["max"]))
    if options.get("default") not in (None, "") and name not in FROM_FOLDERS:
        default = _value(options["default"])
        facts += [] if "\n" in default else [words.default.format(default)]  # whole texts would end the list
    if optional:
        facts.append(words.optional)
    return _line(name, facts, own.get("tooltip", options.get("tooltip", "")), words, own.get("name", label(name)))


def _output_line(output: tuple[str, str, str], words: Language, own: dict) -> str:
    name, io_type, tooltip = output
    types = [io_type] if io_type != name else []
    return _line(name, types, own.get("tooltip", tooltip), words, own.get("name", label(name)))


def _line(name: str, facts: list[str], tooltip: str, words: Language, own_name: str) -> str:
    shown = f"`{name}`" if own_name == name else f"{own_name} `{name}`"
    facts_shown = f" ({words.comma.join(facts)})" if facts else ""
    return f"- **{shown}**{facts_shown}" + (words.colon + _plain(tooltip) if tooltip else "")


def _value(value) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _plain(text: str) -> str:
    """Text that Markdown leaves alone: the page would take <image1> for an HTML element."""
    return re.sub(r"([<>*])", r"\\\1", text)


ABOUT_ALL_NODES = """\
# Nodes

<!-- Written by `python tools/dev.py make help` from the nodes' schemas. Do not edit by hand. -->

In ComfyUI the nodes stand under **Qwen-Image 2** in the node library, and their full names end in *(Qwen-Image 2)*.
Each name below links to the node's help page: its inputs and outputs, an example and hints. ComfyUI shows the same page
when you open the node's help.
"""


def all_nodes(schemas: dict, order: list[str]) -> str:
    """docs/nodes.md: one line a node, below the categories of ComfyUI's node library."""
    lines: dict[str, list[str]] = {}
    for name in order:
        lines.setdefault(schemas[name]["category"].rpartition("/")[2], []).append(_node_line(schemas[name]))
    sections = [f"## {category.capitalize()}\n\n" + "\n".join(nodes) for category, nodes in lines.items()]
    return "\n".join([ABOUT_ALL_NODES, "\n\n".join(sections)]) + "\n"


def _node_line(schema: dict) -> str:
    page, title = f"../js/docs/{schema['name']}", schema["display_name"].removesuffix(" (Qwen-Image 2)")
    return f"- [{title}]({page}/en.md) ([中文]({page}/zh.md)): {_plain(schema['description'])}"


def build(schemas: dict) -> dict[Path, str]:
    """Path -> content of every help page, and of the list of all nodes."""
    translation = json.loads(TRANSLATION.read_text(encoding="utf-8"))
    paths = {FOLDER / name / f"{language}.md": (name, language) for name in translation for language in LANGUAGES}
    pages = {path: page(schemas[name], language, translation, path.read_text(encoding="utf-8"))
             for path, (name, language) in paths.items()}
    return {**pages, ALL_NODES: all_nodes(schemas, list(translation))}


def main() -> None:
    from_schemas(build)


if __name__ == "__main__":
    as_program(main)
