"""Writes what translators begin with: locales/en, the names, tooltips and messages that are in the code.

    python tools/dev.py make translations    # starts a server to ask it for the schemas

The panels' words in locales/en/main.json are written by hand: they are nowhere else. A test makes all of it again,
compares, and asks the same of every language.
"""
import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..pack import ROOT, node_ids
from .help_pages import GROWING, inputs_of, outputs_of
from .labels import label
from .make import as_program, from_schemas

FOLDER = ROOT / "locales"
KEY = "qwen_image_2"
SPEAKING = ("*.py", "model/**/*.py", "pages/**/*.py", "nodes/**/*.py")  # code that may say something to a user
FAIL = "fail"  # Checkpoint.fail, which fills in {file} by itself
DEFINING = {"messages.py", "model/checkpoints/checkpoint.py"}  # where keys are handed on
KEY_FORM = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def node_definitions(schemas: dict) -> dict[str, dict]:
    """Names and tooltips of our nodes, as ComfyUI's page wants them in nodeDefs.json."""
    return {name: _node(schema) for name, schema in sorted(schemas.items()) if name in node_ids()}


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
    shown = {"name": escaped(label(name))}
    return shown | {"tooltip": escaped(tooltip)} if tooltip else shown


def escaped(text: str) -> str:
    """The page compiles these texts as messages: there { } are parameters, | separates plural forms, @ links."""
    return re.sub(r"[{}|@]", r"{'\g<0>'}", text)


@dataclass(frozen=True)
class Found:
    """A message as it is written in the code."""

    key: str
    template: str
    place: str  # file and line, for people


def messages() -> dict[str, str]:
    """Key -> English of every message in the code. Raises ValueError for a key that stands in two places."""
    table: dict[str, Found] = {}
    for found in collected(sources()):
        if found.key in table:
            raise ValueError(f"{found.place}: the key {found.key} stands at {table[found.key].place}, too")
        table[found.key] = found
    return {key: table[key].template for key in sorted(table)}


def sources() -> dict[str, ast.Module]:
    """The code that may speak to a user, by its path."""
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
            for pattern in SPEAKING for path in ROOT.glob(pattern)}


def collected(trees: dict[str, ast.Module]) -> Iterator[Found]:
    """Every message in these files. Raises ValueError for one whose key or template is not written out, and for holes
    that are not those that are filled."""
    makers = {"Message", "plural", FAIL, *refusals(trees)}
    for path, tree in trees.items():
        for call in calls(tree):
            if called(call) in makers and not (path in DEFINING and not _is_text(call.args[0])):
                yield from _messages_of(call, f"{path}:{call.lineno}")


def refusals(trees: dict[str, ast.Module]) -> set[str]:
    """Names of the classes that are Refusals."""
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    names, before = {"Refusal"}, 0
    while before < len(names):
        before = len(names)
        names |= {one.name for one in classes if any(getattr(base, "id", "") in names for base in one.bases)}
    return names


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _messages_of(call: ast.Call, place: str) -> Iterator[Found]:
    if called(call) == "plural":
        key, _, *templates = call.args
        keys, filled = [f"{_text(key, place)}.one", f"{_text(key, place)}.more"], {"count"}
    else:
        key, *templates = call.args
        keys, filled = [_text(key, place)], {keyword.arg for keyword in call.keywords}
        filled |= {"file"} if called(call) == FAIL else set()
    if len(keys) != len(templates) or not KEY_FORM.fullmatch(_text(key, place)):
        raise ValueError(f"{place}: a message is a key in snake case and a template")
    for key, template in zip(keys, templates):
        if holes(_text(template, place)) != filled:
            raise ValueError(f"{place}: the holes of {key} are not those that are filled")
        yield Found(key, template.value, place)


def _is_text(code: ast.expr) -> bool:
    return isinstance(code, ast.Constant) and isinstance(code.value, str)


def _text(code: ast.expr, place: str) -> str:
    if not _is_text(code):
        raise ValueError(f"{place}: key and template of a message are written out where it is made")
    return code.value


def holes(template: str) -> set[str]:
    """Names in curly brackets. Raises ValueError for anything else in them, doubled brackets too: the page fills in
    plain names only."""
    names = re.findall(r"{(\w+)}", template)
    if re.search(r"[{}]", re.sub(r"{\w+}", "", template)):
        raise ValueError(f"In {template!r} curly brackets hold something else than a name.")
    return set(names)


def build(schemas: dict) -> dict[Path, str]:
    """Path -> content of the files of locales/en."""
    main = FOLDER / "en" / "main.json"
    words = json.loads(main.read_text(encoding="utf-8"))[KEY]["words"]
    contents = {main: {KEY: {"words": words, "messages": messages()}},
                FOLDER / "en" / "nodeDefs.json": node_definitions(schemas)}
    return {path: json.dumps(content, ensure_ascii=False, indent=2) + "\n" for path, content in contents.items()}


def main() -> None:
    from_schemas(build)


if __name__ == "__main__":
    as_program(main)
