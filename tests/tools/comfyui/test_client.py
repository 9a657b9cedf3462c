"""The client against a real server, with core nodes only."""

import contextlib
import io
import json
import os
import re
import signal

import pytest
from PIL import Image, ImageColor

from qwen_image_2.tools.cli import command_line, commands
from qwen_image_2.tools.cli.errors import UserError
from qwen_image_2.tools.comfyui import client as client_module
from qwen_image_2.tools.comfyui import pictures
from qwen_image_2.tools.comfyui.client import Client, Refused, ServerGone, WorkflowError, WorkflowInterrupted
from qwen_image_2.tools.comfyui.server import EXAMPLE, Server

pytestmark = pytest.mark.server

SAVE = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "blue"}}


def image(width=64, **inputs):
    fields = {"width": width, "height": width, "batch_size": 1, "color": 255, **inputs}
    return {"class_type": "EmptyImage", "inputs": fields}


def slow(**inputs):
    """Takes seconds between its first node and its last."""
    scale = {"upscale_method": "lanczos", "width": 4096, "height": 4096, "crop": "disabled", "image": ["1", 0]}
    saved = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "slow"}}
    return {"1": image(2048, **inputs), "2": {"class_type": "ImageScale", "inputs": scale}, "3": saved}


@pytest.fixture(scope="module")
def running(comfyui_path):
    """Gives a running server: one for all tests, and the next one only where a test has ended it."""
    with contextlib.ExitStack() as stack:
        servers = []

        def server() -> Server:
            if not servers or servers[-1].process.poll() is not None:
                servers.append(stack.enter_context(Server(comfyui_path, cpu=True, require_pack=False)))
            return servers[-1]

        yield server


@pytest.fixture
def server(running):
    return running()


@pytest.fixture
def client(server):
    return Client(server.url)


def test_workflow_gives_its_files_times_and_events(client):
    events = []
    save = {**SAVE, "inputs": {"images": ["1", 0], "filename_prefix": "followed"}}
    result = client.run({"1": image(color=1), "9": save}, events.append, timeout=60)
    (file,) = result.files
    assert (file.node, file.filename, file.type) == ("9", "followed_00001_.png", "output")
    assert client.view(file).startswith(b"\x89PNG")
    assert set(result.seconds) == {"1", "9"}
    assert [event.kind for event in events if event.node == "9"] == ["started", "finished"]


def test_nodes_that_did_not_run_again_are_told(client):
    graph = {"1": image(color=2), "9": {**SAVE}}
    client.run(graph)
    assert set(client.run(graph).cached) == {"1", "9"}
    for _ in range(5):  # however soon the next one comes
        client.free()
        assert not client.run(graph).cached


def test_wait_gives_the_same_result_without_a_websocket(client):
    graph = {"1": image(color=3), "9": {**SAVE}}
    result = client.wait(client.queue(graph), timeout=60)
    assert [file.node for file in result.files] == ["9"]


def test_uploaded_picture_can_be_loaded(client, tmp_path):
    source = client.run({"1": image(color=4), "9": {**SAVE}}).files[0]
    (tmp_path / "picture.png").write_bytes(client.view(source))
    name = client.upload_image(tmp_path / "picture.png")
    load = {"class_type": "LoadImage", "inputs": {"image": name}}
    result = client.run({"1": load, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})
    assert [file.type for file in result.files] == ["temp"]


def test_pictures_by_path_are_all_kept_and_loaded(client, server, tmp_path):
    odd = "Käse.png" if os.name == "nt" else 'Käse "1"\n[2].png'
    colours = {"one/a.png": "red", "two/a.png": "blue", odd: "green"}
    graph = {}
    for number, (path, colour) in enumerate(colours.items()):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(tmp_path / path)
        graph[f"load{number}"] = {"class_type": "LoadImage", "inputs": {"image": str(tmp_path / path)}}
        saved = {"images": [f"load{number}", 0], "filename_prefix": f"own-{colour}"}
        graph[f"save{number}"] = {**SAVE, "inputs": saved}
    changed = [(node, "image") for node in graph if node.startswith("load")]
    result = client.run(pictures.provide(client, server.input, graph, changed), timeout=60)
    seen = {file.filename: Image.open(io.BytesIO(client.view(file))).getpixel((0, 0)) for file in result.files}
    assert seen == {f"own-{name}_00001_.png": ImageColor.getrgb(name) for name in colours.values()}


@pytest.mark.parametrize("value, own, sentence", [
    ("none.png", True, r"--set 1\.image: there is no picture file .*none\.png"),
    ("text.png", True, r"text\.png cannot be read as a picture: it is none, or damaged"),
    ("cut.png", True, r"cut\.png cannot be read as a picture: it is none, or damaged"),
    ("~no-such-user/none.png", True, r"there is no picture file .*~no-such-user/none\.png"),
    ("cat.png", False, r"1 \(LoadImage\) needs the picture cat\.png, .*--set 1\.image=FILE"),
])  # fmt: skip
def test_missing_and_damaged_pictures_are_refused(value, own, sentence, client, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": value}}}
    with pytest.raises(UserError, match=sentence):
        pictures.provide(client, server.input, graph, [("1", "image")] if own else [])


def test_the_example_and_links_are_left_alone(client, server):
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": EXAMPLE}},
             "2": {"class_type": "LoadImage", "inputs": {"image": ["1", 0]}},
             "3": {"class_type": "LoadImage", "inputs": {"image": "a.png [output]"}}, "4": image(), "5": {**SAVE}}
    assert pictures.provide(client, server.input, graph, [("1", "image")]) == graph


