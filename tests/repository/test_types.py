"""The types of `model` and `pages`, as mypy sees them; its settings are in pyproject.toml."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_image_2.tools.pack import NAME, ROOT

CHECKED = [f"--package={NAME}.model", f"--package={NAME}.pages", f"--module={NAME}.messages",
           f"--module={NAME}.atomic"]


@pytest.fixture
def mypy(tmp_path):
    """Run mypy on modules of a folder as the package qwen_image_2, by a link of that name: the folder's own name is no
    package's, and the modules import each other relatively. Its cache goes with the test."""
    def run(folder: Path, *modules: str) -> subprocess.CompletedProcess:
        try:
            (tmp_path / NAME).symlink_to(folder, target_is_directory=True)
        except OSError as error:  # Windows, for users who may not make links
            pytest.skip(f"no symbolic link can be made here: {error}")
        return subprocess.run(
            [sys.executable, "-m", "mypy", f"--config-file={ROOT / 'pyproject.toml'}",
             f"--cache-dir={tmp_path / 'cache'}", *modules],
            cwd=tmp_path, env={**os.environ, "MYPYPATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    return run


def test_mypy_finds_nothing_in_model_and_pages(mypy):
    found = mypy(ROOT, *CHECKED)
    assert found.returncode == 0, found.stdout + found.stderr


def test_mypy_finds_what_is_wrong(mypy, tmp_path):
    """Or the test above would pass whatever the settings are."""
    folder = tmp_path / "pack"
    (folder / "pages").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "pages" / "__init__.py").write_text("def untyped(text): ...\n\n\ncount: int = 'three'\n", "utf-8")
    found = mypy(folder, f"--package={NAME}.pages")
    assert found.returncode == 1 and "[no-untyped-def]" in found.stdout and "[assignment]" in found.stdout
