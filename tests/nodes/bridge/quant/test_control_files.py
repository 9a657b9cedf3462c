"""Files of the control network of 2.1 in every layout: each loads, and computes what its weights say."""
from dataclasses import replace

import pytest
import torch

from qwen_image_2.messages import Refusal
from qwen_image_2.model.checkpoints.checkpoint import Checkpoint, TensorInfo
from qwen_image_2.model.qwen_image_2.control import Control, Controlling, prefix_controls
from qwen_image_2.model.qwen_image_2.detect import detect_control
from qwen_image_2.model.qwen_image_2.prefix_cache import Condition
from qwen_image_2.model.qwen_image_2.spec import ControlSpec, TransformerSpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.tests.nodes.bridge.quant.test_formats import FORMATS, SPEC, assert_same_tensors, write
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

CONTROL = ControlSpec(SPEC, blocks=1)
# Depth and text width of the transformer stand in no control file.
SAID = replace(CONTROL, base=replace(SPEC, layers=TransformerSpec.layers, context_dim=TransformerSpec.context_dim))
PREFIX = "model.diffusion_model."
BLOCK = ("attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight", "attn.to_out.0.weight", "attn.norm_q.weight",
         "attn.norm_k.weight", "img_mlp.gate_layer.weight", "img_mlp.proj.weight", "img_mlp.out.weight",
         "after_proj.weight", "after_proj.bias")


@pytest.fixture(scope="module")
def plain():
    """With gate and projection in one matrix."""
    return tiny.randomise(tiny.shapes(Control(CONTROL)), 7)


@pytest.fixture(scope="module")
def base():
    network = Transformer(SPEC)
    network.load_state_dict(tiny.randomise(tiny.shapes(Transformer(SPEC)), 5))
    return network


def loaded(path) -> Control:
    from qwen_image_2.nodes.bridge.control import load_control
    return load_control(path, path.name).network


def plain_network(state) -> Control:
    network = Control(CONTROL)
    network.load_state_dict(state)
    return network


@torch.no_grad()
def hints(base: Transformer, network: Control) -> torch.Tensor:
    """What the control changes in a velocity, with a reference in the prefix."""
    generator = torch.Generator().manual_seed(1)
    condition = Condition(torch.randn(1, 12, 64, generator=generator), (2,),
                          (torch.randn(1, 64, 4, 4, generator=generator),))
    x, channels = torch.randn(1, 64, 4, 6, generator=generator), torch.randn(1, 129, 4, 6, generator=generator)
    velocities = []
    for controls in ((), (Controlling(network, channels),)):
        cache = base.encode_prefix(condition, controls=prefix_controls(controls))
        velocities.append(base(x, torch.tensor([0.7]), cache, controls=controls))
    return velocities[1] - velocities[0]


def published() -> dict[str, TensorInfo]:
    """Names and shapes of the published file."""
    values = Control(ControlSpec(TransformerSpec(fused_mlp=False)), device="meta").state_dict()
    return {name: TensorInfo(tuple(value.shape), "BF16") for name, value in values.items()}


