"""Starting the server: what goes wrong is said, and nothing stays behind."""

import json
import socket
import tempfile

import pytest

from qwen_image_2.tools.comfyui import server
from qwen_image_2.tools.comfyui.server import Server, ServerError


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder in which the server makes its own; it must be empty afterwards."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def fake_comfyui(folder, program):
    folder.mkdir()
    (folder / "main.py").write_text(program)
    return folder


def test_early_death_is_reported_with_the_end_of_the_log(tmp_path, temporary):
    comfyui = fake_comfyui(tmp_path / "ComfyUI", "raise SystemExit('\\x1b[31mNo module named torch\\x1b[0m')")
    with pytest.raises(ServerError, match=r"ended with exit code 1.\n  \| The end of its log:\n  \| No module named"):
        Server(comfyui, cpu=True).__enter__()


def test_silent_server_is_given_up_and_stopped(tmp_path, temporary):
    comfyui = fake_comfyui(tmp_path / "ComfyUI", "import time; time.sleep(60)")
    silent = Server(comfyui, cpu=True, time_limit=0.5)
    with pytest.raises(ServerError, match="did not answer within"):
        silent.__enter__()
    assert silent.process.returncode is not None


def test_input_folder_begins_with_the_example_and_keeps_what_is_there(tmp_path, temporary):
    comfyui = fake_comfyui(tmp_path / "ComfyUI", "raise SystemExit(1)")
    (comfyui / "input").mkdir()
    (comfyui / "input" / "example.png").write_bytes(b"ComfyUI's")
    (comfyui / "input" / "private.png").write_bytes(b"a person's")
    for expected in (b"ComfyUI's", b"my own"):
        with pytest.raises(ServerError):
            Server(comfyui, input=tmp_path / "kept", cpu=True).__enter__()
        assert [(file.name, file.read_bytes()) for file in (tmp_path / "kept").iterdir()] == [("example.png", expected)]
        (tmp_path / "kept" / "example.png").write_bytes(b"my own")


def test_port_in_use_is_refused_before_anything_starts(tmp_path, temporary):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"Port {port} cannot be used .*choose another with --port"):
            Server(tmp_path, port=port).__enter__()


def test_import_failure_of_the_pack_is_found_in_the_log():
    log = """[INFO] starting
Traceback (most recent call last):
  File "/opt/other_pack/__init__.py", line 1, in <module>
ModuleNotFoundError: No module named 'other'
Traceback (most recent call last):
  File "/tmp/x/custom_nodes/qwen-image-2/nodes/__init__.py", line 3, in <module>
    import einopss
ModuleNotFoundError: No module named 'einopss'

[WARNING] Error while calling comfy_entrypoint in /tmp/x/custom_nodes/qwen-image-2: No module named 'einopss'
"""
    reason = server.pack_failure(log)
    assert reason.endswith("ModuleNotFoundError: No module named 'einopss'") and "'other'" not in reason
    without_traceback = log.splitlines()[-1]
    assert server.pack_failure(without_traceback) == without_traceback


def test_model_folders_are_those_of_the_given_folder(tmp_path):
    config = json.loads(server.model_paths(tmp_path))["qwen-image-2"]
    assert config["base_path"] == str(tmp_path)
    assert {"diffusion_models", "unet", "text_encoders", "vae", "loras"} < set(config)
    assert json.loads(server.model_paths(None)) == {}
