"""What a file says about a quantized layer, against the tensors that it holds: names and shapes alone."""
import json

import pytest
import torch
from safetensors.torch import save_file

from qwen_image_2.model.checkpoints import quantization
from qwen_image_2.model.checkpoints.checkpoint import Checkpoint, TensorInfo
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.checkpoints.files import open_checkpoint

INT8 = {"weight": ((96, 64), "I8"), "weight_scale": ((96, 1), "F32")}
NVFP4 = {"weight": ((96, 32), "U8"), "weight_scale": ((128, 4), "F8_E4M3"), "weight_scale_2": ((), "F32")}
# As core reads them (comfy/ops.py 0271a469): groups of 16 and of 64 columns where the record says nothing.
W4A8 = {"weight": ((96, 128), "I8"), "weight_s_rel": ((96, 16), "F8_E4M3"), "weight_s_channel": ((96,), "F32"),
        "weight_codebook": ((16,), "F32")}
AWQ = {"weight": ((96, 128), "I8"), "weight_scale": ((4, 96), "BF16"), "weight_zeros": ((4, 96), "BF16")}


def check(settings, tensors) -> TensorInfo:
    infos = {f"layer.{name}": TensorInfo(*info) for name, info in tensors.items()}
    checkpoint = Checkpoint("some.safetensors", infos, quantization={"layer": settings})
    return quantization.plain_weight(checkpoint, "layer")


@pytest.mark.parametrize("name, tensors, expected", [
    ("int8_tensorwise", INT8, (96, 64)),
    ("int8_tensorwise", INT8 | {"weight_scale": ((), "F32")}, (96, 64)),
    ("nvfp4", NVFP4, (96, 64)),
    ("nvfp4", NVFP4 | {"weight_scale": ((96, 4), "F8_E4M3")}, (96, 64)),
    ("nvfp4", NVFP4 | {"weight_scale": ((128, 4), "U8"), "pre_quant_scale": ((64,), "BF16")}, (96, 64)),
    ("float8_e4m3fn", {"weight": ((96, 64), "F8_E4M3"), "scale_weight": ((1,), "F32")}, (96, 64)),
])
def test_a_layer_is_seen_as_the_matrix_that_it_stands_for(name, tensors, expected):
    assert check({"format": name}, tensors) == TensorInfo(expected, tensors["weight"][1])


@pytest.mark.parametrize("settings, tensors", [
    ({"format": "asym_w4a8_int8"}, W4A8),
    ({"format": "asym_w4a8_int8", "group_size": 32, "convrot_groupsize": 64}, W4A8 | {"weight_s_rel": ((96, 8), "U8")}),
    ({"format": "asym_w4a8_int8", "params": {"group_size": 8}}, W4A8 | {"weight_s_rel": ((96, 32), "F32")}),
    ({"format": "asym_w4a8_int8"}, {name: info for name, info in W4A8.items() if name != "weight_codebook"}),
    ({"format": "awq_w4a16"}, AWQ),
    ({"format": "awq_w4a16", "group_size": 128},
     AWQ | {"weight_scale": ((2, 96), "F16"), "weight_zeros": ((2, 96), "F16")}),
])
def test_scales_of_groups_of_columns(settings, tensors):
    assert check(settings, tensors) == TensorInfo((96, 256), "I8")
    infos = {f"layer.{name}": TensorInfo(*info) for name, info in tensors.items()}
    plain, companions = quantization.unpack(Checkpoint("some.safetensors", infos, quantization={"layer": settings}))
    assert {"weight", *companions["layer.weight"]} == set(tensors) and set(plain.tensors) == {"layer.weight"}


@pytest.mark.parametrize("settings, tensors, change, key", [
    ({}, W4A8, {"weight": ((96, 128), "U8")}, "layer_matrix"), ({}, W4A8, {"weight_s_rel": None}, "scale_missing"),
    ({}, W4A8, {"weight_s_channel": None}, "scale_missing"), ({}, W4A8, {"weight_zeros": ((), "F32")}, "scale_foreign"),
    ({}, W4A8, {"weight_scale": ((), "F32")}, "scale_foreign"),
    ({}, W4A8, {"weight_s_rel": ((96, 8), "U8")}, "scale_shape"),
    ({}, W4A8, {"weight_s_rel": ((96, 16), "BF16")}, "scale_dtype"),
    ({}, W4A8, {"weight_s_channel": ((96, 1), "F32")}, "scale_shape"),
    ({}, W4A8, {"weight_s_channel": ((96,), "BF16")}, "scale_dtype"),
    ({}, W4A8, {"weight_codebook": ((15,), "F32")}, "scale_shape"),
    ({}, AWQ, {"weight_zeros": None}, "scale_missing"), ({}, AWQ, {"weight_scale": ((96, 4), "BF16")}, "scale_shape"),
    ({}, AWQ, {"weight_zeros": ((1, 96), "BF16")}, "scale_shape"),
    ({}, AWQ, {"weight_scale": ((4, 96), "U8")}, "scale_dtype"),
    ({"convrot_groupsize": 32}, W4A8, {}, "rotation_group"), ({"convrot_groupsize": 1024}, W4A8, {}, "rotation_group"),
    *(({"group_size": group}, tensors, {}, "scale_group") for group in (0, 2, 12, 24, 512, True, "16", None)
      for tensors in (W4A8, AWQ)),
])
def test_groups_and_their_scales_that_are_refused(settings, tensors, change, key):
    name = "awq_w4a16" if tensors is AWQ else "asym_w4a8_int8"
    with pytest.raises(CheckpointError) as refused:
        check({"format": name, **settings}, {k: v for k, v in (tensors | change).items() if v is not None})
    assert refused.value.key == key


