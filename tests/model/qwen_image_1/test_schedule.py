"""Sigmas of Qwen-Image 1.x against diffusers' scheduler with the published settings."""
import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from qwen_image_2.model.qwen_image_1 import schedule
from qwen_image_2.model.runtime.sigmas import PIXELS_PER_TOKEN
from qwen_image_2.tests.reference import scheduler as base_scheduler

BOUND = 1e-6
# Pixels, and mu as measured for the reference's pipeline (FACTS: section 3).
SIZES = [(512, 512, .5387), (1024, 1024, .6935), (1664, 928, .7911), (1472, 1104, .8071), (1584, 1056, .8164),
         (1328, 1328, .8343), (2048, 2048, 1.3129)]


def reference(steps: int, mu: float, scheduler) -> torch.Tensor:
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
    return scheduler.sigmas


@pytest.mark.parametrize(("width", "height", "mu"), SIZES)
@pytest.mark.parametrize(("preset", "steps"), [("Quality 50", 50), ("Quality 40", 40), ("Fast 25", 25)])
def test_base_presets_are_the_reference_s(width, height, mu, preset, steps):
    tokens = width * height // PIXELS_PER_TOKEN
    assert schedule.SHIFT.mu(tokens) == pytest.approx(mu, abs=1e-4)
    expected = reference(steps, schedule.SHIFT.mu(tokens), base_scheduler())
    assert (schedule.PRESETS[preset](tokens) - expected).abs().max() < BOUND


@pytest.mark.parametrize("preset", sorted(schedule.LORA_PRESETS))
def test_few_step_loras_have_a_fixed_shift_and_no_stretch(preset):
    """lightx2v's script: base and maximal shift are log 3, and there is no terminal sigma."""
    steps = int(preset.split(" LoRA ")[1].split()[0])
    lightning = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type="exponential", base_shift=math.log(3), max_shift=math.log(3),
        base_image_seq_len=256, max_image_seq_len=8192, shift_terminal=None)
    expected = reference(steps, math.log(3), lightning)
    for tokens in (256, 16384):
        assert (schedule.PRESETS[preset](tokens) - expected).abs().max() < BOUND


def test_lightning_s_sigmas_as_its_model_card_has_them():
    assert schedule.lora_sigmas(4).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert schedule.lora_sigmas(8).tolist() == pytest.approx([1, .95455, .9, .83333, .75, .64286, .5, .3, 0], abs=1e-5)


@pytest.mark.parametrize(("side", "mu"), [(640, 2.5), (1024, 4.0)])
def test_layered_shifts_by_the_root_of_its_tokens(side, mu):
    expected = reference(50, mu, base_scheduler())
    assert (schedule.layered_sigmas(50, (side // 16) ** 2) - expected).abs().max() < BOUND
