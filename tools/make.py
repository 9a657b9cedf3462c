"""`dev.py make`: the programs that write files of this repository from its code. Each runs as `python -m tools.NAME`
too, where the environment's Python and COMFYUI_PATH are at hand."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from .errors import UserError
from .output import write_whole

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {  # name -> module, what it writes, its arguments
    "workflows": ("build_workflows", "workflows/*.json and workflows/api/*.json", ""),
    "thumbnails": ("thumbnails", "their pictures; needs Chromium", "[--large FOLDER] [NAME ...]"),
    "help": ("help_pages", "the lists in the nodes' help pages, js/docs", ""),
    "translations": ("translations", "locales/en", ""),
}


def run(comfyui: Path, target: str, arguments: list[str]) -> int:
    """Run the target's program with its further arguments. Raises UserError where this Python lacks its packages."""
    os.environ["COMFYUI_PATH"] = str(comfyui)
    try:
        importlib.import_module(f".{TARGETS[target][0]}", __package__).main(arguments)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{sys.executable} has no {error.name}; its pip installs it with -r tools/requirements.txt."
        ) from error
    return 0


def comfyui() -> Path:
    """The ComfyUI that the programs ask."""
    if "COMFYUI_PATH" not in os.environ:
        raise UserError("COMFYUI_PATH must name a ComfyUI folder; `python tools/dev.py make` sets it.")
    return Path(os.environ["COMFYUI_PATH"])


def from_schemas(build: Callable[[dict], dict[Path, str]], about: str, arguments: list[str] | None) -> None:
    """The whole of a program that writes what `build` makes of a server's schemas (path -> content)."""
    argparse.ArgumentParser(description=about.splitlines()[0]).parse_args(arguments)
    from .client import Client
    from .server import Server

    with Server(comfyui()) as server:
        schemas = Client(server.url).object_info()
    for path, content in build(schemas).items():
        write_whole(path, content.encode())
        print(f"wrote {path.relative_to(ROOT).as_posix()}")


def as_program(main: Callable[[], None]) -> None:
    """Run `main` as `python -m` does, with a person's mistake as a sentence."""
    try:
        main()
    except UserError as error:
        sys.exit(f"Error: {error}")
