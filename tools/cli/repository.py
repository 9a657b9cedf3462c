"""The commands that work on the repository itself. The registry's archive leaves out what they run."""

from __future__ import annotations

from pathlib import Path

from ..pack import ROOT
from .errors import UserError

# Command -> the folder that it runs. A test holds this against .comfyignore.
FOLDERS = {"test": "tests", "bench": "benchmarks", "make": "tools/generate"}


def has(command: str, root: Path = ROOT) -> bool:
    """Whether what the command runs is there."""
    return command not in FOLDERS or (root / FOLDERS[command]).is_dir()


def require(command: str, root: Path = ROOT) -> None:
    """Raises UserError where the pack was installed from the registry and the command needs the repository."""
    if not has(command, root):
        raise UserError(
            f"{command} needs the pack's repository, because the registry's archive leaves out {FOLDERS[command]}/: "
            "git clone the repository and run the command there."
        )
