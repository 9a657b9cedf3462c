"""ComfyUI in this process, with the reference's weights written to files."""
import pytest
import torch

from qwen_image_2.tools import tiny


@pytest.fixture(scope="session", autouse=True)
def _everywhere(comfyui):
    """Every test here has ComfyUI."""


@pytest.fixture
def as_comfyui_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def text_encoder_file(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("text_encoders") / "qwen3vl_8b_bf16.safetensors"
    tiny.save(reference.text_encoder.state_dict(), path,
              {"text_config": tiny.TEXT_CONFIG, "vision_config": tiny.VISION_CONFIG}, torch.float32)
    return path


@pytest.fixture(scope="session")
def transformer_file(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("diffusion_models") / "qwen_image_2.1_bf16.safetensors"
    tiny.save(tiny.to_comfy_transformer(reference.transformer.state_dict()), path, {}, torch.float32)
    return path


@pytest.fixture(scope="session")
def vae_file(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "qwen_image_2.1_vae_bf16.safetensors"
    tiny.save(tiny.to_wan_vae(reference.vae.state_dict()), path, {}, torch.float32)
    return path


@pytest.fixture(scope="session")
def vae_1_file(comfyui_path, tmp_path_factory):
    """Wan's names, with the taps and convolutions that no single frame uses."""
    from qwen_image_2.model.qwen_image_1.key_maps import VAE_WAN
    from qwen_image_2.tests import reference
    path = tmp_path_factory.mktemp("vae_1") / "qwen_image_vae.safetensors"
    state = reference.vae_1().state_dict()
    tiny.save({VAE_WAN.to(name): value for name, value in state.items()}, path, {}, torch.float32)
    return path


@pytest.fixture(scope="session")
def clip(comfyui, text_encoder_file):
    from qwen_image_2.nodes.bridge.text_encoders.families import load_text_encoder
    return load_text_encoder(text_encoder_file, text_encoder_file.name)


@pytest.fixture(scope="session")
def model(comfyui, transformer_file):
    from qwen_image_2.nodes.bridge.loading import load_model
    return load_model(transformer_file, transformer_file.name, "base")


@pytest.fixture(scope="session")
def vae(comfyui, vae_file):
    from qwen_image_2.nodes.bridge.vae import load_vae
    return load_vae(vae_file, vae_file.name)


@pytest.fixture(scope="session")
def vae_1(comfyui, vae_1_file):
    """Of Qwen-Image 1.x."""
    from qwen_image_2.nodes.bridge.vae import load_vae
    return load_vae(vae_1_file, vae_1_file.name)
