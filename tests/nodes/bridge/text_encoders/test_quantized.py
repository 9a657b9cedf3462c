"""Quantized text encoders: int8 with the embedding table, as the official file has it, and fp8."""
import json
from types import SimpleNamespace

import pytest
import torch

from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

CONVROT = {"convrot": True, "convrot_groupsize": 64}
# As in test_formats.py. All are dequantized: no activation is rounded.
FORMATS = {
    "int8": ("int8_tensorwise", {}, {"per_channel": True}),
    "int8 ConvRot": ("int8_tensorwise", CONVROT, {"per_channel": True, **CONVROT}),
    "fp8": ("float8_e4m3fn", {}, {"scale": "recalculate"}),
}
PROMPT = "a red circle, 红色的圆"


def quantize(state: dict, name: str) -> tuple[dict, dict]:
    """Every matrix of the language model, embedding and head included, and the same weights dequantized."""
    return tiny.quantized(lambda key: "language_model" in key or "lm_head" in key, state, *FORMATS[name][:3])


def write(state: dict, path):
    tiny.save_as_they_are(state, path, {"config": json.dumps({"text_config": tiny.TEXT_CONFIG,
                                                              "vision_config": tiny.VISION_CONFIG})})
    return path


def states(path) -> torch.Tensor:
    from qwen_image_2.nodes.bridge.text_encoders.families import load_text_encoder
    clip = load_text_encoder(path, path.name)
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    (text, _), = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT, images=[image], keep_vision=True))
    return text


# Those whose rows cannot be looked up leave the vocabulary as it is.
INNER = {
    "mxfp8": ("mxfp8", {}, {}, 1e-3),
    "nvfp4": ("nvfp4", {}, {}, 1e-3),
    "4-bit ConvRot": ("convrot_w4a4", {"convrot_groupsize": 64}, {"convrot_groupsize": 64}, 1e-3),
}


@pytest.mark.parametrize("name", INNER)
def test_formats_of_blocks_in_the_layers(comfyui, reference, tmp_path, name):
    stored, rounded = tiny.quantized(lambda key: "language_model.layers" in key, reference.text_encoder.state_dict(),
                                     *INNER[name][:3])
    expected = states(write(rounded, tmp_path / "rounded.safetensors"))
    assert error(states(write(stored, tmp_path / "quantised.safetensors")), expected) < INNER[name][3]


def test_a_vocabulary_in_blocks_is_refused(comfyui, reference, tmp_path):
    stored, _ = tiny.quantized(lambda key: "embed_tokens" in key, reference.text_encoder.state_dict(),
                               *INNER["mxfp8"][:3])
    with pytest.raises(CheckpointError, match=r"the vocabulary \(.*embed_tokens.weight\) is quantized as mxfp8, which"):
        states(write(stored, tmp_path / "blocks.safetensors"))


# In bf16, where a matrix's scale is rounded too, states are about as far from each other as from those in fp32.
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-3), (torch.bfloat16, 0.03)],
                         ids=["as on a CPU", "as on a card"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_what_its_weights_say(comfyui, reference, tmp_path, monkeypatch, name, dtype, bound):
    from qwen_image_2.nodes.bridge.text_encoders import shared
    monkeypatch.setattr(shared, "compute_dtype", lambda device: dtype)
    monkeypatch.delattr(torch, "_int_mm")
    stored, rounded = quantize(reference.text_encoder.state_dict(), name)
    found = states(write(stored, tmp_path / "quantised.safetensors"))
    expected = states(write(rounded, tmp_path / "rounded.safetensors"))
    assert error(found, expected) < bound
    # And the weights themselves are rounded: the plain file says something else.
    assert error(expected, states(write(reference.text_encoder.state_dict(), tmp_path / "plain.safetensors"))) > 5e-3


def test_an_older_scaled_fp8_file_says_the_same(comfyui, reference, tmp_path):
    """As ComfyUI's tools made them: matrices of the layers, two values in the mark, no scale for inputs."""
    stored, _ = tiny.quantized(lambda key: "language_model.layers" in key, reference.text_encoder.state_dict(),
                               *FORMATS["fp8"][:3])
    old = {name.replace("weight_scale", "scale_weight").replace("model.language_model.", "model."): value
           for name, value in stored.items() if not name.endswith("comfy_quant")}
    old["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    assert len([name for name in old if name.endswith("scale_weight")]) == 7 * 3
    found = states(write(old, tmp_path / "old.safetensors"))
    assert error(found, states(write(stored, tmp_path / "new.safetensors"))) < 1e-6


@pytest.mark.parametrize("kind", ["text encoder", "enhancer"])
def test_fp8_is_refused_on_devices_that_have_none(comfyui, reference, monkeypatch, tmp_path, kind):
    """Apple's, for example."""
    import comfy.model_management

    from qwen_image_2.model.checkpoints.files import open_checkpoint
    from qwen_image_2.nodes.bridge.text_encoders import families, qwen3_5
    path = write(quantize(reference.text_encoder.state_dict(), "fp8")[0], tmp_path / "te.safetensors")
    monkeypatch.setattr(comfy.model_management, "text_encoder_device", lambda: torch.device("mps"))
    opened = open_checkpoint(path)
    # Whether it is an enhancer is known before; what comes then is asked here.
    monkeypatch.setattr(qwen3_5, "open_enhancer", lambda *_: (opened, SimpleNamespace(
        spec=None, quantization=opened.quantization)))
    load = families.load_text_encoder if kind == "text encoder" else qwen3_5.load_enhancer
    with pytest.raises(CheckpointError, match=r"^te.safetensors cannot be used as fp8 \(e4m3\): .*\(mps\) does not"):
        load(path, path.name)
