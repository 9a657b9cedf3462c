"""ControlNets and model patches of Qwen-Image 1.x: core's own loaders and nodes, on the pack's MODEL and VAE.

Sixty narrow blocks, because core spreads what a ControlNet gives over as many.
"""
import functools
import math

import pytest
import safetensors.torch
import torch

from qwen_image_2.model.qwen_image_1 import latents as published
from qwen_image_2.model.qwen_image_1.transformer import latents, patches
from qwen_image_2.tests import reference_1
from qwen_image_2.tests.nodes.bridge.test_qwen_image_1 import load
from qwen_image_2.tests.reference import error
from qwen_image_2.tools import tiny

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")

SIGMA, WIDTH, BLOCKS = 0.7315, 128, 60
GRID = (4, 6)  # patches: even numbers, where core's positions are the trained ones
SIDES = tuple(2 * side for side in GRID)


@pytest.fixture(scope="module")
def theirs():
    return reference_1.transformer(layers=BLOCKS, heads=1)


@pytest.fixture(scope="module")
def patcher(comfyui, theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("diffusion_models") / "qwen_image_2512_bf16.safetensors"
    tiny.save_as_they_are(theirs.state_dict(), path)
    return load(path)


@pytest.fixture(scope="module")
def cores(comfyui, theirs):
    """Core's transformer with the same weights."""
    import comfy.ops
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
    model = QwenImageTransformer2DModel(num_attention_heads=1, joint_attention_dim=64, num_layers=BLOCKS,
                                        dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    model.load_state_dict(theirs.state_dict())
    return model


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TEXT, NOISE = draw(1, 11, 64), draw(1, 16, 1, *SIDES, seed=2)
IMAGE = torch.rand(1, 8 * SIDES[0], 8 * SIDES[1], 3, generator=torch.Generator().manual_seed(3))
MASK = (torch.rand(1, *SIDES, generator=torch.Generator().manual_seed(4)) > 0.5).float().repeat_interleave(
    8, 1).repeat_interleave(8, 2)  # the same in all pixels of a latent, so that no way of scaling matters


def step(patcher, conditioning) -> tuple[torch.Tensor, torch.Tensor]:
    """The input of a step that core's sampler takes, and its velocity."""
    import comfy.sample
    import comfy.samplers
    seen = []

    def look(given):
        seen.append((given["input"], (given["input"] - given["denoised"]) / given["sigma"]))
        return given["denoised"]
    clone = patcher.clone()
    clone.set_model_sampler_post_cfg_function(look)
    comfy.sample.sample_custom(clone, NOISE, 1.0, comfy.samplers.sampler_object("euler"), torch.tensor([SIGMA, 0.0]),
                               conditioning, conditioning, torch.zeros_like(NOISE), seed=0)
    (x, velocity), = seen
    return x, velocity


def plain_step(patcher) -> torch.Tensor:
    return step(patcher, [[TEXT, {}]])[1]


def loaded(path):
    import comfy.controlnet
    return comfy.controlnet.load_controlnet(str(path))


def condition_latents(vae, image) -> torch.Tensor:
    """On the transformer's scale, (1, 16, 1, h, w)."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (published.LATENT_MEAN, published.LATENT_STD))
    return (vae.encode(image) - mean) / std


# ---------------------------------------------------------------- InstantX

def instantx(folder, monkeypatch, blocks: int, channels: int = 0):
    """diffusers' ControlNet, and core's from its file, whose sizes core has in its code."""
    import comfy.ldm.qwen_image.controlnet as core
    from diffusers import QwenImageControlNetModel
    net = reference_1.redrawn(QwenImageControlNetModel(
        num_layers=blocks, num_attention_heads=1, joint_attention_dim=64, extra_condition_channels=channels), 5)
    path = folder / "Qwen-Image-InstantX-ControlNet-Union.safetensors"
    safetensors.torch.save_file(net.state_dict(), path)
    monkeypatch.setattr(core, "QwenImageControlNetModel", functools.partial(
        core.QwenImageControlNetModel, num_attention_heads=1, joint_attention_dim=64))
    return net, loaded(path)


def velocity_of_reference(theirs, net, x, hint, strength) -> torch.Tensor:
    """diffusers: the ControlNet's residuals in its own transformer."""
    tokens, shapes, sigma = patches(x[:, :, 0], 2), [[(1, *GRID)]], torch.tensor([SIGMA])
    residuals = net(tokens, patches(hint[:, :, 0], 2), strength, TEXT, None, sigma, shapes, return_dict=False)
    out = theirs(tokens, TEXT, None, sigma, shapes, controlnet_block_samples=residuals, return_dict=False)[0]
    return latents(out, x.shape, 2)


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_instantx_union_equals_diffusers(patcher, theirs, vae_1, tmp_path, monkeypatch, strength):
    import nodes
    net, control = instantx(tmp_path, monkeypatch, blocks=5)
    conditioning, _ = nodes.ControlNetApplyAdvanced().apply_controlnet(
        [[TEXT, {}]], [[TEXT, {}]], control, IMAGE, strength, 0.0, 1.0, vae=vae_1)
    x, found = step(patcher, conditioning)
    expected = velocity_of_reference(theirs, net, x, condition_latents(vae_1, IMAGE), strength)
    assert error(found, expected) < 1e-4 < 1e-2 < error(plain_step(patcher), expected)


def test_instantx_inpainting_equals_diffusers(patcher, theirs, vae_1, tmp_path, monkeypatch):
    """What is to be painted anew is black for the VAE in core's node; the mask is a channel of its own, 0 there."""
    from comfy_extras.nodes_controlnet import ControlNetInpaintingAliMamaApply
    net, control = instantx(tmp_path, monkeypatch, blocks=6, channels=4)
    conditioning = ControlNetInpaintingAliMamaApply.execute(
        [[TEXT, {}]], [[TEXT, {}]], control, vae_1, IMAGE, MASK, 1.0, 0.0, 1.0).result[0]
    x, found = step(patcher, conditioning)
    kept = (1 - MASK)[..., None]
    hint = torch.cat([condition_latents(vae_1, IMAGE * kept), kept[:, None, None, ::8, ::8, 0]], dim=1)
    expected = velocity_of_reference(theirs, net, x, hint, 1.0)
    assert error(found, expected) < 1e-4 < 1e-2 < error(plain_step(patcher), expected)


def test_a_controlnet_works_beside_references(patcher, vae_1, tmp_path, monkeypatch):
    """Its residuals go to the target's tokens alone."""
    import nodes
    _, control = instantx(tmp_path, monkeypatch, blocks=5)
    conditioning, _ = nodes.ControlNetApplyAdvanced().apply_controlnet(
        [[TEXT, {"reference_latents": [draw(1, 16, 1, 4, 6)]}]], [], control, IMAGE, 1.0, 0.0, 1.0, vae=vae_1)
    assert step(patcher, conditioning)[1].isfinite().all()


# ---------------------------------------------------------------- Fun 2512

def fun_file(folder):
    """Names and shapes of Qwen-Image-2512-Fun-Controlnet-Union, narrow."""
    import comfy.ldm.qwen_image.controlnet as core
    import comfy.ops
    with torch.inference_mode(False):
        net = reference_1.redrawn(core.QwenImageFunControlNetModel(
            inner_dim=WIDTH, num_attention_heads=1, dtype=torch.float32,
            operations=comfy.ops.disable_weight_init), 6)
    path = folder / "Qwen-Image-2512-Fun-Controlnet-Union.safetensors"
    safetensors.torch.save_file({name: value.clone() for name, value in net.state_dict().items()}, path)
    return net, path


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_fun_equals_cores_transformer(patcher, cores, vae_1, tmp_path, strength):
    """It computes with the MODEL's own embeddings, and asks for them by core's names."""
    import nodes
    net, path = fun_file(tmp_path)
    conditioning, _ = nodes.ControlNetApplyAdvanced().apply_controlnet(
        [[TEXT, {}]], [[TEXT, {}]], loaded(path), IMAGE, strength, 0.0, 1.0, vae=vae_1)
    x, found = step(patcher, conditioning)
    sigma, hint = torch.tensor([SIGMA]), condition_latents(vae_1, IMAGE)
    residuals = net(x, sigma, TEXT, hint=hint, base_model=cores)["input"]
    residuals = [one if one is None else math.sqrt(strength) * one for one in residuals]
    expected = cores(x, sigma, TEXT, transformer_options={}, control={"input": residuals})
    assert sum(one is not None for one in residuals) == 5
    assert error(found, expected) < 1e-4 < 1e-2 < error(plain_step(patcher), expected)


# ---------------------------------------------------------------- DiffSynth's model patches

def model_patch(folder, monkeypatch, channels: int = 0):
    """What core loads of a file in models/model_patches."""
    import comfy.ops
    import folder_paths
    from comfy_extras import nodes_model_patch as core
    narrow = functools.partial(core.QwenImageBlockWiseControlNet, dim=WIDTH)
    with torch.inference_mode(False):
        net = reference_1.redrawn(narrow(additional_in_dim=channels, dtype=torch.float32,
                                         operations=comfy.ops.disable_weight_init), 7)
    path = folder / "qwen_image_canny_diffsynth_controlnet.safetensors"
    safetensors.torch.save_file({name: value.clone() for name, value in net.state_dict().items()}, path)
    monkeypatch.setattr(core, "QwenImageBlockWiseControlNet", narrow)
    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", lambda *names: str(path))
    return core.ModelPatchLoader().load_model_patch(path.name)[0]


@pytest.mark.parametrize("channels", [0, 4], ids=["canny", "inpaint"])
def test_diffsynths_patches_equal_cores_transformer(patcher, cores, vae_1, tmp_path, monkeypatch, channels):
    from comfy_extras.nodes_model_patch import QwenImageDiffsynthControlnet
    patch = model_patch(tmp_path, monkeypatch, channels)
    patched, = QwenImageDiffsynthControlnet().diffsynth_controlnet(
        patcher, patch, vae_1, IMAGE, 0.3, mask=MASK if channels else None)
    x, found = step(patched, [[TEXT, {}]])
    own = patched.model_options["transformer_options"]["patches"]
    expected = cores(x, torch.tensor([SIGMA]), TEXT, transformer_options={"patches": own})
    assert error(found, expected) < 1e-4 < 1e-2 < error(plain_step(patcher), expected)


def test_no_patch_of_these_is_called_ignored(patcher, vae_1, tmp_path, monkeypatch, caplog):
    from comfy_extras.nodes_model_patch import QwenImageDiffsynthControlnet
    patched, = QwenImageDiffsynthControlnet().diffsynth_controlnet(
        patcher, model_patch(tmp_path, monkeypatch), vae_1, IMAGE, 0.3)
    step(patched, [[TEXT, {}]])
    assert "ignored" not in caplog.text
