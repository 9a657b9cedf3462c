"""The tiny files of Qwen-Image 1.x are laid out as the official ones."""
from pathlib import Path

import pytest

from qwen_image_2.model.checkpoints.files import open_checkpoint
from qwen_image_2.model.language.qwen2_5_vl import detect_text_encoder
from qwen_image_2.model.qwen_image_1 import detect
from qwen_image_2.tools import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.write_1(folder)
    return folder


def opened(folder, part, name):
    return open_checkpoint(folder / part / name)


@pytest.mark.parametrize("name, marked", [(tiny.TRANSFORMER_1, False), (tiny.EDIT_1, True)])
def test_transformers(folder, name, marked):
    spec = detect.detect_transformer(opened(folder, "diffusion_models", name)).spec
    assert (spec.dim, spec.layers, spec.zero_cond_t) == (tiny.TRANSFORMER_SPEC_1.dim, 2, marked)


def test_the_vae_has_the_names_and_shapes_of_a_video_s(folder):
    """Those of diffusers' own network, by Wan's names."""
    from qwen_image_2.tests import reference
    checkpoint = opened(folder, "vae", tiny.VAE_1)
    official = tiny.to_wan_vae_1(reference.vae_1().state_dict())
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {
        name: tuple(value.shape) for name, value in official.items()}
    assert detect.detect_vae(checkpoint).spec == tiny.VAE_SPEC_1


def test_the_text_encoder(folder):
    checkpoint = opened(folder, "text_encoders", tiny.TEXT_ENCODER_1)
    assert {"lm_head.weight", "model.embed_tokens.weight", "visual.patch_embed.proj.weight"} < set(checkpoint.tensors)
    assert detect_text_encoder(checkpoint).spec.vision
