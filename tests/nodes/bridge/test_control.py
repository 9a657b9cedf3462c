"""Control on a MODEL: files, runs, windows, and what stands in memory."""
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from qwen_image_2.messages import Refusal
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.qwen_image_2 import control as networks
from qwen_image_2.model.qwen_image_2.spec import ControlSpec, TransformerSpec
from qwen_image_2.tests.nodes.test_sampler import prompt
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")
BASE = TransformerSpec(layers=2, dim=256, heads=2, mlp_dim=768, context_dim=64)  # the sizes of `model`
SPEC = ControlSpec(BASE, blocks=1)
SIGMAS = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])


@pytest.fixture
def bridge(comfyui):
    from qwen_image_2.nodes.bridge import control
    return control


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    shapes = networks.Control(SPEC, device="meta").state_dict()
    return tiny.randomise(shapes, seed)


def as_published(fused: dict) -> dict:
    """Gate and projection apart, as in the published file."""
    apart = {}
    for name, value in fused.items():
        halves = value.chunk(2) if "gate_up" in name else ()
        apart |= {name.replace("gate_up", half): part.contiguous() for half, part in
                  zip(("gate_layer", "proj"), halves, strict=False)} if halves else {name: value}
    return apart


@pytest.fixture
def control_file(tmp_path):
    path = tmp_path / "union.safetensors"
    save_file({name: value.float() for name, value in as_published(state()).items()}, path)
    return path


@pytest.fixture
def loaded(bridge, control_file):
    return bridge.load_control(control_file, control_file.name)


def applied(bridge, loaded, vae, **changes):
    given = dict(image=torch.rand(1, 50, 70, 3, generator=torch.Generator().manual_seed(0)), mask=None, source=None,
                 strength=0.8, start=0.0, end=1.0, reference_rows=False)
    return bridge.AppliedControl(loaded, vae, **(given | changes))


def sampled(model, images: int = 1, cfg: float = 1.0, report=None) -> torch.Tensor:
    from qwen_image_2.nodes.bridge.guider import guider_for, sample
    guider = guider_for(model, prompt(0), prompt(1), cfg, report)
    noise = torch.randn(images, 64, 4, 6, generator=torch.Generator().manual_seed(1))
    return sample(guider, {"samples": torch.zeros_like(noise)}, noise, SIGMAS, 0)


def by_hand(model, loaded, channels, strength, in_force=lambda sigma: True) -> torch.Tensor:
    """Euler with the plain networks: what ComfyUI's machinery must give."""
    from qwen_image_2.model.qwen_image_2.control import Controlling, prefix_controls
    from qwen_image_2.model.qwen_image_2.prefix_cache import Condition
    network, condition = model.model.diffusion_model, Condition(prompt(0)[0][0])
    x = torch.randn(1, 64, 4, 6, generator=torch.Generator().manual_seed(1))
    for sigma, after in pairwise(SIGMAS):
        used = [Controlling(loaded.network, channels, strength)] if in_force(sigma) else []
        cache = network.encode_prefix(condition, controls=prefix_controls(used))
        velocity = super(type(network), network).forward(x, sigma.view(1), cache, controls=used)
        x = x + (after - sigma) * velocity
    return model.model.process_latent_out(x)


def test_the_published_layout_and_the_fused_one_load_alike(bridge, loaded, tmp_path):
    path = tmp_path / "fused.safetensors"
    save_file(state(), path)
    fused = bridge.load_control(path, path.name)
    assert fused.spec == loaded.spec and fused.spec.blocks == 1
    for name, value in fused.network.state_dict().items():
        assert torch.equal(value, loaded.network.state_dict()[name]), name


def test_a_run_is_the_plain_networks_step_by_step_and_its_prefix_is_computed_once(bridge, loaded, model, vae,
                                                                                  monkeypatch):
    one = applied(bridge, loaded, vae)
    controlled = bridge.apply_control(model, one)
    passes, layers = [], type(model.model.diffusion_model).prefix_layers
    monkeypatch.setattr(type(model.model.diffusion_model), "prefix_layers",
                        lambda self, *args, **kwargs: passes.append(1) or layers(self, *args, **kwargs))
    found = sampled(controlled)
    assert len(passes) == 1
    channels = bridge._channels(one, torch.zeros(1, 64, 4, 6))
    assert error(found, by_hand(model, loaded, channels, 0.8)) < 1e-4
    assert error(sampled(model), found) > 1e-3, "the MODEL before the node has no control"


def test_a_window_computes_the_prefix_once_with_and_once_without(bridge, loaded, model, vae, monkeypatch):
    one = applied(bridge, loaded, vae, start=0.0, end=0.4)
    last = float(model.get_model_object("model_sampling").percent_to_sigma(0.4))
    passes, layers = [], type(model.model.diffusion_model).prefix_layers
    monkeypatch.setattr(type(model.model.diffusion_model), "prefix_layers",
                        lambda self, *args, **kwargs: passes.append(1) or layers(self, *args, **kwargs))
    found = sampled(bridge.apply_control(model, one))
    assert len(passes) == 2
    channels = bridge._channels(one, torch.zeros(1, 64, 4, 6))
    assert error(found, by_hand(model, loaded, channels, 0.8, lambda sigma: sigma >= last)) < 1e-4


