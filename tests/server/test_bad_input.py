"""Bad input: one clear sentence from the right node, early, and the server goes on."""
import shutil

import pytest
import safetensors.torch
import torch

from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import Graph, node
from qwen_image_2.tools.comfyui.client import WorkflowError


def save(path, **tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
    return path


@pytest.fixture(scope="module", autouse=True)
def wrong_files(models):
    """Files that people really choose by mistake, in the folders where they lie."""
    before = {path for path in models.rglob("*") if path.is_file()}
    write_wrong_files(models / "diffusion_models", models / "text_encoders", models / "vae")
    yield
    for path in {path for path in models.rglob("*") if path.is_file()} - before:
        path.unlink()


def write_wrong_files(diffusion, text, vae):
    whole = (diffusion / here.FUSED).read_bytes()
    (diffusion / "truncated.safetensors").write_bytes(whole[:len(whole) // 2])
    shutil.copytree(diffusion / here.FOLDER, diffusion / "incomplete")
    sorted((diffusion / "incomplete").glob("*-of-*"))[1].unlink()
    save(diffusion / "qwen_image_1.safetensors", **{"transformer_blocks.0.img_mod.1.weight": (4, 4)})
    save(diffusion / "sdxl.safetensors", **{"model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3)})
    shutil.copy(vae / here.WAN_VAE, diffusion / "vae_in_the_wrong_place.safetensors")
    shutil.copy(diffusion / here.FUSED, vae / "transformer_in_the_wrong_place.safetensors")
    save(text / "enhancer.safetensors", **{"model.language_model.layers.0.linear_attn.conv1d.weight": (4, 4),
                                           "model.visual.blocks.0.attn.qkv.weight": (4, 4)})
    save(text / "qwen3_text.safetensors", **{"model.layers.0.self_attn.q_norm.weight": (4,)})
    state = safetensors.torch.load_file(vae / here.WAN_VAE)
    state["decoder.conv1.weight"] = torch.zeros(96, 16, 1, 3, 3)
    safetensors.torch.save_file(state, vae / "vae_16.safetensors")
    state = safetensors.torch.load_file(diffusion / here.FUSED)
    state["transformer_blocks.1.attn.to_v.weight"][3, 5] = float("nan")
    safetensors.torch.save_file(state, diffusion / "nan.safetensors")


def message(client, nodes) -> str:
    with pytest.raises(WorkflowError) as raised:
        client.run(nodes, timeout=120)
    assert "\n" not in raised.value.message
    return raised.value.message


@pytest.mark.parametrize("part, file, words", [
    ("diffusion_model", "truncated.safetensors", "is truncated or damaged ("),
    ("diffusion_model", "incomplete/", "is incomplete: diffusion_pytorch_model-00002-of-0000"),
    ("diffusion_model", "qwen_image_1.safetensors", "is incomplete: tensor img_in.weight is missing"),
    ("diffusion_model", "sdxl.safetensors", "is a Stable Diffusion or SDXL checkpoint"),
    ("diffusion_model", "vae_in_the_wrong_place.safetensors", "is a VAE with Wan key names, not a transformer"),
    ("diffusion_model", "nan.safetensors", "tensor transformer_blocks.1.attn.to_v.weight contains NaN"),
    ("text_encoder", "enhancer.safetensors", "is a prompt-enhancer language model"),
    ("text_encoder", "qwen3_text.safetensors", "is a text-only language model without a vision tower"),
    ("vae", "transformer_in_the_wrong_place.safetensors", "is the transformer of Qwen-Image 2.x, not a vae"),
    ("vae", "vae_16.safetensors", "and 16 latent channels; Qwen-Image 2 needs 4 and 64"),
])
def test_wrong_files(client, part, file, words):
    found = message(client, Graph(**{part: file}).nodes())
    assert words in found
    start = file if "incomplete" not in file and "truncated" not in file else file.split(".")[0]
    assert found.startswith(start), "the sentence starts with the file's name, without a class"


def test_everything_works_after_a_failure(client):
    message(client, Graph(diffusion_model="nan.safetensors").nodes())
    assert here.images(client, client.run(Graph().nodes())).std() > 10


def test_lora_of_qwen_image_1(client, models):
    key = "transformer.transformer_blocks.0.attn.to_q"
    save(models / "loras" / "qwen_image_1.safetensors", **{f"{key}.lora_A.weight": (4, 3072),
                                                           f"{key}.lora_B.weight": (3072, 4)})
    nodes = Graph().nodes()
    nodes["lora"] = node("LoraLoaderModelOnly", model=["loader", 0], lora_name="qwen_image_1.safetensors",
                         strength_model=1.0)
    nodes["sampler"]["inputs"]["model"] = ["lora", 0]
    found = message(client, nodes)
    assert "LoRA shape mismatch at" in found and "Qwen-Image 1.x (width 3072)" in found


@pytest.mark.parametrize("change, words", [
    (dict(width=1001), "multiples of 16 between 64 and 8192, got 1001 x 64. The nearest size is 1008 x 64"),
    (dict(width=32), "got 32 x 64. The nearest size is 64 x 64"),
    (dict(width=32000), "got 32000 x 64. The nearest size is 8192 x 64"),
    (dict(batch_size=0), "batch_size"),
    (dict(steps=0), "steps"),
    (dict(denoise=0.0), "denoise"),
    (dict(preset="Quality 41"), "preset"),
    (dict(diffusion_model="gone.safetensors"), "gone.safetensors"),
])
def test_values_are_checked_before_anything_runs(client, change, words):
    assert words in message(client, Graph(**change).nodes())


SAMPLERS = {
    "ours": lambda: Graph().nodes()["sampler"],
    "core": lambda: node("KSampler", model=["loader", 0], positive=["prompt", 0], negative=["prompt", 1],
                         latent_image=["canvas", 0], seed=0, steps=4, cfg=1.0, sampler_name="euler",
                         scheduler="simple", denoise=1.0),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latent_of_another_model(client, sampler):
    """A pixel-space latent has 3 channels. (Core stretches empty latents to our channels by itself.)"""
    nodes = Graph().nodes() | {"sampler": SAMPLERS[sampler]()}
    nodes["pixels"] = node("VAELoader", vae_name="pixel_space")
    nodes["picture"] = node("EmptyImage", width=96, height=64, batch_size=1, color=0xFF8800)
    nodes["canvas"] = node("VAEEncode", pixels=["picture", 0], vae=["pixels", 0])
    found = message(client, nodes)
    assert "3" in found and "Create it with Empty Latent (Qwen-Image 2)" in found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_references_without_image_slots(client, sampler):
    nodes = Graph().nodes() | {"sampler": SAMPLERS[sampler]()}
    nodes["reference"] = node("ReferenceLatent", conditioning=["prompt", 0], latent=["canvas", 0])
    nodes["sampler"]["inputs"]["positive"] = ["reference", 0]
    found = message(client, nodes)
    assert "1 reference latents but 0 image placeholders" in found and "use Encode Edit" in found


def test_guidance_without_a_negative_prompt(client):
    """Refused before anything runs; a linked cfg is known only when the sampler's turn comes."""
    nodes = Graph(cfg=3.0).nodes()
    del nodes["sampler"]["inputs"]["negative"]
    with pytest.raises(WorkflowError, match="Connect one, or set CFG to 1") as raised:
        client.run(nodes)
    assert "custom_validation_failed" in raised.value.details
    nodes["guidance"] = node("PrimitiveFloat", value=3.0)
    nodes["sampler"]["inputs"]["cfg"] = ["guidance", 0]
    with pytest.raises(WorkflowError, match="Connect one, or set CFG to 1") as raised:
        client.run(nodes)
    assert "in execute" in raised.value.details


@pytest.mark.parametrize("cfg", [0.5, 31.0])
def test_guidance_out_of_range(client, cfg):
    assert f"CFG must be between 1 and 30, got {cfg}" in message(client, Graph(cfg=cfg).nodes())


def test_no_negative_prompt_is_fine_without_guidance(client):
    nodes = Graph().nodes()
    del nodes["sampler"]["inputs"]["negative"]
    assert torch.equal(here.latent(client, client.run(nodes)), here.latent(client, client.run(Graph().nodes())))


def test_image_token_in_the_prompt(client):
    assert "is reserved for reference images" in message(client, Graph(prompt="a <|image_pad|> b").nodes())


def test_picture_smaller_than_one_latent(client):
    nodes = {
        "loader": Graph().nodes()["loader"],
        "picture": node("EmptyImage", width=8, height=64, batch_size=1, color=0),
        "encoded": node("QwenImage2VAEEncode", image=["picture", 0], vae=["loader", 2]),
        "latent": node("SaveLatent", samples=["encoded", 0], filename_prefix="small"),
    }
    assert "the minimum is 32 x 32 pixels" in message(client, nodes)


def test_masks_that_do_not_match_the_batch(client):
    nodes = {
        "loader": Graph().nodes()["loader"],
        "picture": node("EmptyImage", width=64, height=64, batch_size=3, color=0),
        "mask": node("SolidMask", value=0.5, width=64, height=64),
        "image": node("MaskToImage", mask=["mask", 0]),
        "two": node("RepeatImageBatch", image=["image", 0], amount=2),
        "masks": node("ImageToMask", image=["two", 0], channel="red"),
        "encoded": node("QwenImage2VAEEncode", image=["picture", 0], alpha=["masks", 0], vae=["loader", 2]),
        "latent": node("SaveLatent", samples=["encoded", 0], filename_prefix="masks"),
    }
    assert "Got 2 masks for 3 images" in message(client, nodes)


def test_another_models_vae(client):
    nodes = Graph().nodes()
    nodes["other"] = node("VAELoader", vae_name="pixel_space")
    nodes["decode"]["inputs"]["vae"] = ["other", 0]
    assert "This VAE is not the Qwen-Image 2 VAE" in message(client, nodes)
