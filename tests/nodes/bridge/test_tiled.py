"""Joint steps over tiles: no seam, no order, one prefix, and what stays in memory."""
import random
from types import SimpleNamespace

import pytest
import torch

from qwen_image_2.model.images import tiles
from qwen_image_2.tests.nodes.bridge.test_control import applied, bridge, control_file, loaded  # noqa: F401
from qwen_image_2.tests.nodes.test_sampler import prompt
from qwen_image_2.tests.reference import error

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")
SIGMAS = torch.tensor([0.3, 0.2, 0.1, 0.0])
WHOLE = tiles.Tiling(128, 192, (0,), (0,))
FOUR = tiles.Tiling(96, 128, (0, 32), (0, 64))


@pytest.fixture
def tiled(comfyui):
    from qwen_image_2.nodes.bridge import tiled
    return tiled


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sampled(tiled, model, tiling=FOUR, cfg: float = 1.0, own_reference: bool = False, report=None, **more):
    guider = tiled_guider(model, cfg, report)
    source = drawn(1, 1, 64, 8, 12)
    return tiled.sample_by_tiles(guider, {"samples": source, **more}, drawn(2, 1, 64, 8, 12), SIGMAS, 0, tiling,
                                 own_reference)


def tiled_guider(model, cfg: float = 1.0, report=None):
    from qwen_image_2.nodes.bridge.guider import guider_for
    return guider_for(model, prompt(0), prompt(1), cfg, report)


def plain(model, cfg: float = 1.0) -> torch.Tensor:
    """Image-to-image of the same sigmas."""
    from qwen_image_2.nodes.bridge.guider import sample
    return sample(tiled_guider(model, cfg), {"samples": drawn(1, 1, 64, 8, 12)}, drawn(2, 1, 64, 8, 12), SIGMAS, 0)


