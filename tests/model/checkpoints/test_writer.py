"""The safetensors writer: what the safetensors package reads back, and what is left where writing is cut short."""
import os
import resource

import pytest
import torch
from safetensors import safe_open

from qwen_image_2.atomic import WriteError
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
        with pytest.raises(WriteError, match=r"big.safetensors could not be written: .*Nothing is left of it"):
            writer.write(tmp_path / "big.safetensors", ["a"], [("a", torch.zeros(1_000_000))], {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
