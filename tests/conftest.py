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
