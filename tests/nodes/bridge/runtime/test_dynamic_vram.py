"""ComfyUI's dynamic VRAM, the default on NVIDIA cards, without a card: core's own patcher and casts on torch's meta
device, where tensors have no values. Only what talks to the driver is replaced.
"""
from types import SimpleNamespace

import pytest
import torch

from qwen_image_2.model.qwen_image_2.prefix_cache import Condition
from qwen_image_2.model.runtime import kernels as plain
from qwen_image_2.model.runtime.kernels import TORCH
from qwen_image_2.tests.nodes.bridge.quant import test_gguf_ops
from qwen_image_2.tools import tiny

CARD = torch.device("meta")
MATRIX = "diffusion_model.transformer_blocks.1.attn.to_q.weight"


class Space:
    """Addresses on the card, for which there is always room."""

    def __init__(self, size: int, device_index: int):
        self.taken = 0

    def prioritize(self):
        pass

    def alloc(self, size: int):
        self.taken += size
        return self, self.taken - size, size  # where it is, as core's newer versions read it


@pytest.fixture
def on_a_card(comfyui, monkeypatch):
    import comfy.model_management
    import comfy.pinned_memory
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch

    from qwen_image_2.nodes.bridge import loading
    from qwen_image_2.nodes.bridge.runtime import attention, prefix_placement

    def replace(module, **by):
        for name, value in by.items():
            monkeypatch.setattr(module, name, value)

    replace(comfy_aimdo.model_vbar, ModelVBAR=Space, vbar_fault=lambda place: "there", vbar_unpin=lambda place: None,
            vbar_signature_compare=lambda one, other: one == other)
    replace(comfy_aimdo.torch, aimdo_to_tensor=lambda place, device: torch.empty(
        place[2], dtype=torch.uint8, device=device))
    replace(comfy_aimdo.host_buffer, HostBuffer=lambda *_: SimpleNamespace(size=0))
    replace(comfy.pinned_memory, get_pin=lambda *_, **__: None, pin_memory=lambda *_, **__: None)
    replace(comfy.model_management, pinned_hostbuf_size=lambda size: 0,
            device_supports_non_blocking=lambda device: False)
    replace(prefix_placement, _may_fit=lambda size, device: True)
    replace(loading, kernels_for=lambda device: TORCH)
    replace(attention, attention_for=lambda options: plain.attention)


def dynamic(patcher):
    """As core's loaders make it for a card."""
    from comfy.model_patcher import ModelPatcherDynamic
    made = ModelPatcherDynamic(patcher.model, CARD, torch.device("cpu"))
    made.callbacks = patcher.callbacks
    return made


@pytest.fixture
def copies(on_a_card, monkeypatch):
    """Which weights core asks for, in order, by their addresses; on a card that can copy beside its computing."""
    import comfy.model_management
    import comfy_aimdo.model_vbar
    asked: list = []
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbar_fault", lambda place: asked.append(place) or "there")
    for name, value in {"NUM_STREAMS": 2, "device_supports_non_blocking": lambda device: True,
                        "get_offload_stream": lambda device: None,
                        "ensure_pin_registerable": lambda size: None}.items():
        monkeypatch.setattr(comfy.model_management, name, value)
    return asked


# LoRAs on fp8 and int8 are rounded at random, and the meta device has no random numbers; on plain casts they are not.
@pytest.mark.parametrize("weights, lora", [("as stored", False), ("fp8", False), ("int8 (ConvRot)", False),
                                           ("Q4_K", False), ("as stored", True), ("Q4_K", True), ("cast to fp8", True)])
