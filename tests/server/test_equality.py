"""Whole pictures through a running server against the reference pipeline: same weights, prompt and seed."""
import functools

import numpy as np
import pytest
import torch

from qwen_image_2.model.qwen_image_2 import latents
from qwen_image_2.tests.server import conftest as here

LATENT_BOUND = 2e-3
PIXEL_BOUND = 1  # of 255

LAYOUTS = {
    "Comfy-Org files": (here.FUSED, here.TEXT_ENCODER, here.WAN_VAE),
    "diffusers folders, sharded": (here.FOLDER, here.TEXT_ENCODER_FOLDER, here.VAE_FOLDER),
    "prefixed, split, 5-D": (here.PREFIXED, here.TEXT_ENCODER, here.DIFFUSERS_VAE),
}
PROMPT = 'A poster, "GRAND OPENING" in red letters. 红底金字“开业大吉”。'
NEGATIVE = "blurry, low quality"
SIZES = [(96, 64), (64, 160)]
SEED = 42


@pytest.fixture(scope="module")
def expected(reference):
    """(latent on the transformer's scale, pictures) of the reference, computed once per setting."""
    @functools.cache
    def run(steps, width, height, cfg):
        def call(output_type):
            return reference(PROMPT, negative_prompt=NEGATIVE if cfg > 1 else None, true_cfg_scale=cfg, width=width,
                             height=height, num_inference_steps=steps, output_type=output_type,
                             generator=torch.Generator().manual_seed(SEED)).images
        packed = call("latent")
        latent = packed.transpose(1, 2).unflatten(2, (height // 16, width // 16))
        return latent, np.stack([np.asarray(image) for image in call("pil")])
    return run


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("steps", [8, 40])
@pytest.mark.parametrize("width, height", SIZES)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_whole_picture_equals_the_reference(client, expected, layout, steps, width, height, cfg):
    diffusion_model, text_encoder, vae = LAYOUTS[layout]
    preset = {8: "Custom", 40: "Quality 40"}[steps]
    graph = here.Graph(diffusion_model=diffusion_model, text_encoder=text_encoder, vae=vae, prompt=PROMPT,
                       negative_prompt=NEGATIVE, width=width, height=height, seed=SEED, preset=preset, steps=steps,
                       cfg=cfg)
    result = client.run(graph.nodes())
    expected_latent, expected_picture = expected(steps, width, height, cfg)
    found = latents.normalize(here.latent(client, result))
    assert (found - expected_latent).abs().max() < LATENT_BOUND
    picture = here.images(client, result)
    assert picture.shape == expected_picture.shape and picture.std() > 10
    assert np.abs(picture.astype(int) - expected_picture).max() <= PIXEL_BOUND
