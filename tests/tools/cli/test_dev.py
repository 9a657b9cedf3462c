"""tools/dev.py as a person starts it: exit codes, sentences, and nothing left behind."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy
import psutil
import pytest
from PIL import Image

from qwen_image_2.tools.cli import benchmarks, command_line, commands
from qwen_image_2.tools.cli.errors import UserError
from qwen_image_2.tools.comfyui.client import WorkflowError
from qwen_image_2.tools.comfyui.server import free_port
from qwen_image_2.tools.miniature import judge, scenes
from qwen_image_2.tools.miniature.scenes import Scene, Shape, Word
from qwen_image_2.tools.pack import ROOT

EDIT = ROOT / "workflows" / "api" / "edit_instruct.json"
GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "blue"}},
}


@pytest.fixture
def graph_file(tmp_path):
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(GRAPH))
    return str(file)


@pytest.fixture
def dev(comfyui_path, tmp_path):
    """Start dev.py in an empty folder, with an empty cache."""
    settings = {**os.environ, "COMFYUI_PATH": str(comfyui_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def start(*arguments):
        (tmp_path / "here").mkdir(exist_ok=True)
        command = [sys.executable, str(command_line.DEV), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=tmp_path / "here", env=settings, stdout=pipe, stderr=pipe, text=True)

    return start


def finish(process):
    printed, errors = process.communicate(timeout=120)
    return process.returncode, printed, errors


@pytest.mark.server
def test_demo_draws_a_poster_and_leaves_nothing_else(dev, tmp_path):
    code, printed, errors = finish(dev("demo", "--out", "new/poster.png"))
    assert (code, errors) == (0, "")
    assert [path.name for path in (tmp_path / "here" / "new").iterdir()] == ["poster.png"]
    assert "The picture is new/poster.png." in printed
    picture = numpy.asarray(Image.open(tmp_path / "here" / "new" / "poster.png").convert("RGBA"))
    assert judge.look(picture) == Scene("white", (Shape("triangle", "blue", "large", "centre", "top"),),
                                        Word("SALE", "red", "centre"), (96, 160))
    for stage in ("set-up", "server start", "load", "encode", "sample", "decode", "save", "total"):
        assert f"\n  {stage} " in printed
    assert "built-in miniature" in printed and "not Qwen-Image" in printed


@pytest.mark.server
def test_an_edit_of_one_s_own_picture(dev, tmp_path):
    """By a path from where the person is; a second run puts its picture beside the first."""
    scene = Scene("red", (Shape("circle", "yellow", "large", "centre", "centre"),))
    (tmp_path / "here").mkdir()
    scenes.draw(scene).save(tmp_path / "here" / "mine.png")
    change = ["--set", "LoadImage.image=mine.png", "--set", "Encode Edit.prompt=Change the background to green."]
    for count in (1, 2):
        code, printed, errors = finish(dev("run", str(EDIT), *change, "--set", "Sampler.seed=3", "--out", "out"))
        assert (code, errors) == (0, "")
        saved = sorted((tmp_path / "here" / "out").iterdir())
        assert len(saved) == count and f"Saved {saved[0].relative_to(tmp_path / 'here')}"[:-4] in printed
    for path in saved:
        assert judge.look(numpy.asarray(Image.open(path).convert("RGBA"))) == replace(scene, background="green")


@pytest.mark.server
def test_an_edit_begins_with_the_example(dev, tmp_path, comfyui_path):
    code, _, errors = finish(dev("run", str(EDIT), "--set", "Sampler.preset=Custom", "--set", "Sampler.steps=2"))
    assert (code, errors) == (0, "")
    (saved,) = (tmp_path / "here").iterdir()
    picture, example = Image.open(saved), Image.open(comfyui_path / "input" / "example.png")
    assert picture.width / picture.height == pytest.approx(example.width / example.height, rel=0.25)
    assert numpy.asarray(picture).std() > 5


@pytest.mark.server
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_stops_run_and_its_server(dev, tmp_path):
    process = dev("run", str(EDIT), "--set", "Sampler.preset=Custom", "--set", "Sampler.steps=1000")
    while "Sampler" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    code, _, errors = finish(process)
    assert (code, errors.strip()) == (130, "Stopped.")
    assert children and psutil.wait_procs(children, timeout=5)[1] == []
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("verbose", [False, True])
def test_failing_node_speaks_for_itself(verbose, graph_file, comfyui_path, tmp_path, monkeypatch, capsys):
    def fail(server, graph):
        raise WorkflowError("the VAE is missing.", "2", "SaveImage", "the server's traceback")

    server = SimpleNamespace(url="http://127.0.0.1:9", input=tmp_path)
    monkeypatch.setattr(commands, "_server", lambda place, **settings: contextlib.nullcontext(server))
    monkeypatch.setattr(commands.pictures, "provide", lambda client, folder, graph, changed: graph)
    monkeypatch.setattr(commands, "_follow", fail)
    words = ["run", graph_file, "--out", str(tmp_path), "--comfyui", str(comfyui_path), *["--verbose"][:verbose]]
    assert command_line.main(words) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("Error: Node 2 (SaveImage): the VAE is missing.\n")
    assert ("the server's traceback" in errors) == verbose


@pytest.mark.server
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_stops_serve_and_its_server(dev, tmp_path):
    (tmp_path / "models" / "vae").mkdir(parents=True)
    process = dev("serve", "--port", str(free_port()), "--models", str(tmp_path / "models"))
    while "is at http" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    code, _, errors = finish(process)
    assert (code, errors.strip()) == (130, "Stopped.")
    assert psutil.wait_procs(children, timeout=5)[1] == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_of_test_reaches_pytest(dev, tmp_path):
    slow = tmp_path / "test_slow.py"
    slow.write_text("import time\ndef test_slow():\n    print('begun', flush=True)\n    time.sleep(60)\n")
    process = dev("test", "-s", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tmp_path), str(slow))
    while "begun" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert time.monotonic() - begin < 10


def test_test_passes_on_arguments_and_exit_code(dev, tmp_path):
    (tmp_path / "test_two.py").write_text("def test_good(): pass\ndef test_bad(): assert False\n")
    common = ("-c", os.devnull, "--rootdir", str(tmp_path), "-p", "no:cacheprovider", str(tmp_path / "test_two.py"))
    assert finish(dev("test", "-k", "good", *common))[0] == 0
    code, printed, _ = finish(dev("test", "--verbose", *common))
    assert code == 1
    assert "test_two.py::test_good PASSED" in printed


@pytest.mark.parametrize("words", [[], ["draw"], ["run"], ["run", "a.json", "--bogus"], ["serve", "--port", "70000"]])
def test_wrong_arguments_exit_with_2(words):
    with pytest.raises(SystemExit) as exit:
        command_line.main(words)
    assert exit.value.code == 2


@pytest.mark.parametrize("words, sentence", [
    (["demo", "--out", "poster.jpg"], "the picture is a PNG file"),
    (["run", "none.json"], "There is no file none.json."),
    (["run", "{graph}", "--set", "7.x=1"], "there is no node '7'"),
    (["run", "{edit}", "--set", "LoadImage.image=none.png"], "there is no picture file {folder}/none.png"),
    (["run", "{edit}", "--set", "LoadImage.image={folder}"], "there is no picture file {folder}"),
    (["run", "{graph}", "--out", "{graph}"], "Nothing can be written into"),
    (["bench", "bootstrap"], "There is no benchmark 'bootstrap'; there are: alignment,"),
    (["make", "workflows", "poster"], "make workflows takes no further arguments"),
    (["make", "thumbnails", "none", "--comfyui", "{comfyui}"], "There is no workflow none; there are: "),
    (["run", "{graph}", "--comfyui", "{folder}"], "is not a ComfyUI folder"),
    (["--comfyui", "{folder}", "run", "{graph}"], "is not a ComfyUI folder"),
    (["run", "{graph}", "--models", "{folder}"], "has none of the folders diffusion_models"),
])  # fmt: skip
def test_mistakes_are_one_sentence_before_any_work(words, sentence, graph_file, comfyui_path, tmp_path, monkeypatch,
                                                   capsys):
    monkeypatch.chdir(tmp_path)
    places = {"graph": graph_file, "edit": EDIT, "folder": tmp_path, "comfyui": comfyui_path}
    assert command_line.main([word.format(**places) for word in words]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("Error: ") and sentence.format(**places) in errors and errors.count("\n") == 1


def test_only_benchmarks_are_benchmarks(tmp_path):
    (tmp_path / "speed.py").write_text('"""How fast?\n\n    python tools/dev.py bench speed [--save]\n"""\n')
    (tmp_path / "part.py").write_text('"""A part of it."""\n')
    assert benchmarks.present(tmp_path) == {"speed": "How fast?"}
    assert benchmarks.chosen(["speed", "--save"], tmp_path) == (tmp_path / "speed.py", ["--save"])
    for name in ("sped", "part"):
        with pytest.raises(UserError, match=f"no benchmark '{name}'; there are: speed"):
            benchmarks.chosen([name], tmp_path)
    program, rest = benchmarks.chosen(["--quick"])
    assert (program.name, rest) == ("foundation.py", ["--quick"]) and program.exists()


@pytest.mark.parametrize("arguments, parallel", [
    ([], True), (["-m", "not server"], True), (["-k", "lora", "-x"], True), (["-q"], True),
    (["tests/model"], False), (["tests/test_atomic.py::test_x"], False), (["-n", "0"], False), (["--pdb"], False)])
def test_tests_run_side_by_side_where_none_is_named(arguments, parallel):
    assert bool(commands.side_by_side(arguments)) == parallel


@pytest.mark.parametrize("arguments, needed", [
    ([], True), (["tests/browser"], True), (["-m", "browser"], True), (["tests/nodes"], False),
    (["-m", "not server and not browser"], False), (["tests/browser", "-m", "not browser"], True),
])  # fmt: skip
def test_a_browser_is_only_fetched_for_tests_that_may_need_one(arguments, needed):
    assert commands.may_need_browser(arguments) == needed


@pytest.mark.parametrize("words, there", [
    (["run", "--help"], "edit_masked"), (["bench", "--help"], "alignment"), (["make", "--help"], "[--large FOLDER]"),
    (["test", "--help"], "pytest arguments"), (["--help"], "demo"),
])  # fmt: skip
def test_help_needs_no_environment(words, there, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "dispatch", None)
    with pytest.raises(SystemExit) as exit:
        command_line.main(words)
    printed = capsys.readouterr().out
    assert exit.value.code == 0 and there in printed and "load_process" not in printed


@pytest.mark.parametrize("answer, removed", [("y\n", True), ("\n", False), ("", False)])
def test_clean_asks(answer, removed, tmp_path, monkeypatch):
    """Nothing is removed on Enter and on Ctrl-D, the end of the input."""
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    old = command_line.environment.environments_folder() / "old"
    old.mkdir(parents=True)
    assert command_line.main(["clean"]) == 0
    assert old.exists() != removed


def test_clean_keeps_the_environment_in_use(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = command_line.environment.environments_folder()
    present = root / command_line.environment.current_recipe().name
    for folder in (present, root / "old"):
        folder.mkdir(parents=True)
    assert command_line.main(["clean", "--yes"]) == 0
    assert present.exists() and not (root / "old").exists()
    assert "(in use)" in capsys.readouterr().out