def test_two_steps(copies, reference, transformer_file, tmp_path, weights, lora):
    """The second with its blocks asked for ahead."""
    from qwen_image_2.nodes.bridge.loading import load_model
    from qwen_image_2.nodes.bridge.prefix_cond import PromptPrefix
    if weights == "Q4_K":
        state = tiny.to_comfy_transformer(reference.transformer.state_dict())
        model = load_model(test_gguf_ops.write(tmp_path / "m.gguf", state, weights), "m.gguf", "base")
    elif weights == "cast to fp8":
        state = tiny.to_comfy_transformer(reference.transformer.state_dict())
        tiny.save_as_they_are({name: value.to(torch.float8_e4m3fn) for name, value in state.items()},
                              tmp_path / "m.safetensors")
        model = load_model(tmp_path / "m.safetensors", "m.safetensors", "base")
    else:
        model = load_model(transformer_file, "model", "base", weights)
    model, network = dynamic(model), model.model.diffusion_model
    if lora:
        change = torch.zeros(network.get_parameter(MATRIX.partition(".")[2]).shape)
        assert model.add_patches({MATRIX: ("diff", (change,))}, 1.0) == [MATRIX]
    model.partially_load(CARD)
    assert all(hasattr(block.attn.to_q, "_v") for block in network.transformer_blocks)
    prefix = PromptPrefix(Condition(torch.randn(1, 20, network.spec.context_dim), (3,),
                                    (torch.randn(1, 64, 4, 8),)))
    x = torch.empty(1, 64, 4, 6, device=CARD, dtype=model.model.get_dtype_inference())
    for ahead in (False, True):
        with torch.inference_mode():
            velocity = network(x, torch.empty(1, device=CARD), prefix=prefix,
                               transformer_options={"prefetch_dynamic_vbars": ahead})
        assert (velocity.device, velocity.dtype, velocity.shape) == (CARD, x.dtype, x.shape)


def test_a_block_comes_as_a_whole(copies, transformer_file):
    """All that it needs is asked for before it computes, and given back after the pass."""
    from qwen_image_2.nodes.bridge.loading import load_model
    from qwen_image_2.nodes.bridge.prefix_cond import PromptPrefix
    patcher = dynamic(load_model(transformer_file, "model", "base"))
    network = patcher.model.diffusion_model
    patcher.partially_load(CARD)
    blocks = list(network.transformer_blocks)
    where = {module._v[1]: number for number, block in enumerate(blocks) for module in block.modules()
             if hasattr(module, "_v")}
    events: list = []
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, number=number: events.append(f"block {number}") or copies.clear())
        block.register_forward_hook(lambda *_, number=number: events.append(
            [place for place in copies if where.get(place[1]) == number]))
    prefix = PromptPrefix(Condition(torch.randn(1, 20, network.spec.context_dim)))
    x = torch.empty(1, 64, 4, 6, device=CARD, dtype=patcher.model.get_dtype_inference())
    for ahead in (False, True):
        with torch.inference_mode():
            network(x, torch.empty(1, device=CARD), prefix=prefix,
                    transformer_options={"prefetch_dynamic_vbars": ahead})
        of_target = events[-2 * len(blocks):]
        assert of_target[::2] == [f"block {number}" for number in range(len(blocks))]
        assert all(not late for late in of_target[1::2]) == ahead
    assert not any(hasattr(module, "_prefetch") for module in network.modules())


def test_clones_take_patches_of_the_mlps_halves(on_a_card, model):
    """Static ones too, which core makes of its own class, for TorchCompileModel."""
    from qwen_image_2.nodes.bridge.adapters.places import placing
    patcher = placing(dynamic(model))
    static = patcher.clone(disable_dynamic=True, model_override=model.get_clone_model_override())
    assert patcher.is_dynamic() and not static.is_dynamic()
    matrix = "diffusion_model.transformer_blocks.1.img_mlp.gate_up.weight"
    half, rows = matrix.replace("gate_up", "proj"), model.model.spec.mlp_dim
    for each in (patcher, patcher.clone(), static, static.clone()):
        assert each.add_patches({half: ("diff", (torch.zeros(rows, model.model.spec.dim),))}) == [half]
        assert [patch[3] for patch in each.patches[matrix]] == [(0, rows, rows)] and half not in each.patches
        each.patches.clear()


@pytest.mark.parametrize("file, channels, shape", [("vae_file", 4, (1, 64, 4, 6)), ("vae_1_file", 3, (1, 16, 8, 12))])
def test_a_picture_and_back(on_a_card, request, file, channels, shape):
    from qwen_image_2.nodes.bridge.vae import load_vae
    path = request.getfixturevalue(file)
    vae = load_vae(path, path.name)
    dynamic(vae.patcher).partially_load(CARD)
    network, pixels = vae.first_stage_model, torch.empty(1, channels, 64, 96, device=CARD, dtype=vae.vae_dtype)
    assert any(hasattr(module, "_v") for module in network.decoder.modules())
    with torch.inference_mode():
        latent = network.encode(pixels)
        back = network.decode(latent)
    assert latent.shape == shape and (back.device, back.dtype, back.shape) == (CARD, pixels.dtype, pixels.shape)
