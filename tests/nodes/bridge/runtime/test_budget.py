"""A budget for the weights: the very same pictures, whatever streams; LoRAs, quantized weights, other patchers."""
import math

import pytest
import torch

from qwen_image_2.model.runtime import offload
from qwen_image_2.tests.nodes.bridge.runtime.runs import (
    LORA,
    budget_for,
    hook_lora,
    queries,
    reporting_to,
    sample,
    unload,
    with_lora,
)

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


@pytest.fixture(params=["as stored", "fp8", "int8 (ConvRot)", "4-bit (nvfp4)"])
def weight_format(request):
    return request.param


@pytest.mark.parametrize("kept", [0, 3])
def test_a_streamed_model_draws_what_the_resident_one_draws(budget, load, weight_format, kept):
    model = load(weight_format)
    expected = sample(model)
    budgeted = budget.BudgetPatcher.of(model, budget_for(model, kept))
    assert torch.equal(sample(budgeted), expected)
    assert len(model.model.plan.streamed) == 8 - kept
    unload()
    assert model.model.plan is None and model.model.diffusion_model.streamer is None
    assert torch.equal(sample(model), expected)


@pytest.mark.parametrize("kept", [0, 3, 4])
def test_guidance_with_prefixes_that_are_computed_anew(budget, load, kept):
    """Four passes take turns, and whether the last block streams or not, none holds a buffer for ever."""
    from qwen_image_2.nodes.bridge.keys import CACHE_LOCATION_KEY
    from qwen_image_2.nodes.bridge.runtime.prefix_placement import CacheLocation
    model = load()
    expected = sample(model, cfg=3.0)
    budgeted = budget.BudgetPatcher.of(model, budget_for(model, kept))
    budgeted.model_options["transformer_options"][CACHE_LOCATION_KEY] = CacheLocation.RECOMPUTE
    assert torch.equal(sample(budgeted, cfg=3.0), expected)
    unload()


@pytest.mark.parametrize("before", [True, False], ids=["LoRA before the budget", "LoRA after it"])
def test_loras_work_on_what_stays_and_on_what_streams(budget, load, before):
    model = load("fp32")
    plain, expected = sample(model), sample(with_lora(model, *LORA))
    assert not torch.allclose(plain, expected, atol=1e-2)
    size = budget_for(model, 4)
    budgeted = (budget.BudgetPatcher.of(with_lora(model, *LORA), size) if before
                else with_lora(budget.BudgetPatcher.of(model, size), *LORA))
    found = sample(budgeted)
    assert {0, 3, 6} & model.model.plan.streamed and {0, 3, 6} - model.model.plan.streamed
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(sample(budget.BudgetPatcher.of(model, size)), plain)  # and leave again
    assert torch.equal(sample(model), plain)


@pytest.mark.parametrize("kept", [4, 8])
@pytest.mark.parametrize(("device", "memory"), [("cuda", "VRAM"), ("cpu", "system RAM")])
def test_a_plan_names_the_memory_of_its_device(budget, load, kept, device, memory):
    model = load()
    plan = budget.BudgetPatcher.of(model, budget_for(model, kept)).plan_for(math.inf)
    assert f"stay in {memory} (" in budget.in_words(plan, torch.device(device))


@pytest.mark.parametrize(("kept", "adapted", "count"), [
    (4, LORA, 1), (0, LORA, 3), (0, ("img_in.weight",), 0), (0, (), 0)])
def test_loras_that_are_merged_in_every_pass_are_reported(budget, load, kept, adapted, count):
    """img_in is in no block and stays; of four kept blocks two are among the LoRA's three."""
    model, told = load("fp32"), []
    sample(reporting_to(told.append, with_lora(budget.BudgetPatcher.of(model, budget_for(model, kept)), *adapted)))
    expected = [f"Streamed weights with a LoRA are re-patched every step (weights: {count}); resident weights are "
                "patched once."]
    assert [line for line in told if "LoRA" in line] == (expected if count else [])
    told.clear()
    sample(reporting_to(told.append, with_lora(model, *adapted)))
    assert not any("LoRA" in line for line in told)
    unload()


def test_a_lora_on_a_quantised_block_that_streams(budget, load):
    """It is merged as the block passes, not rounded to the block's format as on one that stays. Asked of the weights:
    in a picture the rounding of activations is as large, and depends on the processor."""
    model = load("int8 (ConvRot)")
    layer = model.model.diffusion_model.transformer_blocks[0].attn.to_q
    adapted, stored = with_lora(model, *LORA), layer.weight.dequantize()
    up, down = adapted.patches[f"diffusion_model.{LORA[1]}"][0][1].weights[:2]
    right = stored + up @ down
    sample(adapted)
    rounding = (weight_in_use(layer) - right).norm() / (up @ down).norm()
    unload()
    sample(budget.BudgetPatcher.of(adapted, budget_for(model, 0)))
    torch.testing.assert_close(weight_in_use(layer), right, rtol=0, atol=1e-5)
    assert 0.05 < rounding < 0.5
    unload()


def weight_in_use(layer) -> torch.Tensor:
    """What ComfyUI's layer would multiply with now, fp32."""
    import comfy.ops
    from comfy.quant_ops import QuantizedTensor
    weight = comfy.ops.cast_bias_weight(layer, torch.zeros(1, 1))[0]
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight


