"""Files that were made to take long, or for ever: refused before anything is counted, allocated or waited for."""
import json
import os
import signal
import socket
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qwen_image_2.model.checkpoints import files, gguf
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.checkpoints.files import open_checkpoint

MEMORY = 50 * 1024**2  # bytes that a refusal may cost


@pytest.fixture(autouse=True)
def never_for_ever():
    """What waits for a pipe is woken up, and fails."""
    def wake(number, frame):
        raise AssertionError("It waited.")
    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_shard_of_99_999(tmp_path, monkeypatch):
    """A number in the name costs one reading of the folder, and a sentence of the usual length."""
    looked_up = []
    monkeypatch.setattr(Path, "is_file", lambda path, look=Path.is_file: looked_up.append(path) or look(path))
    path = tmp_path / "model-00002-of-99999.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    (tmp_path / "model-00003-of-99999.safetensors").mkdir()
    said = refused(path)
    assert "is incomplete: model-00001-of-99999.safetensors, model-00003-of-99999.safetensors, " in said
    assert "more is missing from its folder (99999 files belong together)" in said
    assert len(looked_up) < 5


def refused(path) -> str:
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as error:
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) <= 400
    return str(error.value)


# ---------------------------------------------------------------- GGUF

def sparse(tmp_path, header: bytes, size: int):
    """A file of so many bytes that takes none on the disk."""
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + header)
    os.truncate(path, size)
    return path


def array(kind: int, count: int) -> bytes:
    """One value of the metadata, a list, and no tensor."""
    return struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, kind, count)


@pytest.mark.parametrize(("header", "words"), [
    (struct.pack("<QQ", 2**40, 0), "declares 1,099,511,627,776 entries"),
    (struct.pack("<QQ", 0, 2**40), "declares 1,099,511,627,776 entries"),
    (struct.pack("<QQ", 2**64 - 1, 2**64 - 1), "declares 18,446,744,073,709,551,615 entries"),
    (struct.pack("<QQ", 100_000, 0), "declares 100,000 entries"),
    (array(8, 10**8), "declares arrays of 100,000,000 values"),
    (array(0, 10**8), "declares arrays of 100,000,000 values"),
    (array(12, 10**8), "declares arrays of 100,000,000 values"),
    (struct.pack("<QQQ", 0, 1, 65_536), "its header declares a text of 65,536 bytes"),
    (struct.pack("<QQQ", 1, 0, 65_536), "its header declares a text of 65,536 bytes"),
    (struct.pack("<QQQ", 0, 1, 1) + b"a" + struct.pack("<IQ", 8, 60 * 1024**2), "declares a text of 62,914,560 bytes"),
    (struct.pack("<QQQ", 1, 0, 1) + b"a" + struct.pack("<I", 100_000), "a tensor has 100000 axes"),
], ids=["tensors", "values", "both", "sane size", "texts", "bytes", "doubles", "a key", "a name", "a text", "axes"])
def test_counts_in_a_large_gguf_file_are_not_trusted(tmp_path, header, words):
    assert words in refused(sparse(tmp_path, header, 2 * 1024**3))


def test_counts_in_a_small_gguf_file_follow_its_size(tmp_path):
    assert "declares 1,000 entries" in refused(sparse(tmp_path, struct.pack("<QQ", 1000, 0), 500))


def test_lists_count_together(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf._Header, "MAX_ITEMS", 3)
    content = struct.pack("<QQ", 0, 2) + 2 * (struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 2) + b"xy")
    assert "declares arrays of 4 values" in refused(sparse(tmp_path, content, 500))


def test_texts_count_together(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf._Header, "MAX_BYTES", 2 * 1024**2)
    text = struct.pack("<Q", 1) + b"a" + struct.pack("<IQ", 8, 1024**2) + bytes(1024**2)
    content = struct.pack("<QQ", 0, 2) + 2 * text
    assert "its header is longer than 2 MiB" in refused(sparse(tmp_path, content, 10 * 1024**2))


# ---------------------------------------------------------------- safetensors

def written(path, header: dict):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    return path


def test_a_tensor_of_100_000_axes(tmp_path):
    path = written(tmp_path / "a.safetensors", {"a" * 1000: {"dtype": "F32", "shape": [1] * 100_000,
                                                             "data_offsets": [0, 4]},
                                                "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}})
    assert "has 100,000 axes; the maximum is 8" in refused(path)


def test_more_tensors_than_any_model_has(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_TENSORS", 2)
    save_file({name: torch.zeros(1) for name in "abc"}, tmp_path / "a.safetensors")
    assert "a.safetensors has 3 tensors; the maximum is 2." in refused(tmp_path / "a.safetensors")


def test_a_header_that_takes_long_to_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 90_000_000))
    os.truncate(path, 200_000_000)
    assert "a.safetensors is damaged: its header of 90,000,000 bytes exceeds " in refused(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_configuration_of_a_gigabyte(tmp_path, name):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 10**9)
    told = refused(tmp_path)
    assert f"{name} in {tmp_path.name} has 1,000,000,000 bytes; a configuration or an index has at most" in told


def test_a_name_that_asks_for_a_hundred_thousand_files(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a-00001-of-99999.safetensors")
    for path in (tmp_path, tmp_path / "a-00001-of-99999.safetensors"):
        assert f"{path.name} is incomplete: " in refused(path)


# ---------------------------------------------------------------- what is no file

def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listening:
        before = os.getcwd()
        os.chdir(path.parent)  # a socket's path may have some hundred characters only
        listening.bind(path.name)
        os.chdir(before)


def make_device(path):
    path.symlink_to("/dev/zero")


ODD = pytest.mark.parametrize("make", [make_pipe, make_socket, make_device])


@ODD
@pytest.mark.parametrize("name", ["a.safetensors", "a.gguf", "a-00001-of-00001.safetensors"])
def test_only_regular_files_are_opened(tmp_path, make, name):
    make(tmp_path / name)
    assert name in refused(tmp_path / name)


@ODD
def test_only_regular_files_of_a_folder_count(tmp_path, make):
    for name in ("a.safetensors", "config.json", "model.safetensors.index.json"):
        make(tmp_path / name)
    assert "contains no .safetensors file" in refused(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors")
    assert list(open_checkpoint(tmp_path).tensors) == ["a"]
    assert list(open_checkpoint(tmp_path / "b.safetensors").tensors) == ["a"]


@ODD
def test_a_file_that_an_index_names_is_regular(tmp_path, make):
    make(tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}))
    assert "a.safetensors is missing" in refused(tmp_path)
