"""A step that runs out of memory: what is given up, what is said, and the same picture."""
import pytest
import torch

from qwen_image_2.tests.nodes.bridge.runtime.runs import (
    LORA,
    TARGET_TOKENS,
    budget_for,
    hook_lora,
    queries,
    reporting_to,
    sample,
    unload,
    with_lora,
)

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


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
    model = load()
    expected = sample(model)
    told = []
    budgeted = reporting_to(told.append, budget.BudgetPatcher.of(model, budget_for(model, 4)))
    short_of_memory(model, 1)
    assert torch.equal(sample(budgeted), expected)
    assert len(model.model.plan.streamed) == 6
    relief = next(sentence for sentence in told if sentence.startswith("Out of memory"))
    assert "2 instead of 4 blocks" in relief and "KV cache" in relief
    # once: on a CPU, RAM is the place that it was in
    assert sum("KV cache of prompt and references" in sentence for sentence in told) == 1
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
    from qwen_image_2.nodes.bridge.keys import CACHE_LOCATION_KEY
    from qwen_image_2.nodes.bridge.runtime.prefix_placement import CacheLocation
    model, told = load(), []
    if kept is not None:
        model = budget.BudgetPatcher.of(model, budget_for(model, kept))
    model = reporting_to(told.append, model)
    model.model_options["transformer_options"][CACHE_LOCATION_KEY] = CacheLocation[place]
    return model, told


@pytest.mark.parametrize(("kept", "place", "words"), [
    (None, "VRAM", "the KV cache moved out of VRAM."),
    (0, "VRAM", "the KV cache moved out of VRAM."),
    (5, "RECOMPUTE", "2 instead of 5 blocks in VRAM."),
    (1, "RECOMPUTE", "0 instead of 1 blocks in VRAM.")])
def test_what_the_sentence_says_is_what_has_been_given_up(budget, load, short_of_memory, kept, place, words):
    model, told = short(budget, load, kept, place)
    expected = sample(load())
    short_of_memory(model, 1)
    assert torch.equal(sample(model), expected)
    assert [sentence for sentence in told if sentence.startswith("Out of memory")] == [
        f"Out of memory. Retrying this step with {words}"]
    unload()


@pytest.mark.parametrize("kept", [None, 0])
def test_a_step_with_nothing_to_give_up_is_not_repeated(budget, load, short_of_memory, tries, kept):
    model, told = short(budget, load, kept, "RECOMPUTE")
    short_of_memory(model, 1)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="use a smaller image, a smaller batch") as raised:
        sample(model)
    assert len(tries) == 1 and not any("Retrying" in sentence for sentence in told)
    assert "lower" not in str(raised.value)
    assert ("add a Memory Budget node" in str(raised.value)) is (kept is None)
    unload()


@pytest.mark.parametrize("budgeted", [True, False])
def test_the_second_time_a_sentence_names_the_setting(budget, load, short_of_memory, budgeted):
    model = load()
    if budgeted:
        model = budget.BudgetPatcher.of(model, budget_for(model, 4))
    short_of_memory(model, 2)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="VRAM for weights") as raised:
        sample(model)
    assert ("lower" in str(raised.value)) is budgeted and len(str(raised.value)) < 400
    sample(model)  # which starts afresh
    unload()


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
