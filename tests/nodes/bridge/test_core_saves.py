"""What core's own nodes save of the pack's MODEL, CLIP and VAE: it loads again and computes the same, or is refused."""
import json
import math

import pytest
import torch
from safetensors import safe_open

from qwen_image_2.messages import Refusal
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.tests.nodes.bridge.quant import test_formats as files
from qwen_image_2.tests.nodes.bridge.quant import test_gguf_ops as gguf_files
from qwen_image_2.tests.nodes.bridge.runtime import runs
from qwen_image_2.tests.nodes.bridge.text_encoders import test_gguf as gguf_text_files
from qwen_image_2.tests.nodes.bridge.text_encoders import test_quantized as text_files
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

TEXT_CONFIG = {"text_config": tiny.TEXT_CONFIG, "vision_config": tiny.VISION_CONFIG}
LORA = ("transformer_blocks.0.attn.to_q.weight", "transformer_blocks.1.img_mlp.gate_layer.weight", "img_in.weight")


@pytest.fixture(autouse=True)
def as_comfyui_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture
def output(comfyui, tmp_path):
    """ComfyUI's output folder."""
    import folder_paths
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    yield tmp_path / "output"
    folder_paths.set_output_directory(before)


def saved(output, node: str, **objects):
    """The file that a node of core writes."""
    from comfy_extras import nodes_model_merging as core
    getattr(core, node)().save(filename_prefix=node, prompt={"1": {}}, extra_pnginfo={"workflow": {}}, **objects)
    path, = output.glob(f"{node}*")
    return path


# ---------------------------------------------------------------- MODEL

@pytest.fixture(scope="module")
def plain():
    return tiny.randomise(tiny.shapes(Transformer(files.SPEC)), 5)


def load(path, weight_format="as stored"):
    from qwen_image_2.nodes.bridge.loading import load_model
    return load_model(path, path.name, "base", weight_format)


def of_format(folder, plain, name: str):
    """A MODEL: of a file in this format, or of a plain one with this weight_format."""
    if name in files.FORMATS:
        return load(files.write(files.quantise(plain, name)[0], folder / "model.safetensors"))
    return load(files.write(tiny.to_comfy_transformer(plain), folder / "model.safetensors"), name)


def velocity(patcher) -> torch.Tensor:
    """As ComfyUI computes it: LoRAs are in the weights."""
    import comfy.model_management
    comfy.model_management.load_models_gpu([patcher])
    return files.velocity(patcher.model.diffusion_model)


@pytest.mark.parametrize("name", ["as stored", "bf16", "fp8", "int8 (ConvRot)", "4-bit (nvfp4)", *files.FORMATS])
def test_a_model_of_every_format_comes_back(output, tmp_path, plain, name):
    model = of_format(tmp_path, plain, name)
    again = load(saved(output, "ModelSave", model=model))
    files.assert_same_tensors(again.model.diffusion_model.state_dict(), model.model.diffusion_model.state_dict())
    assert again.model.weights == model.model.weights
    if name != "bf16":
        assert error(velocity(again), velocity(model)) < files.rounding(name)


def with_lora(patcher, magnitude=False):
    from qwen_image_2.nodes.bridge.adapters.dora import Decomposed
    clone = runs.with_lora(patcher, *LORA)
    for patches in clone.patches.values() if magnitude else ():
        strength, adapter, *rest = patches[0]
        rows = adapter.weights[0].shape[0]
        patches[0] = (strength, Decomposed(set(), (adapter, torch.linspace(0.5, 2, rows)[:, None])), *rest)
    return clone


@pytest.mark.parametrize("name", ["as stored", "bf16", "fp8 e4m3", "int8 ConvRot", "int8 per tensor", "nvfp4",
                                  "4-bit ConvRot"])
@pytest.mark.parametrize("magnitude", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("kept", [2, 1, 0])
def test_loras_are_in_the_file(output, tmp_path, plain, name, magnitude, kept):
    from qwen_image_2.nodes.bridge.runtime.budget import BudgetPatcher
    model = of_format(tmp_path, plain, name)
    exact = files.velocity(model.model.diffusion_model)
    changed = with_lora(model, magnitude)
    if kept < 2:
        changed = BudgetPatcher.of(changed, runs.budget_for(changed, kept))
    path = saved(output, "ModelSave", model=changed)
    a, b = load(path), with_lora(of_format(tmp_path, plain, name), magnitude)
    print(name, magnitude, kept, error(velocity(a), velocity(b)), error(velocity(a), velocity(changed)), error(velocity(a), exact))


def test_gguf(output, tmp_path, plain):
    model = load(gguf_files.write(tmp_path / "model.gguf", tiny.to_comfy_transformer(plain), "Q4_K"))
    with pytest.raises(Refusal) as r:
        saved(output, "ModelSave", model=model)
    print(r.value)
    assert not list(output.glob("*"))


def clip_of(tmp_path, reference, name):
    from qwen_image_2.nodes.bridge.text_encoders.qwen3_vl import load_text_encoder
    if name in text_files.FORMATS:
        path = text_files.write(text_files.quantise(reference.text_encoder.state_dict(), name)[0], tmp_path / "t.safetensors")
        return load_text_encoder(path, "t")
    path = text_files.write(reference.text_encoder.state_dict(), tmp_path / "t.safetensors")
    return load_text_encoder(path, "t", name)


def states(clip):
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    (text, _), = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle", images=[image]))
    return text


@pytest.mark.parametrize("name", ["as stored", "bf16", "fp8", "int8 (ConvRot)", "4-bit (nvfp4)", *text_files.FORMATS])
def test_clip(output, tmp_path, reference, name):
    from qwen_image_2.nodes.bridge.text_encoders.qwen3_vl import load_text_encoder
    clip = clip_of(tmp_path, reference, name)
    p = saved(output, "CLIPSave", clip=clip)
    again = load_text_encoder(p, "x")
    print(name, error(states(again), states(clip)), again.cond_stage_model.qwen3vl_8b.transformer.weights, clip.cond_stage_model.qwen3vl_8b.transformer.weights)
    files.assert_same_tensors(again.cond_stage_model.state_dict(), clip.cond_stage_model.state_dict())


@pytest.mark.parametrize("name", ["as stored", "int8 (ConvRot)"])
def test_all(output, tmp_path, plain, reference, vae, name):
    from qwen_image_2.nodes.bridge.text_encoders.qwen3_vl import load_text_encoder
    from qwen_image_2.nodes.bridge.vae import load_vae
    clip, model = clip_of(tmp_path, reference, name), of_format(tmp_path, plain, name)
    p = saved(output, "CheckpointSave", clip=clip, model=model, vae=vae)
    a, b, c = load(p), load_text_encoder(p, "x"), load_vae(p, "y")
    files.assert_same_tensors(b.cond_stage_model.state_dict(), clip.cond_stage_model.state_dict())
    files.assert_same_tensors(a.model.diffusion_model.state_dict(), model.model.diffusion_model.state_dict())
    files.assert_same_tensors(c.get_sd(), vae.get_sd())
