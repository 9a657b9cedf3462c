"""The pack as a user gets it: cloned into custom_nodes under any name, beside another pack, asked for by name."""
import io
import os
import shutil
import subprocess
import sys
import urllib.error
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from qwen_image_2.tests.server.conftest import Graph, node
from qwen_image_2.tools.comfyui.client import Client
from qwen_image_2.tools.comfyui.server import DIRECT, Server
from qwen_image_2.tools.pack import ROOT

NAME = "Qwen Image-2 (my copy)"
OTHER = {  # a pack of the older kind: modules with the names of ours, some of them found by way of sys.path
    "__init__.py": """import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
import atomic, messages, model, pages
assert pages.OWNER == messages.OWNER == atomic.OWNER == model.OWNER == "other pack"
from .nodes import NODE_CLASS_MAPPINGS
""",
    **{f"{name}.py": 'OWNER = "other pack"\n' for name in ("atomic", "messages")},
    **{f"{name}/__init__.py": 'OWNER = "other pack"\n' for name in ("model", "pages")},
    "nodes/__init__.py": '''
class OtherPackNode:
    RETURN_TYPES, FUNCTION, CATEGORY = ("INT",), "run", "other"
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    def run(self):
        return (1,)


NODE_CLASS_MAPPINGS = {"OtherPackNode": OtherPackNode}
''',
}


# Python imports a module of this name at its start: every address that the server wants to reach stands in a file.
WATCH = """
import os, socket

def watched(name, method):
    def call(self, *arguments):
        address = arguments[-1]
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            with open(os.environ["REACHED"], "a") as file:
                file.write(f"{address}\\n")
            raise OSError("no network here")
        return method(self, *arguments)
    return call

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, watched(name, getattr(socket.socket, name)))
"""


class Installed(Server):
    """Clones instead of a link to this checkout; all folders are ComfyUI's own."""

    def _lay_out(self) -> None:
        super()._lay_out()
        packs = self.folder / "custom_nodes"
        (packs / "qwen-image-2").unlink()
        clone(packs / NAME)
        clone(packs / "not_asked_for")
        for path, text in OTHER.items():
            (packs / "other_pack" / path).parent.mkdir(parents=True, exist_ok=True)
            (packs / "other_pack" / path).write_text(text, encoding="utf-8")


def clone(target: Path) -> None:
    """As ComfyUI Manager does it; then what is not committed yet, so that a change is tested before its commit."""
    if git("rev-parse", "--git-dir", check=False).returncode:
        pytest.skip("this is not a git checkout, so there is nothing to clone")
    git("clone", "--quiet", "--depth", "1", ROOT.as_uri(), str(target))
    changed = git("diff", "--name-only", "-z", "HEAD").stdout + git("ls-files", "-z", "-o", "--exclude-standard").stdout
    for path in filter(None, changed.split("\0")):
        (target / path).unlink(missing_ok=True)
        if (ROOT / path).exists():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, target / path)


def git(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=check)


def content(folder: Path) -> dict[str, int]:
    """Files below a folder and their sizes, without what Python itself keeps."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*")
            if path.is_file() and not {"__pycache__", ".git"} & set(path.parts)}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def watch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watch")
    (folder / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def installed(comfyui_path, home, watch):
    """A server whose user has an empty home folder, and which reaches nothing but itself."""
    folders = {name: str(home) for name in ("HOME", "USERPROFILE", "LOCALAPPDATA", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    watched = {"PYTHONPATH": str(watch), "REACHED": str(watch / "reached")}
    with Installed(comfyui_path, cpu=True, environment=folders | watched, arguments=[
            "--disable-all-custom-nodes", "--whitelist-custom-nodes", NAME, "other_pack"]) as server:
        yield server


def test_the_documented_installation_fetches_nothing(installed):
    """ComfyUI brings all that the pack needs: pip is content without an index, and changes nothing of ComfyUI's."""
    file = installed.folder / "custom_nodes" / NAME / "requirements.txt"
    said = subprocess.run([installed.python, "-m", "pip", "install", "--no-index", "-r", file], capture_output=True,
                          text=True, check=True).stdout
    assert "Installing" not in said and "Collecting" not in said


def test_all_nodes_are_there_beside_the_other_pack(installed):
    expected = {path.name for path in (ROOT / "js" / "docs").iterdir()}
    known = Client(installed.url).object_info()
    ours = {name for name, schema in known.items() if schema["python_module"] == f"custom_nodes.{NAME}"}
    assert ours == expected and "OtherPackNode" in known
    templates = Client(installed.url)._json("/workflow_templates")[NAME]
    assert sorted(templates) == sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


