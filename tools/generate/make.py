"""`dev.py make`: the programs that write files of this repository from its code. Each runs as
`python -m tools.generate.NAME` too, where the environment's Python and COMFYUI_PATH are at hand."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ..cli.errors import UserError
from ..cli.output import write_whole
from ..pack import ROOT

TARGETS = {  # name -> module, what it writes, its arguments
    "workflows": ("build_workflows", "workflows/*.json and workflows/api/*.json", ""),
    "thumbnails": ("thumbnails", "their pictures; needs Chromium", "[--large FOLDER] [NAME ...]"),
    "help": ("help_pages", "the lists in the nodes' help pages, js/docs, and docs/nodes.md", ""),
    "translations": ("translations", "locales/en", ""),
}


def check(target: str, arguments: list[str]) -> None:
    """Refuse arguments that the target does not take."""
    if arguments and not TARGETS[target][2]:
        raise UserError(f"make {target} takes no further arguments, but there is {' '.join(arguments)}.")


def run(comfyui: Path, target: str, arguments: list[str]) -> int:
    """Run the target's program with its further arguments. Raises UserError where this Python lacks its packages."""
    os.environ["COMFYUI_PATH"] = str(comfyui)
    try:
        program = importlib.import_module(f".{TARGETS[target][0]}", __package__)
        program.main(arguments) if arguments else program.main()
    except ModuleNotFoundError as error:
        raise UserError(
            f"{sys.executable} has no {error.name}; its pip installs it with -r tools/requirements.txt."
        ) from error
    return 0


def comfyui() -> Path:
    """The ComfyUI that the programs ask."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        raise UserError("COMFYUI_PATH must name a ComfyUI folder; `python tools/dev.py make` sets it.")
    return Path(path)


def from_schemas(build: Callable[[dict], dict[Path, str]]) -> None:
    """The whole of a program that writes what `build` makes of a server's schemas (path -> content)."""
    from ..comfyui.client import Client
    from ..comfyui.server import Server

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
