"""Rules of the code base that a reader relies on."""
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("path", files("model"), ids=lambda path: path.name)
def test_model_knows_neither_comfyui_nor_the_nodes(path):
    found = imports(path)
    assert not found & COMFYUI_MODULES
    assert not any(name.startswith("..") for name in found), "model/ imports nothing above it"


@pytest.mark.parametrize("path", [path for path in files("nodes") if path.parent.name == "nodes"],
                         ids=lambda path: path.name)
def test_only_the_bridge_is_given_comfyui_internals(path):
    """Node files may call ComfyUI; they build none of its objects and load no checkpoint themselves."""
    text = path.read_text(encoding="utf-8")
    for word in ("ModelPatcher", "comfy.sd", "comfy.model_base", "supported_models", "safetensors.torch"):
        assert word not in text


# Each file imports only files before it.
MODEL_ORDER = ("sentences", "frozen", "latents", "spec", "layouts", "lora", "sizes", "editing", "regions", "text_match",
               "text_report", "ocr", "glyphs", "prompt", "quotation", "briefs", "languages", "wording", "enhancement",
               "outline", "schedule", "rope", "kernels", "prefix", "streaming", "prefetch", "transformer",
               "vae_layers", "bands", "vae", "vae_memory", "ggml", "finite", "files", "configuration", "writer", "deck",
               "llama_cpp", "quantised", "checkpoint", "enhancer_checkpoint")


@pytest.mark.parametrize("path", [path for path in files("model") if path.name != "__init__.py"],
                         ids=lambda path: path.name)
def test_imports_within_the_model_point_one_way(path):
    before = MODEL_ORDER[:MODEL_ORDER.index(path.stem)]
    inside = {name[1:] for name in imports(path) if name.startswith(".")} - {""}
    assert inside <= set(before)
    bare = re.findall(r"^from \. import (.+)$", path.read_text(encoding="utf-8"), re.M)
    assert {name.strip() for names in bare for name in names.split(",")} <= set(before)


@pytest.mark.parametrize("path", files("nodes/bridge"), ids=lambda path: path.name)
def test_the_bridge_knows_no_node(path):
    assert not any(name.startswith("..") and not name.startswith("...") for name in imports(path))


@pytest.mark.parametrize("path", [*files("model"), *files("nodes"), *files("tools"), *files("tests")],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_ruff_finds_nothing():
    found = subprocess.run([sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."], cwd=ROOT,
                           capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
