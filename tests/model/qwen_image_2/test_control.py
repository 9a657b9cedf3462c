"""The control network against golden tensors of VideoX-Fun and of ComfyUI, and against a plain oracle without a cache.

control_golden/: made in fp32 by both reference implementations on tiny random weights, four base blocks and control
after blocks 0 and 2. They agree to 1.5e-6; every mistake that was tried misses by 1e-2 where it concerns.
"""
import copy
import json
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file

from qwen_image_2.model.qwen_image_2 import control as controls
from qwen_image_2.model.qwen_image_2 import transformer
from qwen_image_2.model.qwen_image_2.blocks import Modulation
from qwen_image_2.model.qwen_image_2.control import Control, Controlling, prefix_controls
from qwen_image_2.model.qwen_image_2.prefix_cache import Condition, RecomputedPrefix
from qwen_image_2.model.qwen_image_2.spec import ControlSpec, TransformerSpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.model.runtime.rope import image_positions
from qwen_image_2.tests.reference import error

GOLDEN = Path(__file__).parent / "control_golden"
BOUND = 1e-5
BASE = TransformerSpec(layers=4, dim=64, heads=4, head_dim=16, mlp_dim=192, context_dim=48, rope_axes=(4, 6, 6),
                       fused_mlp=False)
CASES = ("pure", "pure_late_sigma", "pure_strength_06", "inpaint", "inpaint_without_control", "batch_of_two",
         "reference_core", "reference_videox_rows_zero_channels")


