"""The miniature's text encoder is drawn once and kept: its file's name must say which values are in it."""
import errno
import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

# Version -> digest of what its file holds. A version that users have is never given another digest: when the drawn
# values change on purpose, add a line here and put the new version into nodes/bridge/files/miniature.py.
VERSIONS = {"d36795a42cb7344d": "6f06a019416031272e8fae1b38e0eb8d8b0e760b9cad356ed013048a8e7d02a8"}


@pytest.fixture
def miniature(comfyui, tmp_path, monkeypatch):
    import folder_paths

    from qwen_image_2.nodes.bridge.files import miniature
    monkeypatch.setattr(folder_paths, "get_system_user_directory", lambda name: str(tmp_path / name))
    return miniature


def digest(path: Path) -> str:
    """Of metadata, names, shapes and values, whatever their order in the file."""
    found = hashlib.sha256()
    with safe_open(path, "pt") as file:
        found.update(repr(sorted(file.metadata().items())).encode())
        for name in sorted(file.keys()):
            value = file.get_tensor(name)
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.view(torch.int16).numpy().astype("<i2").tobytes())
    return found.hexdigest()


def test_the_version_stands_for_the_drawn_values(miniature):
    path = miniature.text_encoder()
    assert path.name == f"miniature_text_encoder_{miniature.TEXT_ENCODER_VERSION}.safetensors"
    assert digest(path) == VERSIONS[miniature.TEXT_ENCODER_VERSION], "other values are drawn: give another version"


@pytest.mark.parametrize("change", [{"SEED": 3}, {"GAIN": 0.25}])
def test_other_values_have_another_digest(miniature, monkeypatch, change):
    for name, value in change.items():
        monkeypatch.setattr(miniature, name, value)
    assert digest(miniature.text_encoder()) not in VERSIONS.values()


def test_the_file_is_drawn_once_and_no_source_text_names_it(miniature, monkeypatch):
    path = miniature.text_encoder()

    def refuse(*_, **__):
        raise AssertionError("a file that is there needs neither a source nor another drawing")

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(miniature, "_write", refuse)
    assert miniature.text_encoder() == path


def test_a_full_disk_is_said_with_the_folder_and_leaves_nothing(miniature, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"could not be written to .*qwen_image_2: .*No space left.*Make room there"):
        miniature.text_encoder()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_is_said_of_its_sizes(miniature):
    assert miniature.ABOUT.endswith("only simple posters of 128 x 128, 160 x 96 or 96 x 160 pixels, for trying "
                                    "workflows.")
    assert miniature.size_note("miniature", 64, 32).startswith(
        "The miniature was trained only at 128 x 128, 160 x 96 and 96 x 160 pixels; 64 x 32 will not work.")
    assert miniature.size_note("miniature", 96, 160) is None
    assert miniature.size_note("other.safetensors", 64, 32) is None
