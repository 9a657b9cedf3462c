"""A step as ComfyUI asks for it, on a graphics card of fake tensors: see tests/model/qwen_image_2/test_devices.py.

A fake tensor has no values to look at, so these tests also fail where a step would wait for the card to read one.
"""
import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from qwen_image_2.model.qwen_image_2.prefix_cache import Condition
from qwen_image_2.model.qwen_image_2.spec import TransformerSpec

CARD = torch.device("cuda:0")


@pytest.fixture(params=[(8, 9), (9, 0)], ids=["RTX 4090", "H100"])
def on_a_card(comfyui, monkeypatch, request):
    """Core's choices for a card of this capability, and ours."""
    import comfy.ldm.modules.attention
    import comfy.model_management

    from qwen_image_2.nodes.bridge.runtime import attention as ours
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: request.param)
    monkeypatch.setattr(ours, "CUDNN_MIN_KEYS", 30)
    # A fake card has no driver that PyTorch could ask whether cuDNN can.
    monkeypatch.setattr(ours, "CUDNN_FIRST", [order for order in ours.CUDNN_FIRST if "CUDNN" not in order.name])
    attention = comfy.ldm.modules.attention
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device: 2**40)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: 2**40)
    # What an earlier test asked must not answer for this one: fake modes share a cache of answers.
    FakeTensorMode.cache_clear()
    with FakeTensorMode(), torch.inference_mode():
        yield


@pytest.mark.parametrize("place", ["VRAM", "RAM", "RECOMPUTE"])
@pytest.mark.parametrize("weights", ["cuda:0", "cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_stays_on_the_card_and_waits_for_nothing(on_a_card, dtype, weights, place):
    """weights on the CPU: those that ComfyUI has left in RAM; it brings each layer's as it is used."""
    import comfy.ops
    import comfy_kitchen

    from qwen_image_2.nodes.bridge.prefix_cond import PromptPrefix
    from qwen_image_2.nodes.bridge.qwen_image_2 import DiffusionModel
    from qwen_image_2.nodes.bridge.runtime.kernels import kitchen_kernels
    from qwen_image_2.nodes.bridge.runtime.prefix_placement import CacheLocation
    spec = dataclasses.replace(TransformerSpec(), layers=2)
    network = DiffusionModel(spec, kitchen_kernels(comfy_kitchen), dtype, torch.device(weights), comfy.ops.manual_cast)
    prefix = PromptPrefix(Condition(torch.randn(1, 20, spec.context_dim), (3,), (torch.randn(1, 64, 4, 8),)))
    x, sigma = torch.randn(2, 64, 6, 10, device=CARD, dtype=dtype), torch.rand(2, device=CARD)
    for _ in range(2):
        velocity = network(x, sigma, prefix=prefix, first_location=CacheLocation[place])
        assert (velocity.device, velocity.dtype, velocity.shape) == (CARD, dtype, x.shape)
    assert prefix.location is CacheLocation[place]
    kept = {tensor.device.type for pair in prefix.cache.layers for tensor in pair}
    assert kept == {"VRAM": {"cuda"}, "RAM": {"cpu"}, "RECOMPUTE": set()}[place]
