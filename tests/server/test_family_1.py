"""Qwen-Image 1.x through a running server: whole pictures against the reference pipelines, core's nodes, bad input."""
import functools

import numpy as np
import pytest
import torch

from qwen_image_2.model.images import sizes
from qwen_image_2.model.qwen_image_1.latents import LATENT_MEAN, LATENT_STD
from qwen_image_2.model.runtime import latent_scale
from qwen_image_2.tests import reference_1
from qwen_image_2.tests.reference import error
from qwen_image_2.tests.server import conftest as here
from qwen_image_2.tests.server.conftest import Graph
from qwen_image_2.tests.server.test_edit import edit_nodes, pictures
from qwen_image_2.tests.server.test_equality import LATENT_BOUND, PIXEL_BOUND
from qwen_image_2.tools import tiny
from qwen_image_2.tools.comfyui.client import Client
from qwen_image_2.tools.comfyui.server import Server

FOLDERS = tuple(f"Qwen-Image-Edit-2511/{part}/" for part in ("transformer", "text_encoder", "vae"))
WHOLE = "checkpoints/qwen_rapid_aio.safetensors"
LAYOUTS = {
    "Comfy-Org files": (tiny.TRANSFORMER_1, tiny.TEXT_ENCODER_1, tiny.VAE_1),
    "diffusers folders": FOLDERS,
    "a whole checkpoint": (WHOLE,) * 3,
}
PROMPT = 'A poster, "GRAND OPENING" in red letters. 红底金字“开业大吉”。'
NEGATIVE = "blurry, low quality"
SEED = 42
SIDE = 128  # of a reference, about, as the VAE sees it


@pytest.fixture(scope="module")
def oracle(comfyui_path):
    """pipelines(options) -> kind -> a pipeline, whose weights are the files'."""
    return functools.cache(functools.partial(reference_1.pipelines, comfyui_path))


@pytest.fixture(scope="module")
def models(oracle, tmp_path_factory):
    """The same weights, fp32, in every layout, and 2.x's beside them."""
    root = tmp_path_factory.mktemp("models_1")
    tiny.write(root)
    edit = oracle(zero_cond_t=True)["edit"]
    transformer, encoder, vae = (part.state_dict() for part in (edit.transformer, edit.text_encoder, edit.vae))
    config = {"text_config": tiny.TEXT_CONFIG_1, "vision_config": tiny.VISION_CONFIG_1}
    tiny.save(transformer, root / "diffusion_models" / tiny.TRANSFORMER_1, {}, torch.float32)
    tiny.save(tiny.to_comfy_text_encoder_1(encoder), root / "text_encoders" / tiny.TEXT_ENCODER_1, config,
              torch.float32)
    tiny.save(tiny.to_wan_vae_1(vae), root / "vae" / tiny.VAE_1, {}, torch.float32)
    for part, folder in zip((edit.transformer, edit.text_encoder, edit.vae), FOLDERS, strict=True):
        part.save_pretrained(root / "diffusers" / folder)
    tiny.save(tiny.whole_1(transformer, encoder, vae), root / WHOLE, config, torch.float32)
    return root


@pytest.fixture(scope="module")
def server(comfyui_path, models):
    with Server(comfyui_path, models=models, cpu=True, preview="latent2rgb") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return Client(server.url)


def graph(layout="Comfy-Org files", **settings) -> Graph:
    diffusion_model, text_encoder, vae = LAYOUTS[layout]
    return Graph(**{"diffusion_model": diffusion_model, "text_encoder": text_encoder, "vae": vae, "prompt": PROMPT,
                    "negative_prompt": NEGATIVE, "seed": SEED} | settings)


def normalized(latent: torch.Tensor) -> torch.Tensor:
    """The only frame (B, 16, h, w), on the transformer's scale."""
    return latent_scale.normalize(latent[:, :, 0], LATENT_MEAN, LATENT_STD)


