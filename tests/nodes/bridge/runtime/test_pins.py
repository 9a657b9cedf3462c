"""What is pinned (page-locked, so that a card copies it at full speed) is pinned once for a model, not in every run.

Pinning takes 60 ms to 1 s a gigabyte. Core's functions that pin and unpin are counted here; no driver is needed.
"""
import gc
from types import SimpleNamespace

import pytest
import torch

from qwen_image_2.tests.nodes.bridge.runtime.runs import LORA, budget_for, text_and_noise, unload, with_lora

PATCHERS = ["core's", "the budget's"]

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


@pytest.fixture
def pins(comfyui, monkeypatch):
    """held: addresses that are pinned now; made: how often one was pinned; ended: how often one was unpinned."""
    import comfy.model_management
    pins = SimpleNamespace(held=set(), made=0, ended=0)

    def pin(tensor):
        if tensor is None or tensor.data_ptr() in pins.held:  # a layer without a bias
            return False
        pins.held.add(tensor.data_ptr())
        pins.made += 1
        return True

    def unpin(tensor):
        pins.held.discard(tensor.data_ptr())
        pins.ended += 1
        return True

    monkeypatch.setattr(comfy.model_management, "pin_memory", pin)
    monkeypatch.setattr(comfy.model_management, "unpin_memory", unpin)
    return pins


@pytest.fixture
def sampler(comfyui, monkeypatch):
    """The node itself, as ComfyUI runs it."""
    from comfy_api.latest import io

    from qwen_image_2.nodes.sampler import QwenImage2Sampler

    class Node(QwenImage2Sampler):
        hidden = io.HiddenHolder(unique_id=None, prompt={}, extra_pnginfo=None, dynprompt=None,
                                 auth_token_comfy_org=None, api_key_comfy_org=None)

    def run(model, seed: int = 0):
        text, noise = text_and_noise(model)
        return Node.execute(model, [[text, {}]], {"samples": torch.zeros_like(noise)}, seed, "Custom", 2, 1.0, 1.0)
    return run


@pytest.fixture
def short_of_video_memory(comfyui, monkeypatch):
    """Core's own patcher gets room for half of a model, as on a card that is too small for it."""
    from comfy.model_management import LoadedModel
    load = LoadedModel.model_load

    def half(self, lowvram_model_memory=0, force_patch_weights=False):
        room = self.model.model_size() / 2 - self.model_loaded_memory()
        return load(self, room or 0.1, force_patch_weights)

    monkeypatch.setattr(LoadedModel, "model_load", half)


@pytest.fixture(params=PATCHERS)
def model(request, budget, load):
    model = load("fp32")
    if request.param == "core's":
        request.getfixturevalue("short_of_video_memory")
        yield model
    else:
        yield budget.BudgetPatcher.of(model, budget_for(model, 3))
    unload()


def test_two_runs_pin_once(model, sampler, pins):
    sampler(model)
    gc.collect()
    first, made = set(pins.held), pins.made
    assert len(first) == made > 10 and pins.ended == 0
    sampler(model, seed=1)
    gc.collect()
    assert (pins.held, pins.made, pins.ended) == (first, made, 0)


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_a_run_that_ends_early_unpins_nothing(model, sampler, pins, monkeypatch, end):
    import comfy.model_management
    sampler(model)
    first, made = set(pins.held), pins.made
    error = comfy.model_management.InterruptProcessingException if end == "cancelled" else RuntimeError

    def stop(*_):
        raise error

    with monkeypatch.context() as now, pytest.raises(error):
        now.setattr(model.model.diffusion_model.transformer_blocks[2].img_mlp, "forward", stop)
        sampler(model, seed=1)
    gc.collect()
    assert pins.held == first
    sampler(model, seed=2)
    gc.collect()
    assert (pins.held, pins.made, pins.ended) == (first, made, 0)


def test_two_samplers_of_a_graph_share_the_pins(model, sampler, pins):
    """As in a graph with a LoRA on one way: both MODELs live in ComfyUI's cache, and each run uses the other."""
    adapted = with_lora(model, *LORA)
    counts = []
    for seed in range(3):
        for each in (model, adapted):
            sampler(each, seed)
            gc.collect()
            counts.append(len(pins.held))
    assert counts[0] > 10 and counts == [counts[0], counts[1]] * 3
