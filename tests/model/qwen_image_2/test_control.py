"""The control network against golden tensors of VideoX-Fun and of ComfyUI, and against a plain oracle without a cache.

control_golden/: made in fp32 by both reference implementations on tiny random weights, four base blocks and control
after blocks 0 and 2. They agree to 1.5e-6; every mistake that was tried misses by 1e-2 where it concerns.
"""
import json
from pathlib import Path

import pytest
import safetensors
import torch

from qwen_image_2.model.qwen_image_2 import control as controls
from qwen_image_2.model.qwen_image_2.control import Control, Controlling, prefix_controls
from qwen_image_2.model.qwen_image_2.prefix_cache import Condition
from qwen_image_2.model.qwen_image_2.spec import ControlSpec, TransformerSpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer

GOLDEN = Path(__file__).parent / "control_golden"
BOUND = 1e-5
BASE = TransformerSpec(layers=4, dim=64, heads=4, head_dim=16, mlp_dim=192, context_dim=48, rope_axes=(4, 6, 6),
                       fused_mlp=False)
CASES = ("pure", "pure_late_sigma", "pure_strength_06", "inpaint", "inpaint_without_control", "batch_of_two",
         "reference_core", "reference_videox_rows_zero_channels")


def read(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safetensors.safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}


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
    base, network = networks
    tensors, about = read(name)
    about = {key: value for key, value in about.items()}
    condition, rows = condition_of(tensors, about), "videox_rows" in name
    applied = [Controlling(network, tensors["control_context"], float(about["strength"]))] if name in CASES else []
    cache = base.encode_prefix(condition, controls=prefix_controls(applied, rows))
    sigma = tensors.get("sigmas", torch.tensor([float(about.get("sigma", 0))]))
    found = base(tensors["latent"], sigma.float(), cache, controls=applied)
    assert (found - tensors["output"]).abs().max() < BOUND