def of_reference(pipeline, prompt, width, height, cfg, **settings) -> tuple[torch.Tensor, np.ndarray]:
    """Latent (1, 16, h, w), on the transformer's scale, and picture (H, W, 3) of one run."""
    last = {}

    def keep(pipeline, step, timestep, tensors):
        last.update(tensors)
        return tensors

    with torch.no_grad():
        image, = pipeline(prompt=prompt, negative_prompt=NEGATIVE if cfg > 1 else None, true_cfg_scale=cfg,
                          width=width, height=height, generator=torch.Generator().manual_seed(SEED),
                          callback_on_step_end=keep, **settings).images
    latent = pipeline._unpack_latents(last["latents"], height, width, pipeline.vae_scale_factor)
    return latent[:, :, 0], np.asarray(image)


def check_equal(client, result, expected) -> None:
    latent, picture = expected
    found = normalized(here.latent(client, result))
    image = here.images(client, result)[0]
    assert image.shape[:2] == picture.shape[:2] and picture.std() > 10
    print(f"latent {error(found, latent):.2e}, pixels {np.abs(image[..., :3].astype(int) - picture).max()}")
    assert error(found, latent) < LATENT_BOUND
    assert np.abs(image[..., :3].astype(int) - picture).max() <= PIXEL_BOUND
    assert (image[..., 3] == 255).all(), "this family knows no transparency"


# ---------------------------------------------------------------- equality

@pytest.mark.parametrize("layout, width, height, cfg", [
    ("Comfy-Org files", 160, 128, 4.0), ("Comfy-Org files", 208, 176, 4.0), ("Comfy-Org files", 208, 176, 1.0),
    ("diffusers folders", 160, 128, 4.0), ("a whole checkpoint", 160, 128, 4.0),
])
def test_whole_picture_equals_the_reference(client, oracle, layout, width, height, cfg):
    """208 x 176 pixels are 13 x 11 tokens: odd sides, as most official sizes have them."""
    expected = of_reference(oracle()["t2i"], PROMPT, width, height, cfg, num_inference_steps=4)
    check_equal(client, client.run(graph(layout, width=width, height=height, cfg=cfg).nodes()), expected)


def test_a_few_steps_equal_the_reference(client, oracle):
    expected = of_reference(oracle(lightning=True)["t2i"], PROMPT, 160, 128, 1.0, num_inference_steps=4)
    result = client.run(graph(width=160, height=128, preset="Lightning LoRA 4 (1.x)").nodes())
    check_equal(client, result, expected)


REFERENCES = {
    "one": [(104, 64)],
    "two": [(64, 96), (200, 120)],
    "three": [(33, 57), (128, 128), (96, 40)],
}


@pytest.mark.parametrize("kind, layout, variant, references, cfg", [
    ("edit", "Comfy-Org files", "base", "one", 4.0),
    ("edit plus", "Comfy-Org files", "base", "two", 4.0),
    ("edit plus", "Comfy-Org files", "edit 2511", "two", 4.0),
    ("edit plus", "diffusers folders", "auto", "three", 1.0),
    ("edit plus", "a whole checkpoint", "base", "three", 4.0),
])
def test_whole_edit_equals_the_reference(client, oracle, tmp_path, kind, layout, variant, references, cfg):
    """auto: by the folder's configuration."""
    images = pictures([(size, "RGB") for size in REFERENCES[references]])
    width, height = sizes.reference_size(*REFERENCES[references][-1], SIDE)
    prompt = "make it blue, 加上“你好”"
    theirs = images[0] if kind == "edit" else images  # of a list it would resize nothing
    with reference_1.small_references(SIDE):
        expected = of_reference(oracle(zero_cond_t=variant != "base")[kind], prompt, width, height, cfg, image=theirs,
                                num_inference_steps=4)
    nodes = edit_1(client, tmp_path, images, prompt, layout, variant, kind)
    nodes["sampler"]["inputs"]["cfg"] = cfg
    check_equal(client, client.run(nodes), expected)


def edit_1(client, tmp_path, images, prompt="make it blue", layout="Comfy-Org files", variant="base",
           kind="edit plus", **inputs) -> dict:
    nodes = edit_nodes(client, tmp_path, images, prompt, str(SIDE), negative_prompt=NEGATIVE,
                       edit_model={"edit": "Edit (first model)", "edit plus": "Edit Plus (2509, 2511)"}[kind], **inputs)
    plain = graph(layout, variant=variant).nodes()
    return nodes | {"loader": plain["loader"], "sampler": nodes["sampler"] | {
        "inputs": nodes["sampler"]["inputs"] | {"seed": SEED, "steps": 4}}}
