"""A budget that a model shares with its control networks: whatever streams, the very same pictures."""
import math

import pytest
import torch
from safetensors.torch import save_file

from qwen_image_2.messages import Refusal
from qwen_image_2.model.qwen_image_2.control import Control
from qwen_image_2.model.qwen_image_2.spec import ControlSpec
from qwen_image_2.tests.nodes.bridge.runtime.runs import TARGET_TOKENS, queries, reporting_to, sample, unload
from qwen_image_2.tools import tiny

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


@pytest.fixture
def model(load):
    return load("fp32")


@pytest.fixture
def controls(model, tmp_path):
    """Two networks, of four and of three blocks beside the miniature's eight."""
    from qwen_image_2.nodes.bridge.control import load_control
    loaded = []
    for blocks in (4, 3):
        path = tmp_path / f"{blocks}.safetensors"
        save_file(tiny.randomise(tiny.shapes(Control(ControlSpec(model.model.spec, blocks))), blocks), path)
        loaded.append(load_control(path, path.name))
    return loaded


class Pictures:
    """Stands for a VAE."""

    def encode(self, pixels):
        return pixels.movedim(-1, 1)[:, :1, ::16, ::16].expand(-1, 64, -1, -1)


def with_controls(model, controls):
    from qwen_image_2.nodes.bridge.control import AppliedControl, apply_control
    for number, control in enumerate(controls):
        picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(number))
        model = apply_control(model, AppliedControl(control, Pictures(), picture, None, None, 0.7, 0.0, 1.0, False))
    return model


def bounds(budget, model) -> tuple[int, int]:
    """Bytes that a MODEL with its controls needs at least and at most."""
    plans = [(each.plan_for(0), each.plan_for(math.inf)) for each in
             (budget.BudgetPatcher.of(model, math.inf), *budget.beside(model))]
    return sum(least.on_device for least, _ in plans), sum(most.on_device for _, most in plans)


@pytest.mark.parametrize("before", [True, False], ids=["budget before the controls", "budget after them"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_streams_draws_what_stays_draws(budget, model, controls, before, share, cfg=3.0):
    controlled = with_controls(model, controls)
    expected = sample(controlled, cfg=cfg)
    least, most = bounds(budget, controlled)
    size = least + share * (most - least) + 1
    budgeted = (with_controls(budget.BudgetPatcher.of(model, size), controls) if before
                else budget.BudgetPatcher.of(controlled, size))
    told = []
    assert torch.equal(sample(reporting_to(told.append, budgeted), cfg=cfg), expected)
    plans = [model.model.plan, *(each.patcher.model.plan for each in controls)]
    assert sum(plan.on_device for plan in plans) <= size
    streamed = [len(plan.streamed) for plan in plans]
    assert {0.0: streamed == [8, 4, 3], 0.5: 0 < sum(streamed) < 15, 1.0: not any(streamed)}[share], streamed
    assert sum("Control network:" in sentence for sentence in told) == sum(map(bool, streamed[1:]))
    assert not any(each.network.streamer.buffers for each in controls if each.network.streamer), "given back"
    unload()
    assert all(each.network.streamer is None for each in controls)
    assert torch.equal(sample(controlled, cfg=cfg), expected)


def test_prefixes_that_are_computed_anew_stream_with_their_targets(budget, model, controls):
    from qwen_image_2.nodes.bridge.keys import CACHE_LOCATION_KEY
    from qwen_image_2.nodes.bridge.runtime.prefix_placement import CacheLocation
    controlled = with_controls(model, controls)
    expected = sample(controlled, cfg=3.0)
    budgeted = budget.BudgetPatcher.of(controlled, bounds(budget, controlled)[0] + 1)
    budgeted.model_options["transformer_options"][CACHE_LOCATION_KEY] = CacheLocation.RECOMPUTE
    assert torch.allclose(sample(budgeted, cfg=3.0), expected, atol=1e-5)
    unload()


def test_the_controls_of_another_model_keep_their_budget(budget, model, controls):
    """One file on two MODELs: each has its own part."""
    controlled = with_controls(model, controls)
    budgeted = budget.BudgetPatcher.of(controlled, bounds(budget, controlled)[0] + 1)
    assert all(math.isinf(each.budget) for each in (*budget.beside(controlled), *(one.patcher for one in controls)))
    parts = [each.budget for each in (budgeted, *budget.beside(budgeted))]
    assert sum(parts) == pytest.approx(budgeted.attachments[budget.BUDGET]) and all(map(math.isfinite, parts))
    later = budgeted.clone()  # as every LoRA makes one
    assert [each.budget for each in (later, *budget.beside(later))] == parts


@pytest.mark.parametrize("before", [True, False])
def test_a_budget_without_room_for_the_controls_is_refused(budget, model, controls, before):
    size = bounds(budget, with_controls(model, controls))[0] - 1
    with pytest.raises(Refusal) as refused:
        if before:
            with_controls(budget.BudgetPatcher.of(model, size), controls)
        else:
            budget.BudgetPatcher.of(with_controls(model, controls), size).check()
    assert refused.value.message.key == "budget_low"


def test_weights_in_ram_are_the_file_s_again_after_a_run_that_fails(budget, model, controls):
    controlled = with_controls(model, controls[:1])
    before = [block.attn.to_q.weight.clone() for block in controls[0].network.control_blocks]
    budgeted = budget.BudgetPatcher.of(controlled, bounds(budget, controlled)[0] + 1)

    def fail(*_):
        raise RuntimeError("stopped")
    with pytest.raises(RuntimeError, match="stopped"):
        sample(budgeted, callback=fail)
    assert len(controls[0].network.streamer.plan.streamed) == 4 and not controls[0].network.streamer.buffers
    found = [block.attn.to_q.weight for block in controls[0].network.control_blocks]
    assert all(map(torch.equal, found, before)) and len(queries(model)) == 8
    unload()


@pytest.mark.parametrize("share", [None, 1.0], ids=["no budget", "a budget for all"])
def test_a_step_out_of_memory_lets_half_of_the_control_blocks_go_too(budget, model, controls, monkeypatch, share):
    controlled, told = with_controls(model, controls), []
    expected = sample(controlled)
    if share is not None:
        controlled = budget.BudgetPatcher.of(controlled, bounds(budget, controlled)[1])
    layer, left = model.model.diffusion_model.transformer_blocks[2].img_mlp, [1]
    forward = layer.forward

    def failing(x):
        if left and x.shape[1] == TARGET_TOKENS:
            left.clear()
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(x)
    monkeypatch.setattr(layer, "forward", failing)
    assert torch.allclose(sample(reporting_to(told.append, controlled)), expected, atol=1e-6)
    streamed = [len(each.patcher.model.plan.streamed) for each in controls]
    assert streamed == [2, 2]  # of four and of three
    before, after = (15, 7) if share is not None else (7, 3)
    assert sum(f"{after} instead of {before} blocks in VRAM" in sentence for sentence in told) == 1
    unload()
