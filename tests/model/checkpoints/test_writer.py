"""The safetensors writer: what the safetensors package reads back, and what is left where writing is cut short."""
import json
import os
import resource
from pathlib import Path

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


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    writer.write(path, [writer.Entry.of(*each) for each in tensors.items()], tensors.items(), metadata)


def entry(name: str, *shape: int, dtype=torch.float32) -> writer.Entry:
    return writer.Entry(name, dtype, shape)


def places(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor begins and ends, counted from the file's first byte, in the order of the header."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + length])
    del header["__metadata__"]
    return {name: tuple(8 + length + place for place in one["data_offsets"]) for name, one in header.items()}


def test_what_is_written_is_what_is_read(tmp_path):
    path = tmp_path / "below" / "file.safetensors"
    write(path, TENSORS, {"format": "pt", "config": '{"a": 1}'})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "config": '{"a": 1}'}
        assert set(file.keys()) == set(TENSORS)
        for name, value in TENSORS.items():
            found = file.get_tensor(name)
            assert found.dtype == value.dtype
            assert torch.equal(found.view(torch.uint8) if found.ndim else found, value.view(torch.uint8)
                               if value.ndim else value)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_order_in_which_tensors_come_does_not_matter(tmp_path):
    """One that is computed comes when it is ready: nothing has to be kept for its turn."""
    write(tmp_path / "one", TENSORS, {})
    entries = [writer.Entry.of(*each) for each in TENSORS.items()]
    writer.write(tmp_path / "other", entries, reversed(TENSORS.items()), {})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("padding", range(0, 64, 7))
def test_every_tensor_lies_where_a_kernel_can_read_it(tmp_path, padding):
    """Whatever the header's length is, and though texts of odd length come before the weights."""
    tensors = {"a.comfy_quant": torch.zeros(67, dtype=torch.uint8), "a.weight": torch.zeros(16, 64, dtype=torch.int8),
               "a.weight_scale": torch.zeros(16, 1), "b.scale": torch.zeros(()), "b.bias": torch.zeros(3).half(),
               "b.shift": torch.zeros(12), "c.weight": torch.zeros(32, 2).bfloat16(), **TENSORS}
    write(tmp_path / "file", tensors, {"padding": "x" * padding})
    found = places(tmp_path / "file")
    ends = [0, *(end for _, end in found.values())]
    assert [begin for begin, _ in found.values()] == [ends[1] - tensors[next(iter(found))].nbytes, *ends[1:-1]]
    assert ends[-1] == (tmp_path / "file").stat().st_size
    for name, (begin, end) in found.items():
        assert begin % tensors[name].element_size() == 0, name
        assert begin % 64 == 0 or (end - begin) % 64, name
    assert found["b.shift"][0] % 16 == 0  # as far as its own 48 bytes go


def test_an_error_on_the_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"old")

    def tensors():
        yield "a", torch.zeros(4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write(path, [entry("a", 4), entry("b", 4)], tensors(), {})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("entries, tensors, words", [
    ([], [("a", torch.zeros(1))], "the tensor a was not announced"),
    ([entry("a", 1)], [("a", torch.zeros(1))] * 2, "the tensor a was not announced, or came twice"),
    ([entry("a", 1)] * 2, [("a", torch.zeros(1))], "the tensor a was announced twice"),
    ([entry("a", 1), entry("b", 2)], [("a", torch.zeros(1))], "these tensors were announced and did not come: b$"),
    ([entry("a", 2)], [("a", torch.zeros(1, 2))], r"shape=\(1, 2\)\) was announced as .*shape=\(2,\)\)"),
    ([entry("a", 2)], [("a", torch.zeros(2).int())], "torch.int32.* was announced as .*torch.float32"),
])
def test_what_comes_otherwise_than_announced_is_a_mistake(tmp_path, entries, tensors, words):
    with pytest.raises(AssertionError, match=words):
        writer.write(tmp_path / "f", entries, tensors, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="limits of a process are POSIX")
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the disk: writing fails in the same place."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"big.safetensors could not be written: .*Nothing is left of it"):
            write(tmp_path / "big.safetensors", {"a": torch.zeros(1_000_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
