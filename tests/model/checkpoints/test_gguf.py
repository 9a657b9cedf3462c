"""GGUF's block formats against the gguf package, which decodes them in NumPy."""
import re
import sys

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
    found = pack_gguf.dequantize(torch.from_numpy(data), kind)
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
    assert pack_gguf.dequantize(data, kind).device.type == "meta"


@pytest.mark.parametrize("kind", pack_gguf.BLOCKS)
@pytest.mark.parametrize("rows", [slice(1, None), slice(None, None, 2)])
def test_rows_can_be_cut(kind, rows):
    data = torch.from_numpy(packed(kind))
    assert torch.equal(pack_gguf.dequantize(data[rows], kind), pack_gguf.dequantize(data, kind)[rows])


def test_packing_is_the_packages():
    matrix = torch.randn(4, 96) * torch.tensor([[1e-3], [1.0], [30.0], [0.0]])
    expected = quants.quantize(matrix.numpy(), gguf.GGMLQuantizationType.Q8_0)
    rounded = torch.from_numpy(quants.dequantize(expected, gguf.GGMLQuantizationType.Q8_0))
    found = pack_gguf.quantize(matrix)
    assert found.shape == expected.shape
    torch.testing.assert_close(pack_gguf.dequantize(found, "Q8_0"), rounded)


def reshaped(path, kind: str, data: np.ndarray, original):
    """A file with one tensor, and the shape that it had."""
    writer = gguf.GGUFWriter(path, "qwen_image21")
    if isinstance(original, list):
        writer.add_array("comfy.gguf.orig_shape.a.weight", original)
    else:
        writer.add_string("comfy.gguf.orig_shape.a.weight", original)
    writer.add_tensor("a.weight", data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", pack_gguf.BLOCKS)
@pytest.mark.parametrize("original", [(6, 640), (5, 3, 2, 8, 16), (3840,), (15, 256), (24, 160)])
def test_a_tensor_has_its_original_shape(tmp_path, kind, original):
    """city96's converter writes what does not fill blocks of 256 as rows of 256, and the shape beside it."""
    values = pack_gguf.BLOCKS[kind].values
    data = packed(kind, rows=15, blocks=256 // values)
    opened = open_checkpoint(reshaped(tmp_path / "a.gguf", kind, data, list(original)))
    stays_packed = len(original) == 2 and original[1] % values == 0
    assert opened.tensors["a.weight"] == (original, kind if stays_packed else "F32")
    assert opened.quantization == ({"a": {"format": "gguf", "type": kind}} if stays_packed else {})
    expected = torch.from_numpy(quants.dequantize(data, gguf.GGMLQuantizationType[kind])).view(original)
    with opened.mapped() as mapped:
        for found in (opened.read("a.weight"), mapped("a.weight")):
            found = pack_gguf.dequantize(found, kind) if stays_packed else found
            assert found.shape == original and torch.equal(found, expected)


@pytest.mark.parametrize("kind, dtype", [("F32", np.float32), ("F16", np.float16)])
def test_a_plain_tensor_has_its_original_shape(tmp_path, kind, dtype):
    data = np.arange(3840).astype(dtype).reshape(15, 256)
    opened = open_checkpoint(reshaped(tmp_path / "a.gguf", kind, data, [5, 3, 2, 8, 16]))
    assert opened.tensors["a.weight"] == ((5, 3, 2, 8, 16), kind)
    assert torch.equal(opened.read("a.weight"), torch.from_numpy(data).view(5, 3, 2, 8, 16))


@pytest.mark.parametrize("original", [[6, 641], [-6, -640], [6, 0, 640], [1] * 9 + [3840], [6.0, 640.0], "6, 640"])
def test_an_original_shape_of_other_values_is_refused(tmp_path, original):
    path = reshaped(tmp_path / "a.gguf", "Q8_0", packed("Q8_0", rows=15, blocks=8), original)
    told = f"a tensor of shape [15, 256] declares the original shape {original[:9]}"
    with pytest.raises(CheckpointError, match=re.escape(told)):
        open_checkpoint(path)


def test_a_type_that_is_not_read_is_named_in_its_original_shape_too(tmp_path):
    path = reshaped(tmp_path / "a.gguf", "IQ3_S", np.zeros((15, 110), np.uint8), [6, 640])
    opened = open_checkpoint(path)
    assert opened.tensors["a.weight"] == ((6, 640), "IQ3_S") and opened.quantization["a"]["type"] == "IQ3_S"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 40])
def test_what_is_no_gguf_file_is_said(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.gguf \(\d+ bytes\) is truncated, damaged or not a GGUF file"):
        open_checkpoint(path)


def test_the_types_have_the_packages_numbers():
    assert {kind.value: kind.name for kind in gguf.GGMLQuantizationType} == pack_gguf.TYPES


def test_the_package_is_not_needed(tmp_path, monkeypatch):
    path = reshaped(tmp_path / "a.gguf", "Q8_0", packed("Q8_0"), [3, 160])
    monkeypatch.setitem(sys.modules, "gguf", None)  # an import of it fails
    assert open_checkpoint(path).tensors["a.weight"] == ((3, 160), "Q8_0")
