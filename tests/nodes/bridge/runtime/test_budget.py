"""A budget for the weights: the very same pictures, whatever streams; LoRAs, quantised weights, other patchers."""
import math

import pytest
import torch

from qwen_image_2.model.runtime import offload


@pytest.fixture(autouse=True)
def as_comfyui_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def budget(comfyui):
    from qwen_image_2.nodes.bridge.runtime import budget
    return budget


@pytest.fixture(params=["as stored", "fp8", "int8 (ConvRot)", "4-bit (nvfp4)"])
def weight_format(request):
    return request.param


@pytest.fixture(scope="module")
def load(comfyui):
    """Loads the miniature: eight blocks."""
    from qwen_image_2.nodes.bridge import loading
    from qwen_image_2.nodes.bridge.files import folders, miniature

    def of_format(weight_format: str = "as stored"):
        path = folders.resolve(folders.TRANSFORMER, miniature.NAME)
        return loading.load_model(path, miniature.NAME, "base", weight_format)
    return of_format


def with_lora(model, *names: str):
    """A LoRA of rank 4 on some matrices; drawn with a seed."""
    from comfy.weight_adapter import LoRAAdapter
    generator, patches = torch.Generator().manual_seed(3), {}
    for name in names:
        rows, columns = model.model.diffusion_model.get_submodule(name.removesuffix(".weight")).weight.shape
        up, down = (torch.randn(*shape, generator=generator) * 0.05 for shape in ((rows, 4), (4, columns)))
        patches[f"diffusion_model.{name}"] = LoRAAdapter(set(), (up, down, None, None, None, None))
    clone = model.clone()
    clone.add_patches(patches)
    return clone


TARGET_TOKENS = 4 * 6
LORA = ("img_in.weight", "transformer_blocks.0.attn.to_q.weight", "transformer_blocks.3.img_mlp.out.weight",
        "transformer_blocks.6.attn.to_v.weight")


