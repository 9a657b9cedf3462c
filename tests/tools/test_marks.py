"""Whoever leaves out the slow tests, by `-m "not server"` or `-m "not browser"`, leaves out all of them."""
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_image_2.tests import conftest
from qwen_image_2.tools.pack import ROOT


class Item:
    """As much of a collected test as the marking looks at."""

    def __init__(self, path: Path):
        self.path, self.marks = path, set()

    def add_marker(self, mark: str) -> None:
        self.marks.add(mark)


@pytest.mark.parametrize("path, marks", [
    ("server/test_contract.py", {"server"}), ("browser/test_briefs.py", {"browser", "server"}),
    ("browser/below/test_more.py", {"browser", "server"}), ("tools/test_server.py", set()), ("test_atomic.py", set()),
])
def test_tests_are_marked_by_their_folder(path, marks):
    item = Item(ROOT / "tests" / path)
    conftest.pytest_collection_modifyitems([item])
    assert item.marks == marks


def test_not_server_leaves_none_of_their_folders():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", "not server"]
    done = subprocess.run([*command, "tests/server", "tests/browser"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout
    assert "deselected" in done.stdout and "error" not in done.stdout
