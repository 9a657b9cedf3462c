"""Rules of the code base that a reader relies on."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_image_2.tools.pack import ROOT

CODE = ("model", "pages", "nodes", "tools", "benchmarks", "tests")
COMFYUI_MODULES = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "nodes", "server",
                   "latent_preview", "node_helpers", "execution"}


def imports(path: Path) -> set[str]:
    """First parts of what a file imports, relative imports as dots and module."""
    found = set()
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            found |= {alias.name.split(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            found.add("." * statement.level + (statement.module or "").split(".")[0])
    return found


def modules_imported(path: Path) -> set[tuple[str, ...]]:
    """The pack's own modules that a file imports: ("model", "images", "sizes")."""
    package, found = path.relative_to(ROOT).parent.parts, set()
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.ImportFrom) and statement.level:
            above = package[:len(package) - statement.level + 1]
            named = [statement.module] if statement.module else [alias.name for alias in statement.names]
            found |= {(*above, *module.split(".")) for module in named}
    return found


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("path", [path for folder in ("model", "pages") for path in files(folder)],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_model_and_pages_do_not_know_comfyui(path):
    assert not imports(path) & COMFYUI_MODULES


NODE_FILES = [path for path in files("nodes") if path.parent.name == "nodes"]
COMMON_FILES = files("nodes/common")


@pytest.mark.parametrize("path", NODE_FILES + COMMON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_bridge_is_given_comfyui_internals(path):
    """Node files may call ComfyUI; they build none of its objects and load no checkpoint themselves."""
    text = path.read_text(encoding="utf-8")
    for word in ("ModelPatcher", "CFGGuider", "comfy.samplers", "comfy.sd", "comfy.model_base", "supported_models",
                 "safetensors.torch"):
        assert word not in text


SHARED = {"common", "bridge", "frontend", "notices", "seeds"}
# The list of all nodes, and the routes that ask a brief what it would write.
KNOW_NODES = ("__init__.py", "routes.py")


def beside(path: Path) -> set[str]:
    """What a file imports of nodes/: the names that stand there."""
    return {module[1] for module in modules_imported(path) if module[0] == "nodes"}


@pytest.mark.parametrize("path", [path for path in NODE_FILES if path.name not in KNOW_NODES],
                         ids=lambda path: path.name)
def test_node_files_are_not_each_others_libraries(path):
    """What two of them need lies in common/ or, where ComfyUI's objects are built, in bridge/."""
    assert beside(path) <= SHARED


@pytest.mark.parametrize("path", COMMON_FILES, ids=lambda path: path.name)
def test_what_nodes_share_knows_no_node(path):
    assert beside(path) <= SHARED


# Floors of the house: a room imports itself and what lies on a floor below it, never a neighbour.
FLOORS = (("messages",), ("atomic",), ("model.runtime", "model.checkpoints", "model.images"),
          ("model.qwen_image_1", "model.qwen_image_2", "model.language"))
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Pages are no model: of its rooms they use the one with sizes and boxes, and no network.
PAGES_MAY_IMPORT = {"messages", "atomic", "model.images"}


def room_of(module: tuple[str, ...]) -> str:
    """`pages`, or a room of `model`."""
    return ".".join(module[:2 if module[0] == "model" else 1])


def rooms_below(room: str) -> set[str]:
    """The rooms that this one may import."""
    return PAGES_MAY_IMPORT if room == "pages" else {one for one in FLOOR if FLOOR[one] < FLOOR.get(room, 0)}


@pytest.mark.parametrize("path", [path for folder in ("model", "pages") for path in files(folder)],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_between_rooms_point_one_way(path):
    own = room_of(path.relative_to(ROOT).with_suffix("").parts)
    assert {room_of(module) for module in modules_imported(path)} <= rooms_below(own) | {own}


# A fresh interpreter in which nothing can import torch; its arguments are modules of the pack.
WITHOUT_TORCH = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is blocked")

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, "tools")
import pack
pack.load_pack()
for name in sys.argv[1:]:
    importlib.import_module("qwen_image_2." + name)
"""
TORCH_FREE = ["model.images.boxes", "model.images.sizes", "model.images.tiles",
              *(f"pages.{path.stem}" for path in files("pages"))]


def imported_without_torch(*modules: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-I", "-c", WITHOUT_TORCH, *modules], cwd=ROOT, capture_output=True,
                          text=True, check=False)


def test_pages_boxes_and_sizes_need_no_torch():
    assert {"pages.briefs", "pages.outline", "pages.wording", "pages.compare"} < set(TORCH_FREE)
    found = imported_without_torch(*TORCH_FREE)
    assert found.returncode == 0, found.stderr


def test_what_needs_torch_is_not_imported_without_it():
    """Or the test above would pass whatever pages/ imports."""
    found = imported_without_torch("model.images.regions")
    assert found.returncode != 0 and "torch is blocked" in found.stderr


@pytest.mark.parametrize("path", files("nodes/bridge"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_bridge_knows_no_node(path):
    """What lies in nodes/ beside it, it does not import."""
    above = {module for module in modules_imported(path) if module[0] == "nodes" and module[1] != "bridge"}
    assert not above


# The bridge's own floors. Menus are above the text encoders because the miniature among them is drawn as one.
BRIDGE = (("keys", "progress", "kitchen", "devices", "slices"), ("adapters",), ("quant",), ("saving",),
          ("text_encoders", "vae", "runtime"), ("files",), ("pack_model",),
          ("prefix_cond", "control", "reference_weights"), ("qwen_image_1", "qwen_image_2", "run_checks"),
          ("loading", "lora", "guider"), ("tiled",))
BRIDGE_FLOOR = {room: number for number, rooms in enumerate(BRIDGE) for room in rooms}


@pytest.mark.parametrize("path", [path for path in files("nodes/bridge") if path.stem != "__init__"],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_inside_the_bridge_point_one_way(path):
    """A room or file of the bridge imports what lies on a floor below it, never a neighbour."""
    own = path.relative_to(ROOT / "nodes" / "bridge").with_suffix("").parts[0]
    imported = {module[2] for module in modules_imported(path) if module[:2] == ("nodes", "bridge")} - {own}
    assert all(BRIDGE_FLOOR[room] < BRIDGE_FLOOR[own] for room in imported), imported


@pytest.mark.parametrize("path", [path for folder in CODE for path in files(folder)],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_ruff_finds_nothing():
    found = subprocess.run([sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."], cwd=ROOT,
                           capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