@pytest.mark.parametrize("seed", range(20))
def test_velocities_that_do_not_depend_on_the_tile_have_no_seam(tiled, seed):
    rng = random.Random(seed)
    width, height, side = (32 * rng.randint(low, high) for low, high in ((4, 24), (4, 24), (3, 9)))
    tiling = tiles.tiling(width, height, side, 64, 32 * rng.randint(1, side // 64)).divided(16)
    velocity = drawn(seed, 1, 64, 1, 1)
    x, sigma = drawn(seed + 100, 1, 64, height // 16, width // 16), torch.tensor([0.4])
    joint = tiled.JointStep(tiling, rng.randint(1, 4))
    found = joint(lambda x, sigma, **_: x - sigma[:, None, None, None] * velocity,
                  {"input": x, "timestep": sigma, "c": {}})
    assert (found - (x - 0.4 * velocity)).abs().max() < 1e-5


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_one_tile_over_everything_is_plain_image_to_image(tiled, model, cfg):
    assert error(sampled(tiled, model, WHOLE, cfg), plain(model, cfg)) < 1e-4
    assert error(sampled(tiled, model, FOUR, cfg), plain(model, cfg)) > 1e-4, "tiles see less than the whole"


def test_the_order_of_tiles_does_not_matter(tiled, model):
    joint = tiled.JointStep(FOUR.divided(16))
    backwards = tiled.JointStep(FOUR.divided(16))
    backwards.tiles.reverse()
    # A prediction that differs from tile to tile.
    def apply_model(x, sigma, **_):
        return x.cumsum(-1).tanh()
    given = {"input": drawn(1, 1, 64, 8, 12), "timestep": torch.tensor([0.4]), "c": {}}
    assert len(joint.tiles) == 4
    assert error(backwards(apply_model, given), joint(apply_model, given)) < 1e-6


@pytest.fixture
def passes(model, monkeypatch):
    """Where each pass over a prefix, and the shape of each pass over targets, is noted."""
    network, seen = type(model.model.diffusion_model), []
    layers, velocity = network.prefix_layers, network._velocity
    monkeypatch.setattr(network, "prefix_layers", lambda self, *args, **kwargs: seen.append("prefix") or layers(
        self, *args, **kwargs))
    monkeypatch.setattr(network, "_velocity", lambda self, x, *args, **kwargs: seen.append(tuple(x.shape)) or velocity(
        self, x, *args, **kwargs))
    return seen


def test_the_prompt_is_computed_once_for_all_tiles_and_steps(tiled, model, passes, monkeypatch):
    monkeypatch.setattr(tiled, "tiles_at_once", lambda model, tiling: 3)
    together = sampled(tiled, model)
    assert passes.count("prefix") == 1
    assert [shape for shape in passes if shape != "prefix"] == [(3, 64, 6, 8), (1, 64, 6, 8)] * 3
    monkeypatch.setattr(tiled, "tiles_at_once", lambda model, tiling: 1)
    assert error(sampled(tiled, model), together) < 1e-5


def test_a_tile_s_own_reference_is_a_prefix_for_each_tile(tiled, model, passes):
    told = []
    with_reference = sampled(tiled, model, own_reference=True, report=told.append)
    assert passes.count("prefix") == 4
    assert error(with_reference, sampled(tiled, model)) > 1e-3
    assert len([line for line in told if "KV cache" in line]) == 1, "said once, not for each tile"


def test_a_control_is_cut_to_each_tile(tiled, bridge, loaded, model, vae, monkeypatch):  # noqa: F811
    one = applied(bridge, loaded, vae)
    controlled = bridge.apply_control(model, one)
    from qwen_image_2.nodes.bridge.guider import sample
    untiled = sample(tiled_guider(controlled), {"samples": drawn(1, 1, 64, 8, 12)}, drawn(2, 1, 64, 8, 12), SIGMAS, 0)
    assert error(sampled(tiled, controlled, WHOLE), untiled) < 1e-4
    assert error(sampled(tiled, model, WHOLE), untiled) > 1e-3, "the control is seen"
    network, seen = type(model.model.diffusion_model), []
    velocity = network._velocity
    monkeypatch.setattr(network, "_velocity", lambda self, *args, controls, **kwargs: seen.append(
        controls[0].controlling.channels) or velocity(self, *args, controls=controls, **kwargs))
    monkeypatch.setattr(tiled, "tiles_at_once", lambda model, tiling: 2)
    sampled(tiled, controlled)
    channels = bridge._channels(one, torch.zeros(1, 64, 8, 12))
    assert torch.equal(torch.cat(seen[:2]), torch.cat([
        channels[..., top:top + 6, left:left + 8] for top in (0, 2) for left in (0, 4)]))


def test_outside_of_a_mask_nothing_changes_and_nothing_is_computed(tiled, model, passes, monkeypatch):
    monkeypatch.setattr(tiled, "tiles_at_once", lambda model, tiling: 1)
    mask = torch.zeros(1, 1, 8, 12)
    mask[..., :2, :2] = 1
    found = sampled(tiled, model, noise_mask=mask)
    assert len([shape for shape in passes if shape != "prefix"]) == 3, "one tile of four, in three steps"
    changed = (found - drawn(1, 1, 64, 8, 12)).abs().amax((0, 1)) > 1e-4
    assert changed[:2, :2].any() and not changed[2:].any() and not changed[:, 2:].any()


def test_memory_is_asked_for_a_pass_and_not_for_the_picture(tiled, model):
    asked = []
    state = model.model.run_state
    whole = model.model.memory_required((1, 64, 256, 256))
    model.model.begin_run(0, 1, pass_shape=(2, 64, 64))
    try:
        asked = model.model.memory_required((1, 64, 256, 256))
    finally:
        model.model.end_run()
    assert asked == whole // 8 and model.model.run_state.pass_shape is None is state.pass_shape


def test_cancelling_stops_within_a_tile(tiled, monkeypatch):
    import comfy.model_management
    done = []
    joint = tiled.JointStep(FOUR.divided(16), advance=lambda: done.append(
        comfy.model_management.interrupt_current_processing()))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        joint(lambda x, sigma, **_: x, {"input": drawn(1, 1, 64, 8, 12), "timestep": torch.tensor([0.4]), "c": {}})
    assert len(done) == 1


def test_the_bar_moves_with_every_pass(tiled, model, monkeypatch):
    import comfy.utils
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, node_id=None: seen.append(
        (value, total)))
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0)
    monkeypatch.setattr(tiled, "tiles_at_once", lambda model, tiling: 1)
    previews = []
    monkeypatch.setattr(tiled.latent_preview, "get_previewer", lambda *_: SimpleNamespace(
        decode_latent_to_preview_image=lambda form, x0: previews.append(x0.shape[-2:]) or (form, None, None)))
    sampled(tiled, model, cfg=3.0)
    assert seen[-1] == (24, 24) and len({value for value, _ in seen}) == 24
    assert previews == [(8, 12)] * 3, "of the whole picture, after each step"


# ---------------------------------------------------------------- Qwen-Image 1.x

@pytest.fixture
def model_1(comfyui, tmp_path):
    import safetensors.torch

    from qwen_image_2.nodes.bridge.loading import load_model
    from qwen_image_2.tests import reference_1
    path = tmp_path / "qwen_image_bf16.safetensors"
    safetensors.torch.save_file({name: value.clone() for name, value in reference_1.transformer().state_dict().items()},
                                path)
    return load_model(path, path.name, "auto")


def test_the_other_family_goes_by_tiles_too(tiled, model_1):
    from qwen_image_2.nodes.bridge.guider import guider_for, sample
    positive = [[drawn(0, 1, 11, model_1.model.spec.context_dim), {}]]
    latent, noise = {"samples": drawn(1, 1, 16, 1, 16, 24)}, drawn(2, 1, 16, 1, 16, 24)
    plain = sample(guider_for(model_1, positive, None, 1.0), latent, noise, SIGMAS, 0)
    whole, tiles_of_it = (tiled.sample_by_tiles(guider_for(model_1, positive, None, 1.0), latent, noise, SIGMAS, 0,
                                                tiling) for tiling in (WHOLE, FOUR))
    assert error(whole, plain) < 1e-4 < error(tiles_of_it, plain)
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., :4, :4] = 1
    found = tiled.sample_by_tiles(guider_for(model_1, positive, None, 1.0), latent | {"noise_mask": mask}, noise,
                                  SIGMAS, 0, FOUR)
    changed = (found - latent["samples"]).abs().amax((0, 1, 2)) > 1e-4
    assert changed[:4, :4].any() and not changed[4:].any() and not changed[:, 4:].any()
