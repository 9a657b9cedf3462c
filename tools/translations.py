"""Writes what translators begin with: locales/en, the names, tooltips and sentences that are in the code.

    python tools/dev.py make translations    # starts a server to ask it for the schemas

The panels' words in locales/en/main.json are written by hand: they are nowhere else. A test makes all of it again,
compares, and asks the same of every language.
"""
import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from .help_pages import GROWING, inputs_of, outputs_of
from .make import as_program, from_schemas
from .pack import ROOT, load_pack

FOLDER = ROOT / "locales"
KEY = "qwen_image_2"
MAKERS = {"Sentence": 1, "counted": 3}  # of sentences, and how many of their first arguments may be templates


def node_definitions(schemas: dict) -> dict[str, dict]:
    """Names and tooltips of our nodes, as ComfyUI's page wants them in nodeDefs.json."""
    return {name: _node(schema) for name, schema in sorted(schemas.items()) if name.startswith("QwenImage2")}


def _node(schema: dict) -> dict:
    outputs = {str(number): _entry(name, tooltip) for number, (name, _, tooltip) in enumerate(outputs_of(schema))}
    return {"display_name": schema["display_name"], "description": escaped(schema["description"]),
            "inputs": dict(_inputs(schema)), "outputs": outputs}


def _inputs(schema: dict) -> Iterator[tuple[str, dict]]:
    given = {name: spec for kind in schema["input"].values() for name, spec in kind.items()}
    for name, (_, options, _) in inputs_of(schema).items():
        tooltip = options.get("tooltip", "")
        yield name, _entry(name, tooltip)
        if given[name][0] == GROWING:  # the page asks for each socket
            for socket in given[name][1]["template"]["names"]:
                yield f"{name}_{socket}", _entry(socket, tooltip)


def _entry(name: str, tooltip: str) -> dict:
    return {"name": name, "tooltip": escaped(tooltip)} if tooltip else {"name": name}


def escaped(text: str) -> str:
    """The page compiles these texts as messages: there { } are parameters, | separates plural forms, @ links."""
    return re.sub(r"[{}|@]", r"{'\g<0>'}", text)


def templates() -> list[str]:
    """Of all sentences for the user, as they stand in the code."""
    load_pack()
    from qwen_image_2.model.languages import ENGLISH  # what a brief calls the parts of a page
    found = {template for folder in ("model", "nodes") for path in (ROOT / folder).rglob("*.py")
             for template in _templates_in(ast.parse(path.read_text(encoding="utf-8")))}
    return sorted(found | set(ENGLISH.roles.values()))


def _templates_in(tree: ast.Module) -> Iterator[str]:
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in MAKERS:
            yield from (argument.value for argument in call.args[:MAKERS[call.func.id]]
                        if isinstance(argument, ast.Constant) and isinstance(argument.value, str))


def build(schemas: dict) -> dict[Path, str]:
    """Path -> content of the files of locales/en."""
    main = FOLDER / "en" / "main.json"
    words = json.loads(main.read_text(encoding="utf-8"))[KEY]["words"]
    contents = {main: {KEY: {"words": words, "sentences": {template: template for template in templates()}}},
                FOLDER / "en" / "nodeDefs.json": node_definitions(schemas)}
    return {path: json.dumps(content, ensure_ascii=False, indent=2) + "\n" for path, content in contents.items()}


def main() -> None:
    from_schemas(build)


if __name__ == "__main__":
    as_program(main)
