"""Import the repository as the package `qwen_image_2`, whatever its folder is called."""
import importlib.util
import sys
from pathlib import Path

NAME = "qwen_image_2"
ROOT = Path(__file__).resolve().parent.parent


def load_pack():
    """The pack's root module. Its parts are then importable: `from qwen_image_2.model import vae`.

    The root folder must not be put on sys.path: its `nodes` would hide ComfyUI's own module of that name.
    """
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py",
                                                      submodule_search_locations=[str(ROOT)])
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[NAME]
