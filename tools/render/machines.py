"""What a machine has, and whether all have the same."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..cli.errors import UserError
from ..comfyui.server import MODEL_FOLDERS
from ..comfyui.workflow import MODEL_FILES, Graph
from ..pack import ROOT

HOST = "machine"
MISSING = "missing"
HEAD = 2 ** 20  # bytes of a model file that are compared, beside its size: all of a large one takes minutes
PACK = ("*.py", "model/**/*.py", "pages/**/*.py", "nodes/**/*.py", "assets/miniature/**/*.safetensors")
COMFYUI = ("*.py", "comfy/**/*.py", "comfy_extras/**/*.py", "comfy_execution/**/*.py")
NAMED = 3  # differences that a sentence names


def facts(comfyui: Path, models: Path | None, files: Iterable[str]) -> dict[str, str]:
    """Name -> value; all but the machine's own name must be the same everywhere."""
    found = {HOST: socket.gethostname(), "the pack": _tree(ROOT, PACK), "torch": importlib.metadata.version("torch"),
             "ComfyUI": f"{_version(comfyui)} {_tree(comfyui, COMFYUI)}"}
    elsewhere = models is None or (comfyui / "extra_model_paths.yaml").is_file()  # then only ComfyUI knows where
    return found | ({} if elsewhere else {name: _model(models, name) for name in files})


def model_files(graph: Graph) -> tuple[str, ...]:
    """The model files that a workflow names."""
    values = (value for entry in graph.values() for value in entry["inputs"].values())
    return tuple(dict.fromkeys(value for value in values
                               if isinstance(value, str) and value.lower().endswith(MODEL_FILES)))


def compare(workers: dict[str, dict[str, str]]) -> None:
    """Raises UserError with what differs, or with the files that a machine does not have. workers: by their names."""
    (first, wanted), *others = workers.items()
    lacking = [f"{name} on {_called(worker, found)}" for worker, found in workers.items()
               for name, value in found.items() if value == MISSING]
    if lacking:
        raise UserError(f"Model files are missing: {_some(lacking)}. No row was drawn: put them into the models folder "
                        "of each machine, or name a shared one with --models.")
    unlike = [f"{name} is {value} on {_called(worker, found)} and {wanted.get(name)} on {_called(first, wanted)}"
              for worker, found in others for name, value in found.items()
              if name != HOST and value != wanted.get(name)]
    if unlike:
        raise UserError(f"The machines differ, so their pictures would: {_some(unlike)}. No row was drawn: make them "
                        "the same.")


def _some(items: list[str]) -> str:
    more = f"; {len(items) - NAMED} more" if len(items) > NAMED else ""
    return "; ".join(items[:NAMED]) + more


def _called(worker: str, found: dict[str, str]) -> str:
    return f"{found[HOST]} ({worker})"


def _tree(folder: Path, patterns: Iterable[str]) -> str:
    """A short hash of files and their names."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:10]


def _version(comfyui: Path) -> str:
    try:
        found = re.search(r'__version__ = "([^"]+)"', (comfyui / "comfyui_version.py").read_text("utf-8"))
    except OSError:
        return ""
    return found[1] if found else ""


def _model(models: Path, name: str) -> str:
    path = next(_places(models, name), None)
    if path is None:
        return MISSING
    with open(path, "rb") as file:
        return f"{path.stat().st_size} bytes, {hashlib.sha256(file.read(HEAD)).hexdigest()[:10]}"


def _places(models: Path, name: str) -> Iterator[Path]:
    folders = [models / folder for folder in MODEL_FOLDERS]
    return (folder / name for folder in folders if (folder / name).is_file())