def hook_lora(model):
    """A LoRA hook, as ComfyUI's Create Hook LoRA makes it, on a matrix of every block."""
    import comfy.hooks
    generator, state = torch.Generator().manual_seed(4), {}
    for number, block in enumerate(model.model.diffusion_model.transformer_blocks):
        rows, columns = block.attn.to_q.weight.shape
        name = f"diffusion_model.transformer_blocks.{number}.attn.to_q"
        state[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.05
        state[f"{name}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.05
    return comfy.hooks.create_hook_lora(state, 1.0, 0.0)


def sample(model, steps: int = 2, cfg: float = 1.0, hooks=None):
    """What a core sampler makes of it."""
    import comfy.sample
    import comfy.samplers
    width = model.model.spec.context_dim
    text = torch.randn(1, 12, width, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 64, 4, 6, generator=torch.Generator().manual_seed(1))
    sigmas = torch.linspace(1, 0, steps + 1)
    positive = [[text, {"hooks": hooks} if hooks else {}]]
    return comfy.sample.sample_custom(model, noise, cfg, comfy.samplers.sampler_object("euler"), sigmas,
                                      positive, [[text[:, :9], {}]], torch.zeros_like(noise), seed=0)


def budget_for(model, kept: int) -> int:
    """Bytes that are just enough for so many blocks."""
    from qwen_image_2.nodes.bridge.runtime.budget import BudgetPatcher
    return BudgetPatcher.of(model, math.inf).plan_for(math.inf).keeping(kept).on_device


def unload():
    import comfy.model_management
    comfy.model_management.unload_all_models()


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
    from qwen_image_2.nodes.bridge.keys import PLACE_KEY
    from qwen_image_2.nodes.bridge.runtime.prefix_placement import Place
    model = load()
    expected = sample(model, cfg=3.0)
    budgeted = budget.BudgetPatcher.of(model, budget_for(model, kept))
    budgeted.model_options["transformer_options"][PLACE_KEY] = Place.NOWHERE
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


@pytest.mark.parametrize(("kept", "adapted", "count"), [
    (4, LORA, 1), (0, LORA, 3), (0, ("img_in.weight",), 0), (0, (), 0)])
def test_loras_that_are_merged_in_every_pass_are_reported(budget, load, kept, adapted, count):
    """img_in is in no block and stays; of four kept blocks two are among the LoRA's three."""
    from qwen_image_2.nodes.bridge.qwen_image_2 import reporting_to
    model, told = load("fp32"), []
    sample(reporting_to(told.append, with_lora(budget.BudgetPatcher.of(model, budget_for(model, kept)), *adapted)))
    expected = [f"LoRAs are merged anew in every pass where weights stream (matrices: {count}), and only once where "
                f"they stay on the device."]
    assert [line for line in told if "LoRAs" in line] == (expected if count else [])
    told.clear()
    sample(reporting_to(told.append, with_lora(model, *adapted)))
    assert not any("LoRAs" in line for line in told)
    unload()


def test_a_lora_on_a_quantised_block_that_streams(budget, load):
    """It is merged as the block passes, not rounded to the block's format as on one that stays."""
    model, exact = load("int8 (ConvRot)"), load("fp32")
    without, right = sample(exact), sample(with_lora(exact, *LORA))
    stays = sample(with_lora(model, *LORA))
    streams = sample(with_lora(budget.BudgetPatcher.of(model, budget_for(model, 0)), *LORA))
    assert (streams - right).norm() < (stays - right).norm() < (without - right).norm() / 2
    unload()


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
    assert _settled(model) == budgeted.plan.resident == budgeted.loaded_size()
    assert budgeted.model_size() == size
    unload()


def _settled(model) -> int:
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
    assert _settled(model) == budgeted.plan.resident == budgeted.loaded_size()
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
    assert not model.model.diffusion_model.streamer.slots
    layer = model.model.diffusion_model.transformer_blocks[5].img_mlp

    def cancel(*args):
        comfy.model_management.interrupt_current_processing()

    handle = layer.register_forward_hook(cancel)
    own = [entry.parameter for entry in offload.entries(model.model)]
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(budgeted)
    handle.remove()
    assert not model.model.diffusion_model.streamer.slots
    assert all(now.parameter is before for now, before in zip(offload.entries(model.model), own, strict=True))
    assert not any(prefix._cache for prefix in model.model.prefixes)
    unload()


# ---------------------------------------------------------------- hooks

def queries(model) -> list[torch.Tensor]:
    return [block.attn.to_q.weight.clone() for block in model.model.diffusion_model.transformer_blocks]


@pytest.mark.parametrize("place", ["DEVICE", "NOWHERE"])
def test_a_hook_leaves_no_trace_even_when_a_run_is_cancelled(budget, load, place):
    """ComfyUI takes hooks back while the traceback of a cancelled pass still holds a block."""
    import comfy.model_management

    from qwen_image_2.nodes.bridge.keys import PLACE_KEY
    from qwen_image_2.nodes.bridge.runtime.prefix_placement import Place
    model = load("fp32")
    plain, own = sample(model), queries(model)
    expected = sample(model, hooks=hook_lora(model))
    assert not torch.allclose(expected, plain, atol=1e-2)
    budgeted = budget.BudgetPatcher.of(model, budget_for(model, 0))
    budgeted.model_options["transformer_options"][PLACE_KEY] = Place[place]
    assert torch.allclose(sample(budgeted, hooks=hook_lora(model)), expected, atol=1e-5)
    layer = model.model.diffusion_model.transformer_blocks[5].img_mlp
    handle = layer.register_forward_hook(lambda *_: comfy.model_management.interrupt_current_processing())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(budgeted, hooks=hook_lora(model))
    handle.remove()
    unload()
    assert all(map(torch.equal, queries(model), own))


def test_a_step_is_repeated_with_its_hooks(budget, load, short_of_memory):
    model = load("fp32")
    own, adapted = queries(model), with_lora(model, *LORA)
    expected = sample(adapted, hooks=hook_lora(model))
    budgeted = budget.BudgetPatcher.of(adapted, budget_for(model, 4))
    short_of_memory(model, 1)
    assert torch.allclose(sample(budgeted, hooks=hook_lora(model)), expected, atol=1e-4)
    assert len(model.model.plan.streamed) == 6
    unload()
    assert all(map(torch.equal, queries(model), own))


# ---------------------------------------------------------------- out of memory

@pytest.fixture
def short_of_memory(monkeypatch):
    """Makes the third block of a model run out of memory over the target, as often as told."""
    def happen(model, times: int):
        layer = model.model.diffusion_model.transformer_blocks[2].img_mlp
        forward, left = layer.forward, [times]

        def failing(x):
            if left[0] and x.shape[1] == TARGET_TOKENS:
                left[0] -= 1
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return forward(x)

        monkeypatch.setattr(layer, "forward", failing)
    return happen


def test_a_step_that_runs_out_of_memory_is_repeated_with_less(budget, load, short_of_memory):
    from qwen_image_2.nodes.bridge.qwen_image_2 import reporting_to
    model = load()
    expected = sample(model)
    told = []
    budgeted = reporting_to(told.append, budget.BudgetPatcher.of(model, budget_for(model, 4)))
    short_of_memory(model, 1)
    assert torch.equal(sample(budgeted), expected)
    assert len(model.model.plan.streamed) == 6
    relief = next(sentence for sentence in told if sentence.startswith("Out of memory"))
    assert "2 blocks instead of 4" in relief and "keys and values" in relief
    assert sum("tokens of prompt" in sentence for sentence in told) == 1  # on a CPU, RAM is the place that it was in
    unload()


def test_a_model_without_a_budget_gets_a_second_try_too(load, short_of_memory):
    model = load()
    expected = sample(model)
    short_of_memory(model, 1)
    assert torch.equal(sample(model), expected)


@pytest.fixture
def tries(monkeypatch):
    """Counts the steps that ComfyUI's part of the model is asked for."""
    import comfy.model_base
    tries, apply = [], comfy.model_base.BaseModel._apply_model
    monkeypatch.setattr(comfy.model_base.BaseModel, "_apply_model",
                        lambda *args, **kwargs: tries.append(1) or apply(*args, **kwargs))
    return tries


def short(budget, load, kept: int | None, place: str):
    """(A model with so many blocks within its budget, None without one, what it tells)."""
    from qwen_image_2.nodes.bridge.keys import PLACE_KEY
    from qwen_image_2.nodes.bridge.qwen_image_2 import reporting_to
    from qwen_image_2.nodes.bridge.runtime.prefix_placement import Place
    model, told = load(), []
    if kept is not None:
        model = budget.BudgetPatcher.of(model, budget_for(model, kept))
    model = reporting_to(told.append, model)
    model.model_options["transformer_options"][PLACE_KEY] = Place[place]
    return model, told


@pytest.mark.parametrize(("kept", "place", "words"), [
    (None, "DEVICE", "less: keys and values of prompt and references leave video memory."),
    (0, "DEVICE", "less: keys and values of prompt and references leave video memory."),
    (5, "NOWHERE", "less: 2 blocks instead of 5 stay on the device."),
    (1, "NOWHERE", "less: 0 blocks instead of 1 stay on the device.")])
def test_what_the_sentence_says_is_what_has_been_given_up(budget, load, short_of_memory, kept, place, words):
    model, told = short(budget, load, kept, place)
    expected = sample(load())
    short_of_memory(model, 1)
    assert torch.equal(sample(model), expected)
    assert [sentence for sentence in told if sentence.startswith("Out of memory")] == [
        f"Out of memory in a step, which is repeated with {words}"]
    unload()


@pytest.mark.parametrize("kept", [None, 0])
def test_a_step_with_nothing_to_give_up_is_not_repeated(budget, load, short_of_memory, tries, kept):
    model, told = short(budget, load, kept, "NOWHERE")
    short_of_memory(model, 1)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="a smaller picture, a smaller batch") as raised:
        sample(model)
    assert len(tries) == 1 and not any("repeated" in sentence for sentence in told)
    assert "lower" not in str(raised.value)
    assert ("put Memory Budget" in str(raised.value)) is (kept is None)
    unload()


@pytest.mark.parametrize("budgeted", [True, False])
def test_the_second_time_a_sentence_names_the_setting(budget, load, short_of_memory, budgeted):
    model = load()
    if budgeted:
        model = budget.BudgetPatcher.of(model, budget_for(model, 4))
    short_of_memory(model, 2)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="vram_for_weights") as raised:
        sample(model)
    assert ("lower" in str(raised.value)) is budgeted and len(str(raised.value)) < 400
    sample(model)  # which starts afresh
    unload()


# ---------------------------------------------------------------- where keys and values are kept

@pytest.mark.parametrize(("choice", "words"), [("automatic", "kept beside the model."), ("RAM", "kept beside"),
                                               ("recompute", "computed anew in every step.")])
def test_the_place_of_keys_and_values_is_the_users_choice(load, choice, words):
    from qwen_image_2.nodes.bridge.keys import PLACE_KEY
    from qwen_image_2.nodes.bridge.qwen_image_2 import reporting_to
    from qwen_image_2.nodes.memory import PLACES
    model, told = load(), []
    expected = sample(model)
    chosen = reporting_to(told.append, model)
    chosen.model_options["transformer_options"][PLACE_KEY] = PLACES[choice]
    assert torch.equal(sample(chosen), expected)
    assert words in told[0]