def test_two_controls_of_a_file_add_up_and_bring_one_model(bridge, loaded, model, vae):
    one = bridge.apply_control(model, applied(bridge, loaded, vae, strength=0.5))
    both = bridge.apply_control(one, applied(bridge, loaded, vae, strength=0.3))
    assert len(both.get_additional_models()) == 1
    assert error(sampled(both), sampled(bridge.apply_control(model, applied(bridge, loaded, vae)))) < 1e-4


@pytest.mark.parametrize("place", ["RAM", "RECOMPUTE"])
def test_keys_and_values_elsewhere_give_the_same(bridge, loaded, model, vae, place):
    from qwen_image_2.nodes.bridge.keys import CACHE_LOCATION_KEY
    from qwen_image_2.nodes.bridge.runtime.prefix_placement import CacheLocation
    controlled = bridge.apply_control(model, applied(bridge, loaded, vae))
    expected = sampled(controlled, cfg=3.0)
    controlled.model_options["transformer_options"][CACHE_LOCATION_KEY] = CacheLocation[place]
    assert error(sampled(controlled, cfg=3.0), expected) < 1e-5


def test_a_picture_for_each_image_of_a_batch(bridge, loaded, model, vae):
    pictures = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(3))
    both = sampled(bridge.apply_control(model, applied(bridge, loaded, vae, image=pictures)), 2)
    first = sampled(bridge.apply_control(model, applied(bridge, loaded, vae, image=pictures[:1])), 2)
    assert error(both[:1], first[:1]) < 1e-4 < error(both[1:], first[1:])
    with pytest.raises(Refusal, match="batch of 2 for 3 images"):
        sampled(bridge.apply_control(model, applied(bridge, loaded, vae, image=pictures)), 3)


def test_inpainting_shows_the_network_what_is_kept(bridge, loaded, model, vae):
    mask = torch.zeros(1, 64, 96)
    mask[:, :, 48:] = 1
    channels = bridge._channels(applied(bridge, loaded, vae, image=None, mask=mask,
                                        source=torch.rand(1, 64, 96, 3)), torch.zeros(1, 64, 4, 6))
    assert not channels[:, :64].any() and channels[:, 65:].any()
    assert torch.equal(channels[0, 64], torch.tensor([1.0, 1, 1, 0, 0, 0]).expand(4, 6))


WRONG = {
    "wrong_file": {"other.weight": torch.ones(2, 2)},
    "control_channels": {"control_img_in.weight": torch.ones(128, 132)},
    "tensor_missing": {name: value for name, value in state().items() if "after_proj" not in name},
}


@pytest.mark.parametrize("reason", WRONG)
def test_other_files_are_refused(bridge, tmp_path, reason):
    path = tmp_path / "wrong.safetensors"
    save_file(WRONG[reason], path)
    with pytest.raises(CheckpointError) as refused:
        bridge.load_control(path, path.name)
    assert refused.value.message.key == reason


def test_a_network_of_another_width_is_refused(bridge, loaded, model, vae, monkeypatch):
    monkeypatch.setattr(loaded.network, "spec", ControlSpec(BASE, blocks=9))
    with pytest.raises(Refusal) as refused:
        bridge.apply_control(model, applied(bridge, loaded, vae))
    assert refused.value.message.key == "control_size"


@pytest.mark.parametrize(("inputs", "key"), [
    ((2.5, 0.0, 1.0, True, False, False), "control_strength"), ((-0.1, 0.0, 1.0, True, False, False),
                                                                 "control_strength"),
    ((1.0, 0.6, 0.5, True, False, False), "control_window"), ((1.0, 0.0, 1.0, False, False, False), "control_empty"),
    ((1.0, 0.0, 1.0, False, True, False), "control_mask_alone"), ((1.0, 0.0, 1.0, True, False, True),
                                                                  "control_no_mask")])
def test_bad_inputs_of_the_node(comfyui, inputs, key):
    from qwen_image_2.nodes.control import check_inputs
    with pytest.raises(Refusal) as refused:
        check_inputs(*inputs)
    assert refused.value.message.key == key


@pytest.mark.parametrize("apply", [
    lambda clone: [clone.set_model_patch_replace(lambda *_: None, "dit", "single_block", layer) for layer in (0, 2)],
    lambda clone: clone.set_model_double_block_patch(lambda *_: None),
    lambda clone: [clone.set_model_patch(lambda *_: None, name) for name in ("post_input", "single_block")]],
    ids=["blocks replaced", "after a block", "before the blocks and after them"])
def test_control_by_core_s_own_nodes_is_refused_before_a_run(model, apply):
    """In core's newer forms and in the older one; an image that does not follow would cost a whole run."""
    clone = model.clone()
    apply(clone)
    with pytest.raises(Refusal, match=r"Use Load Control and Apply Control \(Qwen-Image 2\) instead") as refused:
        sampled(clone)
    assert refused.value.message.key == "control_of_core"
    sampled(model)


def test_other_patches_of_blocks_are_left_out_and_told(model):
    """Skip Layer Guidance and others look for what this transformer does not have, and draw as without it."""
    clone, told = model.clone(), []
    clone.set_model_patch_replace(lambda *_: None, "dit", "other_block", 0)
    assert error(sampled(clone, report=told.append), sampled(model)) < 1e-6
    assert sum("are ignored" in sentence for sentence in told) == 1