def test_the_page_gets_its_files(installed):
    """Out of a folder whose name has spaces; the addresses are those that the server tells the page."""
    folder = f"/extensions/{quote(NAME)}"
    listed = [path for path in Client(installed.url)._json("/extensions") if path.startswith(folder)]
    assert len(listed) == len(list((ROOT / "js").glob("*.js")))
    for path in [*listed, f"{folder}/style.css", f"{folder}/docs/QwenImage2Sampler/zh.md"]:
        with DIRECT.open(installed.url + path, timeout=30) as answer:
            assert answer.read() == (ROOT / "js" / path.removeprefix(f"{folder}/")).read_bytes()
    for path in ("../__init__.py", "%2e%2e/__init__.py", "..%2f__init__.py", "docs", "none.js"):
        with pytest.raises(urllib.error.HTTPError, match="40[034]"):
            DIRECT.open(f"{installed.url}{folder}/{path}", timeout=30)


def test_the_log_has_no_complaint(installed):
    log = installed.log_text()
    assert NAME in log  # among the import times
    ours = [line for line in log.splitlines() if any(word in line.lower() for word in ("qwen", "my copy"))]
    assert not [line for line in ours if any(word in line for word in ("WARN", "Warning", "ERROR", "FAILED", "Error"))]
    assert "not_asked_for" not in "".join(line for line in log.splitlines() if "seconds" in line)


def test_a_picture_is_drawn_and_nothing_is_written_elsewhere(installed, home):
    """The miniature needs a file that is made when first used: it lies below ComfyUI's user folder."""
    pack = installed.folder / "custom_nodes" / NAME
    before = content(pack)
    graph = Graph("miniature", "miniature", "miniature", prompt='A red poster: the word "SALE" in white in the centre.',
                  width=128, height=128, steps=2).nodes()
    result = Client(installed.url).run(graph)
    picture, = (file for file in result.files if file.node == "image")
    assert np.asarray(Image.open(io.BytesIO(Client(installed.url).view(picture)))).shape == (128, 128, 4)
    assert len(list(installed.user.rglob("miniature_text_encoder_*.safetensors"))) == 1
    assert content(home) == {} and content(pack) == before


def test_nothing_reaches_for_the_network(installed, watch):
    """All of the pack's kinds of work in one run; what the watch sees is tried out beside it."""
    graph = Graph("miniature", "miniature", "miniature", prompt="A red poster.", width=128, height=128, steps=1).nodes()
    picture, = (key for key, value in graph.items() if value["class_type"] == "QwenImage2VAEDecode")
    graph["check"] = node("QwenImage2TextCheck", image=[picture, 0], expected_text="SALE", match_case=False,
                          match_punctuation=False, tolerance=0.0, allow_extra=False)
    graph["seen"] = node("PreviewImage", images=["check", 0])
    Client(installed.url).run(graph)
    tried = subprocess.run([installed.python, "-c", "import socket; socket.create_connection(('192.0.2.1', 80))"],
                           env={**os.environ, "PYTHONPATH": str(watch), "REACHED": str(watch / "tried")},
                           capture_output=True, text=True, check=False)
    assert "no network here" in tried.stderr and (watch / "tried").read_text() == "('192.0.2.1', 80)\n"
    assert not (watch / "reached").exists(), (watch / "reached").read_text()


def test_only_its_own_modules_are_imported(comfyui_path):
    """ComfyUI starts as fast as the slowest pack lets it: what it has not loaded itself is loaded when it is used."""
    script = f"""
import asyncio, importlib.util, sys
sys.path.insert(0, {str(comfyui_path)!r})
from comfy.cli_args import args
args.cpu = True
import nodes, server, execution
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("the_pack", {str(ROOT / "__init__.py")!r},
                                              submodule_search_locations=[{str(ROOT)!r}])
sys.modules["the_pack"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
assert "the_pack.nodes" not in sys.modules
asyncio.run(pack.comfy_entrypoint())
print("NEW", *sorted({{name.split(".")[0] for name in set(sys.modules) - before}}))
"""
    said = subprocess.run([sys.executable, "-c", script], cwd=comfyui_path, capture_output=True, text=True, check=True)
    new, = (line.split()[1:] for line in said.stdout.splitlines() if line.startswith("NEW"))
    assert set(new) <= {"PIL", "the_pack"}
