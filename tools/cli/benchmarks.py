"""Which programs of benchmarks/ are benchmarks; the others are their parts."""

from __future__ import annotations

import ast
from pathlib import Path

from ..pack import ROOT
from .errors import UserError

FOLDER = ROOT / "benchmarks"
DEFAULT = "foundation"


def present(folder: Path = FOLDER) -> dict[str, str]:
    """Name -> what it finds out, in its own words. A benchmark is a program that says how dev.py starts it."""
    documents = {file.stem: _document(file) for file in sorted(folder.glob("*.py"))}
    return {name: text.splitlines()[0] for name, text in documents.items() if "python tools/dev.py bench" in text}


def _document(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""


def chosen(arguments: list[str], folder: Path = FOLDER) -> tuple[Path, list[str]]:
    """The program that `bench` with these arguments means, and what is for the program itself."""
    named = bool(arguments) and not arguments[0].startswith("-")
    name, rest = (arguments[0], arguments[1:]) if named else (DEFAULT, arguments)
    there = present(folder)
    if name not in there:
        raise UserError(f"There is no benchmark {name!r}; there are: {', '.join(there) or 'none'}.")
    return folder / f"{name}.py", rest