def read(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    path = GOLDEN / f"{name}.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        return load_file(path), file.metadata() or {}


@pytest.fixture(scope="module")
def networks() -> tuple[Transformer, Control]:
    base, control = Transformer(BASE).eval(), Control(ControlSpec(BASE, blocks=2)).eval()
    base.load_state_dict(read("transformer")[0])
    control.load_state_dict(read("control")[0])
    return base, control


def condition_of(tensors: dict, about: dict) -> Condition:
    """Without the states of a reference's slots, which do not count: the case has none to begin with."""
    if "reference" not in tensors:
        return Condition(tensors["text"])
    return Condition(tensors["text"], (int(json.loads(about["text_before_reference"])),), (tensors["reference"],))


@torch.no_grad()
@pytest.mark.parametrize("name", ("base_text", "base_reference", *CASES))
def test_velocity_equals_the_golden_one(networks, name):
    """To 1e-5, absolute, as the references agree. In fp64: what this processor rounds is not what is asked."""
    base, network = (copy.deepcopy(each).double() for each in networks)
    tensors, about = read(name)
    tensors = {key: value.double() for key, value in tensors.items()}
    condition, rows = condition_of(tensors, about), "videox_rows" in name
    applied = [Controlling(network, tensors["control_context"], float(about["strength"]))] if name in CASES else []
    cache = base.encode_prefix(condition, controls=prefix_controls(applied, rows))
    sigma = tensors.get("sigmas", torch.tensor([float(about.get("sigma", 0))]))
    found = base(tensors["latent"], sigma, cache, controls=applied)
    assert (found - tensors["output"]).abs().max() < BOUND


# ---------------------------------------------------------------- a plain oracle: no cache, every row in every step

def plain_velocity(base: Transformer, condition: Condition, x, sigma, applied: list[Controlling], weights=None,
                   shifts=None) -> torch.Tensor:
    """All rows of [prefix | target] in one pass under one mask, chains one after the other. weights: of the prefix's
    keys, for the target's rows; shifts: of the prefix's rotary positions."""
    segments = list(condition.segments())
    prefix = base._prefix_tokens(condition, segments, x.dtype).expand(len(x), -1, -1)
    target = base.img_in(x.flatten(2).transpose(1, 2))
    joint, length = torch.cat([prefix, target], 1), prefix.shape[1]
    positions, end = transformer._prefix_positions(segments)
    positions = positions if shifts is None else positions + shifts
    rope = base._rope(torch.cat([positions, image_positions(end, *x.shape[-2:])]), x.device)
    visible = torch.zeros(joint.shape[1], joint.shape[1], dtype=torch.bool)
    visible[length:] = True
    for segment in segments:
        visible[segment.start:segment.end, :segment.end] = True
        if segment.grid is None:
            own = slice(segment.start, segment.end)
            visible[own, own] = visible[own, own].tril()
    bias = torch.zeros(visible.shape)
    if weights is not None:
        bias[length:, :length] = weights.log()
    times = [base._modulation(base.time_text_embed(t, x.dtype)) for t in (torch.zeros_like(sigma), sigma)]
    rows = [length, target.shape[1]]
    modulation = Modulation(*(torch.cat([part.expand(-1, count, -1) for part, count in zip(both, rows, strict=True)], 1)
                              for both in zip(*times, strict=True)))

    def attend(q, k, v):
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + bias).masked_fill(~visible, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    chains = []
    for control in applied:
        channels = control.network.control_img_in(control.channels.flatten(2).transpose(1, 2)).expand(len(x), -1, -1)
        empty = torch.zeros_like(prefix)
        chains.append(control.network.control_blocks[0].before_proj(torch.cat([empty, channels], 1)) + joint)
    for layer, block in enumerate(base.transformer_blocks):
        joint = block(joint, modulation, rope, attend)
        for number, control in enumerate(applied):
            if layer % 2 == 0:  # two of them along four layers
                beside = control.network.control_blocks[layer // 2]
                chains[number] = beside(chains[number], modulation, rope, attend)
                joint = joint + control.strength * beside.after_proj(chains[number])
    velocity = base.proj_out(base.norm_out(joint[:, length:], base.time_text_embed(sigma, x.dtype)))
    return velocity.transpose(1, 2).unflatten(2, x.shape[-2:])


def case(batch: int = 1, references: int = 1):
    generator = torch.Generator().manual_seed(batch + references)
    latents = tuple(torch.randn(1, 64, 4, 6, generator=generator) for _ in range(references))
    condition = Condition(torch.randn(1, 11, 48, generator=generator), (5, 7)[:references], latents)
    return condition, torch.randn(batch, 64, 6, 8, generator=generator), torch.linspace(0.3, 0.9, batch)


def picture(seed: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 129, 6, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def other(networks) -> Control:
    """A second network, of other weights."""
    state = networks[1].state_dict()
    generator = torch.Generator().manual_seed(5)
    second = Control(ControlSpec(BASE, blocks=2)).eval()
    second.load_state_dict({name: value + 0.1 * torch.randn(value.shape, generator=generator)
                            for name, value in state.items()})
    return second


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("references", [0, 1, 2])
@pytest.mark.parametrize("which", ["one", "two of a network", "two networks", "three and a negative one"])
def test_with_the_prefix_cached_it_equals_all_rows_computed_anew(networks, other, batch, references, which):
    base, network = networks
    condition, x, sigma = case(batch, references)
    applied = {"one": [(network, 0.8)], "two of a network": [(network, 0.8), (network, 0.5)],
               "two networks": [(network, 0.8), (other, 0.4)],
               "three and a negative one": [(network, 0.8), (other, -0.6), (network, 1.0)]}[which]
    applied = [Controlling(each, picture(number, 1 if number else batch), strength)
               for number, (each, strength) in enumerate(applied)]
    cache = base.encode_prefix(condition, controls=prefix_controls(applied))
    expected = plain_velocity(base, condition, x, sigma, applied)
    for _ in range(2):  # the second step finds the same prefix
        assert error(base(x, sigma, cache, controls=applied), expected) < 1e-4
    assert error(base(x, sigma, base.encode_prefix(condition)), expected) > 1e-2


@torch.no_grad()
def test_a_recomputed_prefix_gives_the_layers_in_the_same_turn(networks, other):
    base, network = networks
    condition, x, sigma = case()
    applied = [Controlling(network, picture(0)), Controlling(other, picture(1), 0.3), Controlling(network, picture(2))]
    layers = base.encode_prefix(condition, controls=prefix_controls(applied))
    again = RecomputedPrefix(layers.position, compute=lambda: base.prefix_layers(
        condition, controls=prefix_controls(applied)))
    assert len(layers.layers) == 4 + 2 + 2
    assert torch.allclose(base(x, sigma, again, controls=applied), base(x, sigma, layers, controls=applied), atol=1e-6)


# ---------------------------------------------------------------- from pictures to channels

def test_channels_come_from_pictures_as_comfyui_s_node_makes_them():
    tensors, about = read("pixels")
    width, height = json.loads(about["canvas"])
    as_image = {name: tensors[f"{name}_picture"].float() / 255 for name in ("control", "source", "mask")}
    found = controls.to_canvas(as_image["control"].unsqueeze(0), width, height)
    assert (found - tensors["core_control"]).abs().max() < BOUND
    anew = controls.regenerated(as_image["mask"].unsqueeze(0), width, height)
    assert torch.equal(anew, tensors["core_regenerate"][:, 0])
    assert torch.equal(controls.kept(anew), tensors["core_keep"])
    source = controls.masked_source(controls.to_canvas(as_image["source"].unsqueeze(0), width, height), anew)
    assert (source[..., :3] - tensors["core_source"]).abs().max() < BOUND and source[..., 3].min() == 1


def test_what_is_missing_is_zero():
    control, keep = torch.randn(1, 64, 6, 8), torch.ones(1, 1, 6, 8)
    found = controls.channels_of(control, None, None)
    assert torch.equal(found[:, :64], control) and not found[:, 64:].any()
    found = controls.channels_of(None, keep, control)
    assert not found[:, :64].any() and torch.equal(found[:, 64:65], keep) and torch.equal(found[:, 65:], control)
