"""A real ComfyUI server with the pack in it, and the reference's weights in every layout that circulates."""
import io
from dataclasses import dataclass

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from qwen_image_2.model.qwen_image_2.spec import ControlSpec, TransformerSpec
from qwen_image_2.tools import tiny
from qwen_image_2.tools.comfyui.client import Client, Result, SavedFile
from qwen_image_2.tools.comfyui.server import Server

PREFIX = "model.diffusion_model."

FUSED = "qwen_image_2.1_bf16.safetensors"
TURBO = "qwen_image_2.1_turbo_bf16.safetensors"
PREFIXED = "repacked/split_with_prefix.safetensors"
FOLDER = "Qwen-Image-2.1/transformer/"
TEXT_ENCODER = "qwen3vl_8b_bf16.safetensors"
TEXT_ENCODER_FOLDER = "Qwen3-VL-8B-Instruct/"
WAN_VAE = "qwen_image_2.1_vae_bf16.safetensors"
DIFFUSERS_VAE = "diffusers_named_5d.safetensors"
VAE_FOLDER = "Qwen-Image-2.1/vae/"


@pytest.fixture(scope="session")
def models(reference, tmp_path_factory):
    """A models folder with the same weights, fp32, in every layout."""
    root = tmp_path_factory.mktemp("models")
    transformer, vae = reference.transformer.state_dict(), reference.vae.state_dict()
    config = {"text_config": tiny.TEXT_CONFIG, "vision_config": tiny.VISION_CONFIG}

    diffusion = root / "diffusion_models"
    fused = tiny.to_comfy_transformer(transformer)
    tiny.save(fused, diffusion / FUSED, {}, torch.float32)
    tiny.save(fused, diffusion / TURBO, {}, torch.float32)
    tiny.save({PREFIX + name: value for name, value in transformer.items()}, diffusion / PREFIXED, {}, torch.float32)
    reference.transformer.save_pretrained(diffusion / FOLDER, max_shard_size="3MB")

    tiny.save(reference.text_encoder.state_dict(), root / "text_encoders" / TEXT_ENCODER, config, torch.float32)
    reference.text_encoder.save_pretrained(root / "text_encoders" / TEXT_ENCODER_FOLDER, max_shard_size="45MB")

    tiny.save(tiny.to_wan_vae(vae), root / "vae" / WAN_VAE, {}, torch.float32)
    five_d = {name: value.unsqueeze(2) if value.ndim == 4 and name.endswith("weight") else value
              for name, value in vae.items()}
    tiny.save(five_d, root / "vae" / DIFFUSERS_VAE, {}, torch.float32)
    reference.vae.save_pretrained(root / "vae" / VAE_FOLDER)
    base = TransformerSpec(layers=2, dim=256, heads=2, mlp_dim=768, context_dim=64)  # the reference's sizes
    tiny.write_control(root / "model_patches" / tiny.CONTROL, ControlSpec(base, blocks=1), torch.float32)
    tiny.save(tiny.few_step_state(fused, "diffusion_model."), root / "loras" / tiny.PRUNA, {})
    tiny.write_1(root)
    return root


@pytest.fixture(scope="session")
def server(comfyui_path, models):
    with Server(comfyui_path, models=models, cpu=True, preview="latent2rgb") as server:
        yield server


@pytest.fixture(scope="session")
def client(server):
    return Client(server.url)


@dataclass
class Graph:
    """Text-to-image as an API graph whose parts a test can change before it runs."""

    diffusion_model: str = FUSED
    text_encoder: str = TEXT_ENCODER
    vae: str = WAN_VAE
    variant: str = "auto"
    weight_format: str = "as stored"
    prompt: str = 'A poster that says "HELLO"'
    negative_prompt: str = ""
    width: int = 96
    height: int = 64
    batch_size: int = 1
    seed: int = 0
    preset: str = "Custom"
    steps: int = 4
    cfg: float = 1.0
    denoise: float = 1.0

    def nodes(self) -> dict:
        """Node ids: loader, prompt, canvas, sampler, decode, image (SaveImage, RGBA), latent (SaveLatent)."""
        return {
            "loader": node("QwenImage2Loader", diffusion_model=self.diffusion_model, text_encoder=self.text_encoder,
                           vae=self.vae, variant=self.variant, weight_format=self.weight_format),
            "prompt": node("QwenImage2TextEncode", clip=["loader", 1], prompt=self.prompt,
                           negative_prompt=self.negative_prompt),
            "canvas": node("QwenImage2EmptyLatent", aspect_ratio="custom", size="1024", width=self.width,
                           height=self.height, batch_size=self.batch_size),
            "sampler": node("QwenImage2Sampler", model=["loader", 0], positive=["prompt", 0], negative=["prompt", 1],
                            latent=["canvas", 0], seed=self.seed, preset=self.preset, steps=self.steps, cfg=self.cfg,
                            denoise=self.denoise),
            "decode": node("QwenImage2VAEDecode", samples=["sampler", 0], vae=["loader", 2]),
            "image": node("SaveImage", images=["decode", 1], filename_prefix="test"),
            "latent": node("SaveLatent", samples=["sampler", 0], filename_prefix="test"),
        }


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def images(client: Client, result: Result, node_id: str = "image") -> np.ndarray:
    """Saved pictures (B, H, W, channels), uint8."""
    files = [file for file in result.files if file.node == node_id]
    assert files, f"node {node_id} saved nothing"
    return np.stack([np.asarray(Image.open(io.BytesIO(client.view(file)))) for file in files])


def latent(client: Client, result: Result, node_id: str = "latent") -> torch.Tensor:
    """A saved latent, on the VAE's scale."""
    file, = result.outputs[node_id]["latents"]
    saved = SavedFile(node_id, file["filename"], file["subfolder"], file["type"])
    return safetensors.torch.load(client.view(saved))["latent_tensor"]
