"""Writes what translators begin with: locales/en, the names, tooltips, sentences and refusals that are in the code.

    python tools/dev.py make translations    # starts a server to ask it for the schemas

The panels' words in locales/en/main.json are written by hand: they are nowhere else. A test makes all of it again,
compares, and asks the same of every language.
"""
import ast
import builtins
import json
import re
from collections.abc import Iterator
from pathlib import Path

from ..pack import ROOT
from .help_pages import GROWING, inputs_of, outputs_of
from .make import as_program, from_schemas

FOLDER = ROOT / "locales"
KEY = "qwen_image_2"
FOLDERS = ("model", "pages", "nodes")  # whose code says something to users
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
    from qwen_image_2.pages.vocabulary import ENGLISH  # what a brief calls the parts of a page
    return sorted({template for call in _calls() for template in _of_sentence(call)} | set(ENGLISH.roles.values()))


def refusals() -> list[str]:
    """Templates of what is raised, from the f-strings in the code."""
    return sorted({template for call in _calls() if is_error(call) and (template := refusal_of(call))})


def _calls() -> Iterator[ast.Call]:
    for path in sources():
        code = ast.parse(path.read_text(encoding="utf-8"))
        yield from (node for node in ast.walk(code) if isinstance(node, ast.Call))


def sources() -> list[Path]:
    """The pack's own files: what people read is written there."""
    return sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])


def _of_sentence(call: ast.Call) -> Iterator[str]:
    if isinstance(call.func, ast.Name) and call.func.id in MAKERS:
        yield from (argument.value for argument in call.args[:MAKERS[call.func.id]]
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str))


def is_error(call: ast.Call) -> bool:
    """Whether an exception is made."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name.endswith("Error") or name == "OOM_EXCEPTION"


def refusal_of(call: ast.Call) -> str | None:
    """f"{len(masks)} masks for {one.name!r}" -> "{masks} masks for {name}"; None where no string is written there."""
    message = call.args[0] if call.args else None
    if isinstance(message, ast.Constant) and isinstance(message.value, str):
        return message.value
    if not isinstance(message, ast.JoinedStr):
        return None
    holes: dict[str, str] = {}  # code -> name
    return "".join(part.value if isinstance(part, ast.Constant) else f"{{{_hole(part.value, holes)}}}"
                   for part in message.values)


def _hole(code: ast.expr, holes: dict[str, str]) -> str:
    """The name of a hole: that of the value, with a number where another value is called the same."""
    name = (identifier(code) or "value").lower()
    alike = sum(other.rstrip("0123456789") == name for other in holes.values())
    return holes.setdefault(ast.unparse(code), f"{name}{alike + 1}" if alike else name)


def identifier(code: ast.AST) -> str:
    """What a piece of code is about: `masks` in len(masks), `width` in spec.width // 2; "" where that is not plain."""
    if isinstance(code, ast.Name):
        return "" if hasattr(builtins, code.id) else code.id
    if isinstance(code, ast.Attribute):
        return code.attr
    if isinstance(code, ast.Call):
        return next(filter(None, map(identifier, reversed(code.args))), "") or identifier(
            code.func.value if isinstance(code.func, ast.Attribute) else code.func)
    inner = {ast.Subscript: "value", ast.BinOp: "left"}.get(type(code))
    if isinstance(code, ast.BoolOp):
        return identifier(code.values[0])
    return identifier(getattr(code, inner)) if inner else ""


def build(schemas: dict) -> dict[Path, str]:
    """Path -> content of the files of locales/en."""
    main = FOLDER / "en" / "main.json"
    words = json.loads(main.read_text(encoding="utf-8"))[KEY]["words"]
    own = {"words": words, "sentences": {template: template for template in templates()},
           "refusals": {template: template for template in refusals()}}
    contents = {main: {KEY: own},
                FOLDER / "en" / "nodeDefs.json": node_definitions(schemas)}
    return {path: json.dumps(content, ensure_ascii=False, indent=2) + "\n" for path, content in contents.items()}


def main() -> None:
    from_schemas(build)


if __name__ == "__main__":
    as_program(main)
