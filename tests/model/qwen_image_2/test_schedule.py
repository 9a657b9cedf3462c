"""Schedules against diffusers' scheduler."""
import numpy as np
import pytest
import torch

from qwen_image_2.model.qwen_image_2 import schedule
from qwen_image_2.model.runtime.sigmas import tail, truncate_by_denoise
from qwen_image_2.tests import reference

BOUND = 1e-6


def sigmas_of_reference(scheduler, tokens: int, times) -> torch.Tensor:
    mu = 0.5 + (0.9 - 0.5) * (tokens - 256) / (8192 - 256)
    scheduler.set_timesteps(sigmas=list(times), mu=mu)
    return scheduler.sigmas


@pytest.mark.parametrize("side", [512, 1024, 2048])
@pytest.mark.parametrize("steps", [4, 8, 25, 40])
def test_base_schedule_equals_the_reference(side, steps):
    tokens = (side // 16) ** 2
    expected = sigmas_of_reference(reference.scheduler(), tokens, np.linspace(1, 1 / steps, steps))
    found = schedule.SHIFT.sigmas(steps, tokens)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < BOUND
    assert found[-2] == pytest.approx(0.02, abs=BOUND) and found[-1] == 0


@pytest.mark.filterwarnings("ignore:invalid value")
def test_one_step_goes_straight_to_the_picture():
    # The reference divides 0 by 0 here and samples NaN.
    assert not torch.isfinite(sigmas_of_reference(reference.scheduler(), 1024, [1.0])).all()
    assert schedule.SHIFT.sigmas(1, 1024).tolist() == [1, 0]


@pytest.mark.parametrize("side, mu", [(512, 0.5387), (1024, 0.6936), (2048, 1.3129)])
def test_shift_grows_with_the_picture(side, mu):
    assert schedule.SHIFT.mu((side // 16) ** 2) == pytest.approx(mu, abs=1e-4)


def test_turbo_schedule_is_the_checkpoints_own():
    scheduler = reference.scheduler()
    scheduler.register_to_config(use_dynamic_shifting=False, shift_terminal=None)
    scheduler.set_timesteps(sigmas=[1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568])
    assert (schedule.turbo_sigmas() - scheduler.sigmas).abs().max() < BOUND
    assert torch.equal(schedule.PRESETS["Turbo 8"](256), schedule.PRESETS["Turbo 8"](16384))


@pytest.mark.parametrize("preset, times", [
    ("Lightning LoRA 4", (1, 0.75, 0.5, 0.25)),
    ("Viggle LoRA 4", (1, 0.75, 0.5, 0.25)),
    ("Viggle LoRA 6", (1, 0.9375, 0.875, 0.75, 0.5, 0.25)),
])
def test_few_step_loras_shift_without_stretch(preset, times):
    scheduler = reference.scheduler()
    scheduler.register_to_config(shift_terminal=None)
    expected = sigmas_of_reference(scheduler, 4096, times)
    assert (schedule.PRESETS[preset](4096) - expected).abs().max() < BOUND


def test_pruna_presets_do_not_depend_on_size():
    assert schedule.PRESETS["Pruna LoRA 5"](256).tolist() == pytest.approx([1, 0.94, 6 / 7, 2 / 3, 0.4, 0])
    assert schedule.PRESETS["Pruna LoRA 8"](16384).tolist() == pytest.approx(
        [1, 14 / 15, 6 / 7, 10 / 13, 2 / 3, 6 / 11, 0.4, 2 / 9, 0])


@pytest.mark.parametrize("preset", schedule.PRESETS)
def test_every_preset_falls_from_noise_to_the_picture(preset):
    sigmas = schedule.PRESETS[preset](4096)
    assert sigmas[0] == 1 and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_denoise_keeps_the_end_of_the_schedule():
    whole = schedule.SHIFT.sigmas(40, 4096)
    part = truncate_by_denoise(lambda n: schedule.SHIFT.sigmas(n, 4096), 20, 0.5)
    assert torch.equal(part, whole[-21:])
    assert torch.equal(tail(whole, 0.25), whole[-11:])
    assert torch.equal(tail(whole, 1), whole)
    assert len(tail(schedule.turbo_sigmas(), 0.01)) == 2


@pytest.mark.parametrize("call", [
    lambda: schedule.SHIFT.sigmas(0, 4096),
    lambda: tail(schedule.turbo_sigmas(), 0),
    lambda: truncate_by_denoise(lambda n: schedule.SHIFT.sigmas(n, 4096), 20, 1.5),
])
def test_impossible_requests_are_refused(call):
    with pytest.raises(ValueError, match="Steps must be at least 1|denoise must be"):
        call()
