"""Makes the pack importable as `qwen_image_2`, and a ComfyUI tree (COMFYUI_PATH) for the tests that need one."""
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# Only for as long as it takes: tools/ has modules with names that other packages have too.
sys.path.insert(0, str(HERE.parent / "tools"))
from pack import load_pack  # noqa: E402

sys.path.pop(0)
load_pack()

# Side by side with others, a process and the servers that it starts compute on their share of the cores.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))

# Folders and files that take minutes, the longest first.
LONGEST = ("browser", "tools/test_benchmarks.py", "server", "tools", "nodes/bridge")
# What every test in a folder is marked with. The tests of the page start a server as well.
MARKS = {"server": ["server"], "browser": ["browser", "server"]}


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Side by side, a process runs whole files, and one of them all of tests/browser: a browser, its server and its
    pages take longer to start than most tests of the page."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/browser" if nodeid.startswith("tests/browser/") else super()._split_scope(nodeid)

    return Scheduling(config, log)


def _rank(path: Path) -> int:
    return next((rank for rank, name in enumerate(LONGEST) if HERE / name in (path, *path.parents)), len(LONGEST))


def pytest_collection_modifyitems(items):
    if "PYTEST_XDIST_WORKER" in os.environ:  # what takes longest begins first, or one process would end alone
        items.sort(key=lambda item: _rank(item.path))
    for item in items:
        for folder, marks in MARKS.items():
            if HERE / folder in item.path.parents:
                for mark in marks:
                    item.add_marker(mark)


@pytest.fixture(autouse=True)
def the_same_numbers_in_any_order():
    """Random tensors of a test without a seed of its own: else its pictures would depend on who ran before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    path = Path(os.environ.get("COMFYUI_PATH", ""))
    assert (path / "main.py").is_file(), "COMFYUI_PATH must name a ComfyUI tree; `python tools/dev.py test` sets it."
    return path


@pytest.fixture(scope="session")
def comfyui(comfyui_path, tmp_path_factory):
    """ComfyUI importable in this process, on the CPU."""
    if str(comfyui_path) not in sys.path:
        sys.path.insert(0, str(comfyui_path))
    from comfy.cli_args import args
    args.cpu = True
    args.disable_dynamic_vram = True
    import folder_paths
    folder_paths.set_user_directory(str(tmp_path_factory.mktemp("user")))
    folder_paths.set_temp_directory(str(tmp_path_factory.mktemp("temp")))
    return comfyui_path


@pytest.fixture(scope="session")
def reference(comfyui_path):
    """The reference pipeline (diffusers, transformers) with tiny random weights."""
    from qwen_image_2.tests import reference
    return reference.build(comfyui_path)
