"""GGUF's block formats against the gguf package, which decodes them in NumPy."""
import gguf
import numpy as np
import pytest
import torch
from gguf import quants

from qwen_image_2.model.checkpoints import gguf as pack_gguf
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.checkpoints.files import open_checkpoint

# Bytes where the fp16 numbers of a block begin, from the structs in ggml-common.h; elsewhere there is one, at 0.
HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2),
          "Q6_K": (208,)}


def packed(kind: str, rows: int = 3, blocks: int = 5) -> np.ndarray:
    """Random blocks with finite scales: any bytes are a valid block but for those of its fp16 numbers."""
    block = pack_gguf.BLOCKS[kind]
    rng = np.random.default_rng(7)
    data = rng.integers(0, 256, (rows * blocks, block.bytes), dtype=np.uint8)
    for place in HALVES.get(kind, (0,)):
        data[:, place:place + 2] = rng.normal(size=(len(data), 1)).astype(np.float16).view(np.uint8)
    return data.reshape(rows, -1)


@pytest.mark.parametrize("kind", pack_gguf.BLOCKS)
def test_every_type_says_what_the_package_says(kind):
    data = packed(kind)
    expected = quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    found = pack_gguf.dequantise(torch.from_numpy(data), kind)
    assert pack_gguf.BLOCKS[kind][:2] == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert found.shape == expected.shape
    assert found.dtype == torch.float32 and torch.equal(found, torch.from_numpy(expected))


@pytest.mark.parametrize("kind", pack_gguf.BLOCKS)
def test_nothing_is_copied_to_the_device(kind, monkeypatch):
    """On a graphics card such a copy waits for everything before it; matrices are unpacked hundreds of times a step."""
    def refuse(*arguments, **options):
        raise AssertionError("made on the host")

    data = torch.from_numpy(packed(kind)).to("meta")
    monkeypatch.setattr(torch, "tensor", refuse)
    monkeypatch.setattr(torch, "as_tensor", refuse)
    monkeypatch.setattr(torch.Tensor, "to", refuse)
    assert pack_gguf.dequantise(data, kind).device.type == "meta"


@pytest.mark.parametrize("kind", pack_gguf.BLOCKS)
@pytest.mark.parametrize("rows", [slice(1, None), slice(None, None, 2)])
def test_rows_can_be_cut(kind, rows):
    data = torch.from_numpy(packed(kind))
    assert torch.equal(pack_gguf.dequantise(data[rows], kind), pack_gguf.dequantise(data, kind)[rows])


def test_packing_is_the_packages():
    matrix = torch.randn(4, 96) * torch.tensor([[1e-3], [1.0], [30.0], [0.0]])
    expected = quants.quantize(matrix.numpy(), gguf.GGMLQuantizationType.Q8_0)
    rounded = torch.from_numpy(quants.dequantize(expected, gguf.GGMLQuantizationType.Q8_0))
    found = pack_gguf.quantise(matrix)
    assert found.shape == expected.shape
    torch.testing.assert_close(pack_gguf.dequantise(found, "Q8_0"), rounded)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 40])
def test_what_is_no_gguf_file_is_said(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.gguf \(\d+ bytes\) is truncated, damaged or no GGUF file"):
        open_checkpoint(path)


def test_without_the_package_the_message_tells_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="needs the gguf package: run  pip install gguf  in"):
        open_checkpoint(tmp_path / "model.gguf")
