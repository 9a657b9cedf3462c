"""Seeds behind the pictures of an edit, read from files that anyone may have made."""
import os

import pytest
from PIL import Image, PngImagePlugin

GRAPH = {"1": {"class_type": "LoadImage", "inputs": {"image": "reference.png"}},
         "2": {"class_type": "QwenImage2EditEncode", "inputs": {"images.image_1": ["1", 0]}},
         "3": {"class_type": "QwenImage2Sampler", "inputs": {"positive": ["2", 0], "seed": 7}}}


def note(tmp_path, monkeypatch, text: str) -> str | None:
    import folder_paths

    from qwen_image_2.nodes import seeds
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "reference.png", pnginfo=info)
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    return seeds.seed_note(GRAPH, "3", "positive", 7)


def test_a_picture_of_this_seed_is_pointed_out(comfyui, tmp_path, monkeypatch):
    assert "made with this very seed (7)" in note(tmp_path, monkeypatch, '{"9": {"inputs": {"noise_seed": 7}}}')


@pytest.mark.parametrize("text", ['{"a":' * 100_000, "[" * 100_000, "{", "[1]", '{"9": {"inputs": [7]}}', "9" * 5000,
                                  '{"9": {"class_type": [1], "inputs": {}}}'])
def test_what_is_no_graph_says_nothing(comfyui, tmp_path, monkeypatch, text):
    assert note(tmp_path, monkeypatch, text) is None


def test_a_pipe_is_not_waited_for(comfyui, tmp_path, monkeypatch):
    import folder_paths

    from qwen_image_2.nodes import seeds
    os.mkfifo(tmp_path / "reference.png")
    reading = os.open(tmp_path / "reference.png", os.O_RDWR)  # or the test would wait as well, if it failed
    os.write(reading, b"no picture")
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    opened = []
    monkeypatch.setattr(seeds.Image, "open", opened.append)
    assert seeds.seed_note(GRAPH, "3", "positive", 7) is None and not opened
    os.close(reading)