def test_wrong_input_is_refused_with_the_node(client):
    with pytest.raises(WorkflowError, match=r"Node 1 \(EmptyImage\): .*width") as error:
        client.run({"1": image("wide"), "9": {**SAVE}})
    assert (error.value.node_id, error.value.node_class) == ("1", "EmptyImage")


def test_one_wrong_output_among_good_ones_is_refused(client):
    with pytest.raises(WorkflowError, match=r"Node 2 "):
        client.run({"1": image(), "2": image("wide"), "8": {**SAVE}, "9": {**SAVE, "inputs": {"images": ["2", 0]}}})


@pytest.mark.parametrize("name", ["NoSuchNode", "No such node (a/b)"])
def test_unknown_node_class_is_refused(name, client, server):
    graph = {"1": {"class_type": name, "inputs": {"image": "a.png"}}, "9": {**SAVE}}
    assert pictures.provide(client, server.input, graph, []) == graph
    with pytest.raises(WorkflowError, match=re.escape(name)):
        client.run(graph)


@pytest.mark.parametrize("follow", ["run", "queue and wait"])
def test_failing_node_is_reported_with_its_message(client, follow):
    graph = {"9": {"class_type": "SaveImage", "inputs": {"images": 1, "filename_prefix": "x"}}}
    with pytest.raises(WorkflowError, match=r"Node 9 \(SaveImage\): TypeError: ") as error:
        client.run(graph) if follow == "run" else client.wait(client.queue(graph))
    assert "Traceback" in error.value.details or "File" in error.value.details


@pytest.mark.parametrize(("kind", "said"), [
    ("/srv/ComfyUI/custom_nodes/qwen-image-2.model.checkpoints.errors.CheckpointError", "The sentence."),
    ("/srv/my nodes/qwen-image-2.nodes.anywhere.NewRefusal", "The sentence."),
    ("C:\\ComfyUI\\custom_nodes\\other_pack.SomethingElse", "The sentence."), ("ValueError", "The sentence."),
    ("KeyError", "KeyError: The sentence."), ("torch.OutOfMemoryError", "torch.OutOfMemoryError: The sentence.")])
def test_a_refusal_is_the_sentence_alone_whatever_its_class(kind, said):
    record = client_module._Record({}, "id")
    with pytest.raises(WorkflowError) as error:
        record.take("execution_error", {"prompt_id": "id", "exception_message": "The sentence.\n", "traceback": [],
                                        "exception_type": kind, "node_id": "1", "node_type": "Any"})
    assert error.value.message == said


def test_interrupt_ends_the_workflow(client):
    with pytest.raises(WorkflowInterrupted):
        client.run(slow(color=5), lambda event: client.interrupt() if event.kind == "started" else None)


def test_too_slow_workflow_is_given_up(client):
    with pytest.raises(ServerGone, match=r"did not end within 0\.2 s"):
        client.run(slow(color=6), timeout=0.2)
    client.interrupt()


def test_missing_file_is_an_error_not_an_empty_picture(client):
    with pytest.raises(Refused, match="404"):
        client._request("/view?filename=none.png")


@pytest.fixture
def run_command(server, comfyui_path, tmp_path, monkeypatch):
    """dev.py's `run` in the running server; returns the exit code and the names in the output folder."""
    monkeypatch.setattr(commands, "_server", lambda place, **settings: contextlib.nullcontext(server))
    graph = {"1": image(batch_size=2), "2": {**SAVE}}
    (tmp_path / "graph.json").write_text(json.dumps(graph))

    def run(*words):
        common = ["--comfyui", str(comfyui_path), "--out", str(tmp_path / "pictures")]
        code = command_line.main(["run", str(tmp_path / "graph.json"), *common, *words])
        return code, sorted(path.name for path in (tmp_path / "pictures").iterdir())

    return run


def test_run_command_saves_all_pictures_and_overwrites_none(run_command, capsys):
    change = ("--set", "SaveImage.filename_prefix=red")
    names = ["red_00001_.png", "red_00002_.png"]
    assert run_command(*change) == (0, names)
    # The server has the result already and names the same two files again.
    assert run_command(*change) == (0, sorted([*names, "red_00001_-2.png", "red_00002_-2.png"]))
    assert "SaveImage" in capsys.readouterr().out


def test_run_command_leaves_previews_where_they_are(run_command, tmp_path):
    preview = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    previewed = {"1": image(color=8), "2": preview, "3": {**SAVE}}
    (tmp_path / "graph.json").write_text(json.dumps(previewed))
    assert run_command("--set", "SaveImage.filename_prefix=seen") == (0, ["seen_00001_.png"])


def test_run_command_fails_with_the_node_s_own_words(run_command, capsys):
    assert run_command("--set", "2.images=1") == (1, [])
    assert capsys.readouterr().err.startswith("Error: Node 2 (SaveImage): TypeError: ")


def test_absent_server_is_reported():
    with pytest.raises(ServerGone, match="cannot be reached"):
        Client("http://127.0.0.1:9").run({"1": image()})
    with pytest.raises(ServerGone, match="does not answer"):
        Client("http://127.0.0.1:9").object_info()


def test_death_of_the_server_ends_the_waiting(server, client):
    """Last in this file, because the others would wait for another server."""
    with pytest.raises(ServerGone):
        client.run(slow(color=7), lambda event: os.kill(server.process.pid, signal.SIGKILL), timeout=60)
    server.process.wait(60)  # or the next test may still find it alive, in any other order
