"""Import the repository as the package `qwen_image_2`, whatever its folder is called."""
import ast
import importlib.util
import sys
from functools import cache
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


@cache
def node_ids() -> frozenset[str]:
    """Ids of the pack's nodes, from the list in nodes/__init__.py, which only ComfyUI can import.

    How an id begins does not tell whose it is: core has a QwenImage21Cache.
    """
    tree = ast.parse((ROOT / "nodes" / "__init__.py").read_text("utf-8"))
    nodes = next(each.value for each in tree.body
                 if isinstance(each, ast.AnnAssign) and ast.unparse(each.target) == "NODES")
    return frozenset(node.id for node in nodes.elts)
