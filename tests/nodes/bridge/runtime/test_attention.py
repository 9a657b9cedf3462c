"""Whose attention computes: the user's and other nodes' choice first, cuDNN on the cards that are faster with it."""
from types import SimpleNamespace

import pytest
import torch

from qwen_image_2.model.runtime import kernels as plain
from qwen_image_2.tests.reference import error

CARD = torch.device("cuda")


@pytest.fixture
def attention(comfyui):
    from qwen_image_2.nodes.bridge.runtime import attention
    return attention


@pytest.fixture
def as_on_a_card(attention, monkeypatch):
    """ComfyUI as it starts on a card without a flag about attention; the function sets the card's capability."""
    import comfy.ldm.modules.attention as core
    monkeypatch.setattr(core, "optimized_attention", core.attention_pytorch)
    return lambda *capability: monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def queries(count=8, dtype=torch.bfloat16):
    """As much of a tensor on a card as the choice looks at."""
    return SimpleNamespace(device=CARD, dtype=dtype, shape=(1, count, 32, 128))


@pytest.mark.parametrize("capability, faster", [
    ((9, 0), True), ((10, 0), True), ((10, 3), True), ((8, 0), False), ((8, 9), False), ((12, 0), False),
    ((7, 5), False)])
def test_cudnn_goes_first_on_cards_for_servers(attention, as_on_a_card, capability, faster):
    as_on_a_card(*capability)
    assert attention.takes_cudnn(queries(), attention.CUDNN_MIN_KEYS, {}) == faster
    words = attention.in_words(CARD, {})
    assert words == f"Attention: PyTorch{', cuDNN first from 4,096 tokens on' if faster else ''}."


def test_short_and_fp32_attention_is_left_to_core(attention, as_on_a_card):
    as_on_a_card(9, 0)
    assert not attention.takes_cudnn(queries(), attention.CUDNN_MIN_KEYS - 1, {})
    assert not attention.takes_cudnn(queries(dtype=torch.float32), 10**5, {})


def test_amd_is_left_to_core(attention, as_on_a_card, monkeypatch):
    as_on_a_card(9, 0)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not attention.takes_cudnn(queries(), 10**5, {}) and attention.in_words(CARD, {}) == "Attention: PyTorch."


@pytest.mark.parametrize("name, words", [
    ("attention_sage", "SageAttention"), ("attention_flash", "FlashAttention"), ("attention_xformers", "xFormers"),
    ("attention_of_tomorrow", "attention_of_tomorrow")])
def test_a_launch_flag_wins(attention, as_on_a_card, monkeypatch, name, words):
    import comfy.ldm.modules.attention as core
    as_on_a_card(9, 0)

    def chosen(*_, **__):
        raise AssertionError("it is only named")

    chosen.__name__ = name
    monkeypatch.setattr(core, "optimized_attention", chosen)
    assert not attention.takes_cudnn(queries(), 10**5, {})
    assert attention.in_words(CARD, {}) == f"Attention: {words}."


def test_a_node_s_override_wins(attention, as_on_a_card):
    as_on_a_card(9, 0)
    options = {"optimized_attention_override": lambda function, *inputs, **more: function(*inputs, **more)}
    assert not attention.takes_cudnn(queries(), 10**5, options)
    assert attention.in_words(CARD, options) == "Attention: chosen by another node."


def test_nothing_is_said_on_a_cpu(attention):
    assert attention.in_words(torch.device("cpu"), {}) is None


@pytest.mark.parametrize("keys", [24, 40])
def test_both_ways_compute_the_same(attention, monkeypatch, keys):
    """The order of backends is asked for, and the CPU's own answers; core's function beside it."""
    q, k, v = torch.randn(2, 24, 3, 32), torch.randn(2, keys, 3, 32), torch.randn(2, keys, 3, 32)
    expected, seen = plain.attention(q, k, v), []
    core_s = attention.attention_for({})(q, k, v)
    monkeypatch.setattr(attention, "takes_cudnn", lambda q, keys, options: seen.append(keys) or True)
    real = attention.sdpa_kernel
    monkeypatch.setattr(attention, "sdpa_kernel", lambda order, set_priority: seen.append((order[0], set_priority)) or
                        real(order, set_priority=set_priority))
    ours = attention.attention_for({})(q, k, v)
    assert seen == [keys, (attention.SDPBackend.CUDNN_ATTENTION, True)]
    assert error(ours, expected) < 1e-6 and error(core_s, expected) < 1e-6


def test_the_prompt_s_own_pass_is_causal(attention):
    q, k, v = (torch.randn(1, 12, 2, 32) for _ in range(3))
    assert torch.equal(attention.attention_for({})(q, k, v, causal=True), plain.attention(q, k, v, causal=True))
