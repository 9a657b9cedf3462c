"""Weights as slices of their file, without a card: what talks to the driver, a read-only mapping, is replaced."""
import ctypes
import mmap

import pytest
import safetensors.torch
import torch

from qwen_image_2.model.checkpoints import loading
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.model.runtime.kernels import TORCH

SLICE = "_comfy_tensor_file_slice"


class Mapping:
    """As comfy_aimdo's. (Python needs a mapping that could be written to, to tell its address.)"""

    def __init__(self, path: str):
        with open(path, "rb") as file:
            self.mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE)

    def get(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.mapped))

    def get_file_handle(self) -> int:
        return 7


@pytest.fixture
def aimdo(comfyui, monkeypatch):
    import comfy.memory_management
    import comfy_aimdo.model_mmap
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    monkeypatch.setattr(comfy_aimdo.model_mmap, "ModelMMAP", Mapping)


def load(path, dynamic=True) -> Transformer:
    from qwen_image_2.nodes.bridge.loading import open_model
    from qwen_image_2.nodes.bridge.slices import sliced
    checkpoint, detected = open_model(path, path.name)
    network = Transformer(detected.spec, device="meta")
    loading.load(network, detected, sliced(checkpoint, dynamic), loading.stored_dtype(checkpoint.tensors))
    return network


def slice_of(value: torch.Tensor):
    return getattr(value.untyped_storage(), SLICE, None)


def test_every_weight_says_where_it_lies(aimdo, transformer_file):
    network, plain = load(transformer_file), load(transformer_file, dynamic=False)
    content = transformer_file.read_bytes()
    for name, value in network.named_parameters():
        other, place = plain.get_parameter(name), slice_of(value)
        assert slice_of(other) is None and torch.equal(value, other)
        assert place.file_ref == 7 and value.storage_offset() == 0 and value.is_contiguous()
        assert content[place.offset:place.offset + place.size] == other.numpy().tobytes()


def test_nan_is_found_as_before(aimdo, transformer_file, tmp_path):
    state = safetensors.torch.load_file(transformer_file)
    name = next(name for name in state if name.endswith("attn.to_q.weight"))
    state[name][0, 0] = torch.nan
    safetensors.torch.save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="contains NaN"):
        load(tmp_path / "nan.safetensors")


@pytest.mark.parametrize("why", ["a type that core does not know", "a file that it cannot map", "dynamic VRAM is off"])
def test_otherwise_they_are_mapped_as_before(aimdo, transformer_file, monkeypatch, why):
    import comfy.memory_management
    import comfy.utils
    if why.startswith("a type"):
        monkeypatch.delitem(comfy.utils._TYPES, "F32")
    elif why.startswith("a file"):
        def refuse(path):
            raise RuntimeError("ModelMMAP allocation failed")
        monkeypatch.setattr(comfy.utils, "load_safetensors", refuse)
    else:
        monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", False)
    network = load(transformer_file)
    assert all(slice_of(value) is None and value.isfinite().all() for value in network.parameters())


@pytest.mark.parametrize("device, disable_dynamic, slices", [("cuda", False, True), ("cuda", True, False),
                                                             ("cpu", False, False)])
def test_only_the_dynamic_patcher_gets_them(comfyui, transformer_file, monkeypatch, device, disable_dynamic, slices):
    """Of a static one, a budget pins blocks, and core may write into weights."""
    import comfy.model_management

    from qwen_image_2.nodes.bridge import loading as bridge
    asked = []

    class Enough(Exception):
        pass

    def sliced(checkpoint, dynamic):
        asked.append(dynamic)
        raise Enough

    monkeypatch.setattr(bridge, "sliced", sliced)
    monkeypatch.setattr(bridge, "kernels_for", lambda device: TORCH)
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device(device))
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda *_, **__: True)
    monkeypatch.setattr(comfy.model_management, "unet_manual_cast", lambda *_: None)
    with pytest.raises(Enough):
        bridge.load_model(transformer_file, "a model", "base", disable_dynamic=disable_dynamic)
    assert asked == [slices]
