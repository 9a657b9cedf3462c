"""The VAE in this process."""
import itertools

import pytest
import torch
import torch.nn.functional as F

from qwen_image_2.model.qwen_image_2 import latents
from qwen_image_2.model.qwen_image_2.vae_memory import MEMORY
from qwen_image_2.model.runtime import vae_memory
from qwen_image_2.tests.reference import error


def test_rgb_is_encoded_as_opaque(vae):
    rgb = torch.rand(1, 64, 48, 3)
    opaque = torch.cat([rgb, torch.ones(1, 64, 48, 1)], -1)
    assert torch.equal(vae.encode(rgb), vae.encode(opaque))


def test_latents_leave_on_the_published_scale(comfyui, vae_file, tmp_path):
    """A checkpoint with statistics of its own gives the transformer what it was trained on all the same."""
    from safetensors.torch import load_file

    from qwen_image_2.nodes.bridge.vae import load_vae
    from qwen_image_2.tools import tiny
    config = {"latents_mean": [0.5] * 64, "latents_std": [2.0] * 64}
    path = tmp_path / "own_scale.safetensors"
    tiny.save(load_file(vae_file), path, config, torch.float32)
    ours, published = load_vae(path, path.name), load_vae(vae_file, vae_file.name)
    picture = torch.rand(1, 32, 32, 4)
    raw = published.encode(picture)
    assert error(latents.normalize(ours.encode(picture)), (raw - 0.5) / 2) < 1e-5
    assert error(ours.decode(ours.encode(picture)), published.decode(raw)) < 1e-4


def test_memory_that_is_asked_for(vae):
    """Enough for what is counted at the published widths (1.6 GiB at 2048 x 2048, 2.4 at 4096 x 4096), not the 13.5
    GiB that a decode as a whole would take."""
    ask = vae.memory_used_decode
    assert 1.6 * 2**30 < ask((1, 64, 128, 128), torch.bfloat16) < 2.5 * 2**30
    assert 2.4 * 2**30 < ask((1, 64, 256, 256), torch.bfloat16) < 4 * 2**30
    assert ask((1, 64, 16, 16), torch.bfloat16) < 2**28


def test_a_peak_is_asked_for_and_kept_to(vae, monkeypatch):
    from qwen_image_2.model.qwen_image_2.vae import VAE
    chunks = []
    decode = VAE.decode
    monkeypatch.setattr(VAE, "decode", lambda self, latent, chunk_bytes=0, clamped=True: chunks.append(chunk_bytes)
                        or decode(self, latent))
    limited = vae.with_peak(2**28)
    latent = torch.randn(2, 64, 4, 6, generator=torch.Generator().manual_seed(0))
    assert limited.memory_used_decode((2, 64, 4, 6), torch.float32) == 2**28
    assert error(limited.decode(latent), vae.decode(latent)) < 1e-5
    summed = vae_memory.summed(vae.first_stage_model.decoder)
    chunk = MEMORY.chunk_for(2**28, 64, 96, 4, summed)
    assert chunks == [chunk, chunk, 0]  # each picture alone, then both with the standard
    with pytest.raises(ValueError, match="at least 0.0. GiB for 96 x 64 pixels, but VRAM for VAE .* is 0.01 GiB"):
        vae.with_peak(2**23).decode(latent)
    side = limited.largest_side
    MEMORY.chunk_for(2**28, side, side, 4, summed)
    with pytest.raises(ValueError, match="VRAM for VAE"):
        MEMORY.chunk_for(2**28, side + 16, side + 16, 4, summed)


@pytest.mark.parametrize("work, given", [
    ("decode", (1, 64, 4, 6)), ("decode_tiled", (1, 64, 4, 6)), ("encode", (1, 64, 96, 4)),
    ("encode_tiled", (1, 64, 96, 4))])
def test_a_peak_is_gone_after_a_call_that_is_refused(vae, work, given, monkeypatch):
    """VAEs of one file share their network: another one must not inherit the peak."""
    from qwen_image_2.nodes.bridge.vae import AutoEncoder
    network, seen = vae.first_stage_model, []
    each = AutoEncoder._each
    monkeypatch.setattr(AutoEncoder, "_each", lambda self, *arguments: seen.append(self.peak)
                        or each(self, *arguments))
    with pytest.raises(ValueError, match="VRAM for VAE .* is 0.00 GiB"):
        getattr(vae.with_peak(2**20), work)(torch.rand(given))
    assert set(seen) == {2**20} and network.peak is None


def test_fp16_is_not_used(comfyui, monkeypatch, caplog):
    import comfy.model_management

    from qwen_image_2.nodes.bridge.vae import working_dtype
    monkeypatch.setattr(comfy.model_management, "vae_dtype", lambda device, dtypes: torch.float16)
    assert working_dtype(torch.device("cpu"), [torch.bfloat16, torch.float32]) == torch.float32
    assert "white squares" in caplog.text


@pytest.mark.parametrize("mask_size", [(64, 48), (16, 12)])
def test_masks_become_alpha(comfyui, mask_size):
    from qwen_image_2.nodes.vae import with_alpha
    image = torch.rand(2, 64, 48, 3)
    mask = torch.zeros(1, *mask_size)
    mask[:, :mask_size[0] // 2] = 1  # the upper half is transparent
    out = with_alpha(image, mask)
    assert out.shape == (2, 64, 48, 4) and torch.equal(out[..., :3], image)
    assert out[:, :24, :, 3].max() < 0.01 and out[:, 40:, :, 3].min() > 0.99


def test_doubling_gets_its_weights_from_comfyui(comfyui):
    """Where ComfyUI keeps weights elsewhere or in another dtype, its layer hands over what it has made ready."""
    import comfy.ops

    from qwen_image_2.model.runtime.vae_layers import upsample_conv
    layer = upsample_conv(comfy.ops.manual_cast)(4, 6, 3, padding=1, dtype=torch.bfloat16)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(1, 4, 5, 3)
    expected = F.conv2d(F.interpolate(x, scale_factor=2), layer.weight.float(), layer.bias.float(), padding=1)
    assert error(layer(x).float(), expected) < 1e-5
    taps = layer.taps(x)
    assert torch.equal(layer(x, taps), layer(x))
    places = [tensor.untyped_storage().data_ptr()
              for tensor in (layer.weight, layer.bias, *itertools.chain(*taps.weights), taps.bias)]
    assert len(set(places)) == 7, "ComfyUI may take back what it has made ready"


@pytest.mark.parametrize(("name", "file", "told"), [
    ("texture-fix-vae-for-qwen-image-2.1/diffusion_pytorch_model.safetensors", "vae_file", True),
    ("Texture_Fix_VAE.safetensors", "vae_file", True), ("qwen_image_2.1_vae.safetensors", "vae_file", False),
    ("texture-fix.safetensors", "vae_1_file", False)])
def test_texture_fix_is_named(request, name, file, told):
    """It has the published VAE's names and shapes, so only what it is called tells."""
    from qwen_image_2.nodes.bridge.vae import load_vae
    from qwen_image_2.nodes.loaders import about_texture_fix
    found = about_texture_fix(name, load_vae(request.getfixturevalue(file), name))
    assert (found is not None) == told and (not told or str(found).startswith(f"{name} is Texture-Fix"))