def test_patches_that_are_forced_in_are_not_applied_again(budget, load):
    """As other packs do, to save a model."""
    model = load("fp32")
    expected = sample(with_lora(model, *LORA))
    budgeted = with_lora(budget.BudgetPatcher.of(model, budget_for(model, 0)), *LORA)
    budgeted.partially_load(budgeted.load_device, 1e32, force_patch_weights=True)
    assert torch.allclose(sample(budgeted), expected, atol=1e-5)
    unload()


def test_the_budget_holds_whatever_comfyui_offers(budget, load):
    model = load()
    size = budget_for(model, 3)
    budgeted = budget.BudgetPatcher.of(model, size)
    sample(budgeted)
    assert budgeted.plan.on_device <= size
    assert resident_bytes(model) == budgeted.plan.resident == budgeted.loaded_size()
    assert budgeted.model_size() == size
    unload()


def resident_bytes(model) -> int:
    """Bytes of the layers that ComfyUI's own flag says are on the device."""
    return sum(offload.size_of(entry) for entry in offload.entries(model.model)
               if getattr(entry.module, "comfy_patched_weights", False))


def test_comfyui_can_have_some_of_it_back(budget, load):
    """As when the VAE needs room: blocks leave, and come back when there is room again."""
    model = load()
    expected = sample(model)
    budgeted = budget.BudgetPatcher.of(model, math.inf)
    sample(budgeted)
    assert not budgeted.plan.streamed
    size = budgeted.plan.sizes[0]
    freed = budgeted.partially_unload(budgeted.offload_device, 3 * size)
    assert freed >= 3 * size and len(budgeted.plan.streamed) >= 5  # two of them for the buffers
    assert resident_bytes(model) == budgeted.plan.resident == budgeted.loaded_size()
    budgeted.partially_load(budgeted.load_device, size)
    assert torch.equal(sample(budgeted), expected)
    assert not budgeted.plan.streamed


def test_comfyuis_dynamic_patcher_hands_over_a_copy(budget, load):
    """Its models place their own weights; the budget gets the plain stand-in that ComfyUI makes of the same file."""
    from comfy.model_patcher import ModelPatcher

    class Dynamic(ModelPatcher):
        def is_dynamic(self):
            return True

    model = with_lora(load("fp32"), *LORA)
    expected = sample(model)
    size = budget_for(model, 3)
    model.__class__ = Dynamic
    first, budgeted = (budget.BudgetPatcher.of(model.clone(), size) for _ in range(2))
    assert budgeted.model is first.model  # made once, however many LoRAs come and go before it
    assert budgeted.model is not model.model and not budgeted.is_dynamic()
    assert torch.allclose(sample(budgeted), expected, atol=1e-5)
    assert len(budgeted.plan.streamed) == 5 and model.model.plan is None
    unload()


def test_a_block_more_or_less_is_not_worth_a_move(budget, load):
    model = load()
    budgeted = budget.BudgetPatcher.of(model, math.inf)
    plan = budgeted.plan_for(math.inf)
    budgeted.partially_load(budgeted.load_device, plan.keeping(3).on_device)
    before = budgeted.plan
    assert len(before.streamed) == 5
    for room, same in ((plan.keeping(4).on_device, True), (plan.keeping(6).on_device, False)):
        budgeted.load(budgeted.load_device, room)
        assert (budgeted.plan == before) is same
    unload()
    budgeted.detach()


def test_buffers_are_given_back_after_a_run_and_after_a_cancel(budget, load):
    import comfy.model_management
    model = load()
    budgeted = budget.BudgetPatcher.of(model, budget_for(model, 0))
    sample(budgeted)
    assert not model.model.diffusion_model.streamer.buffers
    layer = model.model.diffusion_model.transformer_blocks[5].img_mlp

    def cancel(*args):
        comfy.model_management.interrupt_current_processing()

    handle = layer.register_forward_hook(cancel)
    own = [entry.parameter for entry in offload.entries(model.model)]
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(budgeted)
    handle.remove()
    assert not model.model.diffusion_model.streamer.buffers
    assert all(now.parameter is before for now, before in zip(offload.entries(model.model), own, strict=True))
    unload()


# ---------------------------------------------------------------- hooks

@pytest.mark.parametrize("place", ["VRAM", "RECOMPUTE"])
def test_a_hook_leaves_no_trace_even_when_a_run_is_cancelled(budget, load, place):
    """ComfyUI takes hooks back while the traceback of a cancelled pass still holds a block."""
    import comfy.model_management

    from qwen_image_2.nodes.bridge.keys import CACHE_LOCATION_KEY
    from qwen_image_2.nodes.bridge.runtime.prefix_placement import CacheLocation
    model = load("fp32")
    plain, own = sample(model), queries(model)
    expected = sample(model, hooks=hook_lora(model))
    assert not torch.allclose(expected, plain, atol=1e-2)
    budgeted = budget.BudgetPatcher.of(model, budget_for(model, 0))
    budgeted.model_options["transformer_options"][CACHE_LOCATION_KEY] = CacheLocation[place]
    assert torch.allclose(sample(budgeted, hooks=hook_lora(model)), expected, atol=1e-5)
    layer = model.model.diffusion_model.transformer_blocks[5].img_mlp
    handle = layer.register_forward_hook(lambda *_: comfy.model_management.interrupt_current_processing())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(budgeted, hooks=hook_lora(model))
    handle.remove()
    unload()
    assert all(map(torch.equal, queries(model), own))
