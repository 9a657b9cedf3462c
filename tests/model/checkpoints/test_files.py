"""Opening files and folders: what is missing or damaged is said in one sentence."""
import builtins
import errno
import io
import json
import os
from pathlib import Path

import gguf
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.checkpoints.files import open_checkpoint


def write(path, **tensors):
    save_file(tensors or {"a": torch.ones(64, 64)}, path)
    return path


@pytest.mark.parametrize("keep", [0, 5, 40, 200])
def test_truncated_file(tmp_path, keep):
    path = write(tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"model.safetensors \({keep} bytes\) is truncated or damaged"):
        open_checkpoint(path)


def test_corrupt_header(tmp_path):
    path = write(tmp_path / "model.safetensors")
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        open_checkpoint(path)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 14230000000\n"


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
@pytest.mark.parametrize(("content", "words"), [
    (POINTER, " is a Git LFS pointer, not the file itself. Run  git lfs pull "),
    ("<!DOCTYPE html><html>Access denied</html>" * 20, " is a web page or an error .* starts with '<!DOCTYPE html>"),
    ("\ufeff\r\n<html lang=zh><body>找不到</body></html>", " is a web page or an error message"),
    ("Entry not found", " is a web page or an error .* starts with 'Entry not found'. Download it again"),
    ('{"error": "Repository not found"}', " is a web page or an error message"),
], ids=["Git LFS", "HTML", "HTML with a mark", "text", "JSON"])
def test_text_instead_of_a_file(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_text(content, "utf-8")
    with pytest.raises(CheckpointError, match=f"^{name}{words}"):
        open_checkpoint(path)


def test_other_formats(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="model.ckpt is neither a .safetensors nor a .gguf file"):
        open_checkpoint(path)


def test_gone(tmp_path):
    with pytest.raises(CheckpointError, match="gone.safetensors does not exist"):
        open_checkpoint(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "config.json"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch, name, number):
    """As a lock of Windows, a failing disk or a network share that is gone have it."""
    path = write(tmp_path / ("model.gguf" if "gguf" in name else "model.safetensors"))
    (tmp_path / "config.json").write_text("{}")
    real = io.open

    def locked(file, *args, **kwargs):
        if str(file).endswith(name):
            raise OSError(number, os.strerror(number), str(file))
        return real(file, *args, **kwargs)

    for module in (io, builtins):  # for pathlib and for numpy
        monkeypatch.setattr(module, "open", locked)
    with pytest.raises(CheckpointError, match=rf"^{name} cannot be read \({os.strerror(number)}\)\. Check its perm"):
        open_checkpoint(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows asks for rights to make links")
def test_a_link_to_itself(tmp_path):
    """One that the system itself refuses to open."""
    for name in ("model.safetensors", "model.gguf"):
        (tmp_path / name).symlink_to(tmp_path / name)
        with pytest.raises(CheckpointError, match=rf"^{name} cannot be read \({os.strerror(errno.ELOOP)}\)"):
            open_checkpoint(tmp_path / name)


def shards(folder, index: bool):
    names = [f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)]
    for number, name in enumerate(names):
        write(folder / name, **{f"tensor{number}": torch.full((2, 2), float(number))})
    if index:
        weight_map = {f"tensor{number}": name for number, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return names


@pytest.mark.parametrize("index", [True, False], ids=["with index", "without index"])
def test_shards_are_one_checkpoint(tmp_path, index):
    names = shards(tmp_path, index)
    (tmp_path / "config.json").write_text('{"eps": 1e-5}')
    for path in (tmp_path, tmp_path / names[1]):
        files = open_checkpoint(path)
        assert sorted(files.tensors) == ["tensor0", "tensor1", "tensor2"]
        assert files.read("tensor2").tolist() == [[2, 2], [2, 2]]
        assert files.config == {"eps": 1e-5}


def test_config_beside_a_lone_file_is_read(tmp_path):
    path = write(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"eps": 1e-5}')
    assert open_checkpoint(path).config == {"eps": 1e-5}
    write(tmp_path / "another.safetensors")  # whose configuration is it now?
    assert open_checkpoint(path).config == {}


@pytest.mark.parametrize("index", [True, False], ids=["with index", "without index"])
def test_missing_shard_is_named(tmp_path, index):
    names = shards(tmp_path, index)
    (tmp_path / names[1]).unlink()
    with pytest.raises(CheckpointError, match=f"incomplete: {names[1]} is missing from its folder \\(3 files"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}'])
def test_an_index_of_another_form(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="model.safetensors.index.json in .* is not a valid tensor index"):
        open_checkpoint(tmp_path)


def test_two_indexes_are_two_checkpoints(tmp_path):
    for name in ("model.fp16", "model"):
        (tmp_path / f"{name}.safetensors.index.json").write_text('{"weight_map": {"a": "x"}}')
    with pytest.raises(CheckpointError, match="contains several checkpoints"):
        open_checkpoint(tmp_path)


def test_index_cannot_reach_outside_its_folder(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write(tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="secret.safetensors is missing from its folder"):
        open_checkpoint(folder)


def test_folders_that_hold_no_single_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="contains no .safetensors file"):
        open_checkpoint(tmp_path)
    write(tmp_path / "a.safetensors")
    write(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="contains 2 .safetensors files .* but no index"):
        open_checkpoint(tmp_path)


def test_broken_json(tmp_path):
    write(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="The file config.json of .* is not valid JSON"):
        open_checkpoint(tmp_path)


def test_tensors_are_mapped_not_copied(tmp_path):
    path = write(tmp_path / "model.safetensors", a=torch.zeros(1024, 1024))
    files = open_checkpoint(path)
    before = _anonymous_memory()
    tensors = [files.read("a") for _ in range(64)]  # 256 MB if they were copies
    assert sum(tensor.sum() for tensor in tensors) == 0
    assert _anonymous_memory() - before < 32 * 2**20


def write_displaced(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A valid file whose tensors lie at odd addresses: nothing in the format asks for others."""
    header, values = {}, b"\0"
    header["odd"] = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    for name, tensor in tensors.items():
        begin, values = len(values), values + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": {torch.float32: "F32", torch.bfloat16: "BF16"}[tensor.dtype],
                        "shape": list(tensor.shape), "data_offsets": [begin, len(values)]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + values)
    return path


def is_aligned(tensor: torch.Tensor) -> bool:
    return tensor.data_ptr() % tensor.element_size() == 0


def test_tensors_at_odd_addresses_are_copied_once(tmp_path):
    wanted = {"a": torch.randn(6, 5), "b": torch.randn(7).bfloat16(), "c": torch.tensor(0.5)}
    path = write_displaced(tmp_path / "odd.safetensors", wanted)
    with safe_open(path, "pt") as file:
        assert not any(is_aligned(file.get_tensor(name)) for name in wanted)
    files = open_checkpoint(path)
    with files.mapped() as mapped:
        for name, value in wanted.items():
            for found in (files.read(name), mapped(name)):
                assert is_aligned(found) and found.dtype == value.dtype and torch.equal(found, value)
        assert mapped("a").data_ptr() == mapped("a").data_ptr()
        assert mapped("odd").tolist() == [0]


@pytest.mark.parametrize("name", ["a", "ab", "abc", "abcd"])
def test_a_gguf_file_s_tensors_at_odd_addresses_are_copied_once(tmp_path, name):
    """Its own metadata may say that they are aligned to nothing."""
    value, path = torch.randn(3, 32), tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(path, "x")
    writer.add_custom_alignment(1)
    writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = open_checkpoint(path)
    assert is_aligned(files.stored[name].data) == (path.stat().st_size % 4 == 0)
    with files.mapped() as mapped:
        for found in (files.read(name), mapped(name)):
            assert is_aligned(found) and torch.equal(found, value)
        assert mapped(name).data_ptr() == mapped(name).data_ptr()


def _anonymous_memory() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024
