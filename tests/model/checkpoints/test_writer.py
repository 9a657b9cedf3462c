"""The safetensors writer: what the safetensors package reads back, and what is left where writing is cut short."""
import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from qwen_image_2.model.checkpoints import writer

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b.weight": torch.randn(5, 7).bfloat16(),
    "b.scale": torch.tensor(0.25),
    "c.weight": torch.randint(-128, 127, (4, 3), dtype=torch.int8),
    "c.comfy_quant": torch.tensor(list(b"{}"), dtype=torch.uint8),
    "d.weight": torch.randn(8, 8).to(torch.float8_e4m3fn),
    "quoted \"name\" é.weight": torch.zeros(0, 2),
}


def test_what_is_written_is_what_is_read(tmp_path):
    path = tmp_path / "below" / "file.safetensors"
    writer.write(path, TENSORS, TENSORS.items(), {"format": "pt", "config": '{"a": 1}'})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "config": '{"a": 1}'}
        assert set(file.keys()) == set(TENSORS)
        for name, value in TENSORS.items():
            found = file.get_tensor(name)
            assert found.dtype == value.dtype
            assert torch.equal(found.view(torch.uint8) if found.ndim else found, value.view(torch.uint8)
                               if value.ndim else value)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_an_error_on_the_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"old")

    def tensors():
        yield "a", torch.zeros(4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write(path, ["a", "b"], tensors(), {})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_was_not_announced_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="names were said to need"):
        writer.write(tmp_path / "f", [], [("n" * 1000, torch.zeros(1))], {})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="limits of a process are POSIX")
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the disk: writing fails in the same place."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(writer.WriteError, match=r"big.safetensors could not be written: .*Nothing is left of it"):
            writer.write(tmp_path / "big.safetensors", ["a"], [("a", torch.zeros(1_000_000))], {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_the_disk_is_said_to_be_full_where_it_is(tmp_path, monkeypatch):
    """Some systems only notice when the file is flushed."""
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(writer.WriteError, match=r"^a.safetensors could not be written: the disk is full. Nothing is"):
        writer.write(tmp_path / "a.safetensors", ["a"], [("a", torch.zeros(10))], {})
    assert not list(tmp_path.iterdir())


def test_an_error_without_a_number_is_said_in_its_own_words(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError("the share is gone")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(writer.WriteError, match=r"^a.safetensors could not be written: the share is gone. Nothing is"):
        writer.write(tmp_path / "a.safetensors", ["a"], [("a", torch.zeros(10))], {})


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[1])
from pack import load_pack
load_pack()
from pathlib import Path
from qwen_image_2.model.checkpoints import writer

def tensors():
    yield "a", torch.ones(100)
    os.kill(os.getpid(), signal.SIGKILL)

writer.write(Path(sys.argv[2]), ["a", "b"], tensors(), {})
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_a_kill_leaves_no_broken_file(tmp_path):
    path = tmp_path / "file.safetensors"
    tools = Path(__file__).resolve().parents[3] / "tools"
    assert subprocess.run([sys.executable, "-c", KILLED, tools, path], timeout=120).returncode < 0
    assert not list(tmp_path.glob("*.safetensors"))