def test_a_gguf_matrix_holds_its_scales_itself():
    assert check({"format": "gguf", "type": "Q8_0"}, {"weight": ((96, 64), "Q8_0")}) == TensorInfo((96, 64), "Q8_0")


@pytest.mark.parametrize("settings, key", [
    (None, "layer_format"), ({}, "layer_format"), ({"format": "int3"}, "layer_format"), ({"format": 8}, "layer_format"),
    ({"format": "gguf", "type": "Q9"}, "gguf_type"), ({"format": "gguf"}, "gguf_type"),
    *(({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": group}, "rotation_group")
      for group in ("64", 0, 1, True, 32, 48, 256, -4, [64], None)),
    ({"format": "int8_tensorwise", "params": {"convrot": True, "convrot_groupsize": "64"}}, "rotation_group"),
    ({"format": "int8_tensorwise", "convrot": True}, "rotation_group"),  # 256 where nothing is said: 64 inputs here
    ({"format": "convrot_w4a4", "linear_dtype": 0}, "linear_dtype"),
    ({"format": "convrot_w4a4", "params": {"linear_dtype": "fp8"}}, "linear_dtype"),
])
def test_formats_that_are_refused(settings, key):
    with pytest.raises(CheckpointError) as refused:
        check(settings, INT8)
    assert refused.value.key == key


@pytest.mark.parametrize("change, key", [
    ({"weight": None}, "tensor_missing"), ({"weight": ((96, 64), "F32")}, "layer_matrix"),
    ({"weight": ((96, 64, 1), "I8")}, "layer_matrix"), ({"weight_scale": None}, "scale_missing"),
    ({"weight_scale": ((64, 1), "F32")}, "scale_shape"), ({"weight_scale": ((96, 64), "F32")}, "scale_shape"),
    ({"pre_quant_scale": ((64,), "F32")}, "scale_foreign"), ({"weight_scale_2": ((), "F32")}, "scale_foreign"),
    *(({"weight_scale": ((96, 1), dtype)}, "scale_dtype") for dtype in ("I64", "BOOL", "U8", "F8_E4M3", "F64")),
])
def test_weights_and_scales_that_are_refused(change, key):
    tensors = {name: info for name, info in (INT8 | change).items() if info is not None}
    with pytest.raises(CheckpointError) as refused:
        check({"format": "int8_tensorwise"}, tensors)
    assert refused.value.key == key


@pytest.mark.parametrize("change, key", [
    ({"weight_scale": ((128, 4), "F32")}, "scale_dtype"), ({"weight_scale": ((128, 4), "F8_E8M0")}, "scale_dtype"),
    ({"weight_scale_2": ((), "I32")}, "scale_dtype"), ({"weight_scale_2": ((96,), "F32")}, "scale_shape"),
    ({"input_scale": ((2,), "F32")}, "scale_shape"), ({"pre_quant_scale": ((32,), "F32")}, "scale_shape"),
    ({"pre_quant_scale": ((64,), "U8")}, "scale_dtype"),
])
def test_each_scale_of_a_block_format_is_looked_at(change, key):
    with pytest.raises(CheckpointError) as refused:
        check({"format": "nvfp4"}, NVFP4 | change)
    assert refused.value.key == key


def test_an_odd_group_counts_for_nothing_where_nothing_rotates():
    assert check({"format": "int8_tensorwise", "convrot_groupsize": 256}, INT8) == TensorInfo((96, 64), "I8")


def test_a_scale_that_the_format_has_no_use_for_may_be_anything():
    assert check({"format": "int8_tensorwise"}, INT8 | {"input_scale": ((3,), "I64")}) == TensorInfo((96, 64), "I8")


@pytest.mark.parametrize("settings, tensors, kept", [
    ({"format": "int8_tensorwise"}, INT8 | {"input_scale": ((), "F32")}, {"weight_scale"}),
    ({"format": "float8_e4m3fn"}, {"weight": ((96, 64), "F8_E4M3"), "weight_scale": ((), "F32"),
                                   "input_scale": ((), "F32")}, {"weight_scale", "input_scale"}),
    ({"format": "nvfp4"}, NVFP4 | {"pre_quant_scale": ((64,), "F32")},
     {"weight_scale", "weight_scale_2", "pre_quant_scale"}),
    ({"format": "int8_tensorwise", "no_input_scale": True}, INT8, {"weight_scale"}),
], ids=["int8", "fp8", "nvfp4", "none there to leave out"])
def test_an_input_scale_is_kept_where_the_format_has_a_use_for_it(settings, tensors, kept):
    """ComfyUI refuses a state dict with any other."""
    infos = {f"layer.{name}": TensorInfo(*info) for name, info in tensors.items()}
    plain, companions = quantization.unpack(Checkpoint("some.safetensors", infos, quantization={"layer": settings}))
    assert set(companions["layer.weight"]) == kept and set(plain.tensors) == {"layer.weight"}


@pytest.mark.parametrize("layers", [[[1, 2]], [], 3, "layer", None])
def test_layers_in_the_metadata_are_named_entries(layers, tmp_path):
    """A list of pairs would pass for them, and then every name may be a number."""
    path = tmp_path / "model.safetensors"
    save_file({"layer.weight": torch.zeros(2)}, path, {quantization.METADATA: json.dumps({"layers": layers})})
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path)
    assert refused.value.key == "quantization_unreadable" and quantization.METADATA in str(refused.value)
