"""What the registry's archive holds: the files that git tracks, without those that .comfyignore names."""
import ast
import asyncio
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from safetensors import safe_open

from qwen_image_2.tools.cli import repository
from qwen_image_2.tools.cli.errors import UserError
from qwen_image_2.tools.pack import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NEEDED = ("__init__.py", "atomic.py", "messages.py", "pyproject.toml", "requirements.txt", "README.md", "CHANGELOG.md",
          "LICENSE", "CONTRIBUTING.md", "assets/miniature/", "docs/", "js/", "js/docs/", "locales/zh/", "model/",
          "pages/", "nodes/", "nodes/bridge/", "workflows/", "workflows/api/", "tools/__init__.py", "tools/dev.py",
          "tools/pack.py", "tools/requirements.txt", "tools/cli/", "tools/comfyui/",
          "tools/render/")
LEFT_OUT = (".ci/", ".github/", "assets/screenshots/", "benchmarks/", "tests/", "tools/generate/", "tools/miniature/",
            "tools/text_benchmark/")


def tracked(*options: str) -> set[str]:
    found = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("this is not a git checkout, so there is nothing to publish from")
    return set(filter(None, found.stdout.split("\0")))


@pytest.fixture(scope="module")
def archive() -> set[str]:
    return tracked() - tracked("--cached", "--ignored", "--exclude-from=.comfyignore")


def test_the_archive_has_what_the_pack_needs_and_no_more(archive):
    for path in NEEDED:
        all_of_it = {name for name in tracked() if name == path or (path.endswith("/") and name.startswith(path))}
        assert all_of_it and all_of_it <= archive, path
    assert not [name for name in archive if name.startswith(LEFT_OUT)]


@pytest.fixture
def unpacked(archive, tmp_path) -> Path:
    """The archive in a folder whose name is no Python name."""
    folder = tmp_path / "qwen image-2 (copy)"
    for path in archive:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, folder / path)
    return folder


def relative_imports(path: str, at_start: bool = False) -> set[str]:
    """The modules of the pack that a file imports, as paths without an ending. `from . import a` may name either.

    at_start: only those that are imported together with the file.
    """
    found, folder = set(), Path(path).parent
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for statement in tree.body if at_start else ast.walk(tree):
        if isinstance(statement, ast.ImportFrom) and statement.level:
            base = [folder, *folder.parents][statement.level - 1]
            inside = base.joinpath(*(statement.module or "").split("."))
            found |= {inside.as_posix()} if statement.module else {(base / a.name).as_posix() for a in statement.names}
    return found


def test_nothing_that_is_imported_is_left_out(archive):
    sources = [path for path in archive if path.endswith(".py")]
    at_start = {module for path in sources for module in relative_imports(path, at_start=True)}
    later = {module for path in sources for module in relative_imports(path)} - set(repository.FOLDERS.values())
    wanted = at_start | later
    assert len(wanted) > 30
    assert not [module for module in wanted if not {f"{module}.py", f"{module}/__init__.py"} & archive]
    scripts = [path for path in archive if path.endswith(".js")]
    for path in scripts:
        for name in re.findall(r'from "\./(.+?)"', (ROOT / path).read_text(encoding="utf-8")):
            assert f"js/{name}" in archive


def test_what_only_some_users_need_is_imported_when_it_is_needed(archive):
    """ComfyUI starts with every pack's imports: these take seconds, or are not installed."""
    rare = {"cv2", "fpdf", "openpyxl", "ray", "onnxruntime", "rapidocr"}
    for path in (path for path in archive if path.endswith(".py")):
        for statement in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Import) or (isinstance(statement, ast.ImportFrom) and not statement.level):
                names = {a.name for a in statement.names} | {getattr(statement, "module", None) or ""}
                assert not {name.split(".")[0] for name in names} & rare, path


def test_no_file_of_the_archive_needs_the_gguf_package(archive):
    """It is the tests' and the benchmarks': a file is read without it."""
    for path in (path for path in archive if path.endswith(".py")):
        for statement in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            assert not (isinstance(statement, ast.Import) and "gguf" in {name.name for name in statement.names}), path


def test_an_unpacked_archive_works_under_another_name(unpacked, comfyui):
    name = "unpacked_pack"
    spec = importlib.util.spec_from_file_location(name, unpacked / "__init__.py",
                                                  submodule_search_locations=[str(unpacked)])
    sys.modules[name] = pack = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(pack)
        nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
        assert {node.GET_NODE_INFO_V1()["name"] for node in nodes} == {path.name for path in
                                                                       (unpacked / "js" / "docs").iterdir()}
        assert (unpacked / pack.WEB_DIRECTORY / "extension.js").is_file()
        miniature = sys.modules[f"{name}.nodes.bridge.files.miniature"]
        assert all((miniature.FOLDER / path).is_file() for path in miniature.FILES.values())
    finally:
        for module in [module for module in sys.modules if module.split(".")[0] == name]:
            del sys.modules[module]


def dev(folder: Path, *words: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, folder / "tools" / "dev.py", *words], cwd=folder.parent,
                          capture_output=True, text=True)


def test_an_unpacked_archive_quantizes(unpacked, comfyui_path):
    source = unpacked / "assets/miniature/diffusion_models/qwen_image_2_miniature_bf16.safetensors"
    made = unpacked.parent / "small.safetensors"
    done = dev(unpacked, "--comfyui", comfyui_path, "quantize", source, "--format", "int8", "--out", made)
    assert (done.returncode, done.stderr) == (0, "")
    with safe_open(made, "pt") as file:
        assert "I8" in {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118, it is no dict


@pytest.mark.parametrize("words", [["test", "-q"], ["bench", "startup"], ["make", "workflows"]], ids=" ".join)
def test_an_unpacked_archive_says_which_commands_need_the_repository(unpacked, words):
    done = dev(unpacked, *words)
    assert done.returncode == 1 and done.stderr.startswith(f"Error: {words[0]} needs the pack's repository")
    assert done.stderr.count("\n") == 1
    for command in ("--help", f"{words[0]} --help"):
        assert dev(unpacked, *command.split()).returncode == 0


def test_the_commands_that_need_the_repository_are_those_whose_folder_is_left_out(archive):
    for command, folder in repository.FOLDERS.items():
        assert (ROOT / folder).is_dir() and not [path for path in archive if path.startswith(folder + "/")]
        repository.require(command)
        with pytest.raises(UserError, match="git clone"):
            repository.require(command, ROOT / "model")


def test_the_project_is_what_the_registry_takes():
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert re.fullmatch(r"[a-z](?:[a-z0-9]|[-_](?=[a-z0-9])){0,98}", project["name"])
    assert "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (ROOT / project["license"]["file"]).is_file() and (ROOT / project["readme"]).is_file()
    assert comfy["DisplayName"] and comfy["requires-comfyui"] and {"PublisherId", "Icon"} <= set(comfy)


def test_requirements_agree_and_leave_comfyui_s_packages_alone():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = [line for line in lines if line and not line.startswith("#")]
    assert required == PROJECT["project"]["dependencies"]
    assert not {re.split(r"[^\w-]", line)[0] for line in required} & {"torch", "numpy", "transformers", "safetensors"}
