"""Makes the pack importable as `qwen_image_2`, and a ComfyUI tree (COMFYUI_PATH) for the tests that need one."""
import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _load_pack() -> None:
    """By its path: the folder may have any name, and must not be on sys.path itself (its `nodes` would hide
    ComfyUI's)."""
    spec = importlib.util.spec_from_file_location("qwen_image_2", ROOT / "__init__.py",
                                                  submodule_search_locations=[str(ROOT)])
    sys.modules["qwen_image_2"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["qwen_image_2"])


_load_pack()


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    path = Path(os.environ.get("COMFYUI_PATH", ""))
    assert (path / "main.py").is_file(), "COMFYUI_PATH must name a ComfyUI tree; `python tools/dev.py test` sets it."
    return path


@pytest.fixture(scope="session")
def reference(comfyui_path):
    """The reference pipeline (diffusers, transformers) with tiny random weights."""
    from qwen_image_2.tests import reference
    return reference.build(comfyui_path)