def test_the_published_file_is_recognized():
    """180 tensors and 3,775,479,808 parameters: 7,550,979,904 bytes with its header."""
    tensors = published()
    assert set(tensors) == {"control_img_in.weight", "control_img_in.bias", "control_blocks.0.before_proj.weight",
                            "control_blocks.0.before_proj.bias",
                            *(f"control_blocks.{number}.{name}" for number in range(16) for name in BLOCK)}
    assert len(tensors) == 180
    assert sum(torch.Size(info.shape).numel() for info in tensors.values()) == 3_775_479_808
    assert tensors["control_img_in.weight"].shape == (4096, 129)
    detected = detect_control(Checkpoint("union.safetensors", tensors))
    assert detected.spec == ControlSpec(TransformerSpec())
    assert detected.tensors == set(tensors)


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("split", [False, True], ids=["fused", "split"])
def test_plain_files(comfyui, plain, tmp_path, prefix, split):
    state = tiny.to_diffusers_transformer(plain) if split else plain
    network = loaded(write({prefix + name: value for name, value in state.items()}, tmp_path / "plain.safetensors"))
    assert network.spec == SAID
    assert_same_tensors(network.state_dict(), plain)


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("split", [False, True], ids=["fused", "split"])
@pytest.mark.parametrize("name", ["int8 ConvRot", "fp8 e4m3", "mxfp8"])
def test_marked_files_compute_what_their_weights_say(comfyui, plain, base, tmp_path, name, split, prefix):
    """Comfy-Org's repackaging, whose first layer has no whole group of 256 columns and stays as it is. Halves of fp8
    have a scale each, so they stay apart."""
    state = tiny.to_diffusers_transformer(plain) if split else plain
    stored, rounded = tiny.quantized(lambda key: key.startswith("control_blocks"), state, *FORMATS[name][:3])
    network = loaded(write({prefix + key: value for key, value in stored.items()}, tmp_path / "q.safetensors"))
    assert type(network.control_blocks[0].after_proj.weight.data).__name__ == "QuantizedTensor"
    assert network.spec.base.fused_mlp == (not split or name != "fp8 e4m3")
    said = tiny.to_comfy_transformer(rounded) if split else rounded
    found, expected = hints(base, network), hints(base, plain_network(said))
    assert error(found, expected) < FORMATS[name][3]
    assert error(found, hints(base, plain_network(plain))) < 2 * FORMATS[name][3]


def test_files_that_were_cast_to_fp8(comfyui, plain, base, tmp_path):
    """All of it, without scales or marks."""
    cast = {name: value.to(torch.float8_e4m3fn) for name, value in plain.items()}
    network = loaded(write(cast, tmp_path / "cast.safetensors"))
    expected = plain_network({name: value.float() for name, value in cast.items()})
    assert error(hints(base, network), hints(base, expected)) < 0.02


# ---------------------------------------------------------------- one file for another

def refusal(load, tensors, tmp_path) -> str:
    with pytest.raises(Refusal) as refused:
        load(write(tensors, tmp_path / "wrong.safetensors"))
    return str(refused.value)


def test_a_control_file_is_no_transformer(comfyui, plain, tmp_path):
    from qwen_image_2.nodes.bridge.loading import load_model
    quantized, _ = tiny.quantized(lambda key: key.startswith("control_blocks"), plain, *FORMATS["int8 ConvRot"][:3])
    for state in (plain, tiny.to_diffusers_transformer(plain), quantized):
        told = refusal(lambda path: load_model(path, path.name, "base"), state, tmp_path)
        assert "is the control network of Qwen-Image-2.1 (load it with Load Control (Qwen-Image 2)), not" in told


OTHERS = {
    "InstantX, 1.x": ({"controlnet_x_embedder.weight": (64, 68), "transformer_blocks.0.img_mod.1.weight": (64, 64)},
                      "is a ControlNet of Qwen-Image 1.x"),
    "Fun, 1.x": ({"control_img_in.weight": (64, 132), "control_blocks.0.img_mod.1.weight": (64, 64),
                  "control_blocks.0.after_proj.weight": (64, 64)}, "takes 132 control channels"),
    "DiffSynth, 1.x": ({"controlnet_blocks.0.y_rms.weight": (64,), "img_in.weight": (64, 64)},
                       "is a model patch of Qwen-Image 1.x"),
    "SD 1.5": ({"control_model.input_blocks.0.0.weight": (8, 4, 3, 3),
                "control_model.input_hint_block.0.weight": (4, 3, 3, 3)}, "is a ControlNet of Stable Diffusion"),
    "SDXL, diffusers": ({"controlnet_cond_embedding.conv_in.weight": (4, 3, 3, 3),
                         "time_embedding.linear_1.weight": (8, 8),
                         "down_blocks.0.attentions.0.norm.weight": (8,)}, "is a ControlNet of Stable Diffusion"),
    "2.1's transformer": ({"txt_in.text_norm.weight": (64,), "modulation.1.weight": (64, 16)},
                          "is the transformer of Qwen-Image 2.x"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_no_control_network(comfyui, tmp_path, name):
    shapes, words = OTHERS[name]
    told = refusal(loaded, {key: torch.ones(shape) for key, shape in shapes.items()}, tmp_path)
    assert words in told and "Qwen-Image" in told and told.count(". ") < 2
