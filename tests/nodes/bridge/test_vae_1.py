"""The VAE of Qwen-Image 1.x in this process: our loader's object, and core's own."""
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_image_2.messages import Refusal
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.qwen_image_1 import latents
from qwen_image_2.model.qwen_image_1.vae_memory import MEMORY
from qwen_image_2.model.runtime import vae_memory
from qwen_image_2.tests import reference
from qwen_image_2.tests.reference import error

BOUND = 1e-5

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


@pytest.fixture(scope="module")
def of_core(comfyui, vae_1_file):
    """What core's VAELoader makes of the same file."""
    import comfy.sd
    return comfy.sd.VAE(sd=load_file(vae_1_file))


@pytest.fixture(scope="module")
def rgba(comfyui, tmp_path_factory):
    """Layered's, with diffusers names."""
    from qwen_image_2.nodes.bridge.vae import load_vae
    path = tmp_path_factory.mktemp("layered") / "diffusion_pytorch_model.safetensors"
    save_file(reference.vae_1(4).state_dict(), path)
    return load_vae(path, path.name)


@pytest.mark.parametrize("height, width", [(64, 48), (40, 88), (50, 67)])
def test_encode_equals_cores(vae_1, of_core, height, width):
    picture = torch.rand(1, height, width, 3)
    found = vae_1.encode(picture)
    assert found.shape == (1, 16, 1, height // 8, width // 8)
    assert error(found, of_core.encode(picture)) < BOUND


def test_decode_equals_cores(vae_1, of_core):
    latent = torch.randn(2, 16, 1, 5, 7, generator=torch.Generator().manual_seed(0)) * 8
    expected = of_core.decode(latent).flatten(0, 1)
    assert error(vae_1.decode(latent), expected) < BOUND
    assert error(vae_1.decode(latent.squeeze(2)), expected) < BOUND
    assert expected.min() == 0 and expected.max() == 1


def test_a_batch_of_pictures_is_no_video(vae_1, of_core):
    from qwen_image_2.nodes.bridge.vae import decode_images, encode_images
    pictures = torch.rand(3, 32, 24, 3)
    found = vae_1.encode(pictures)
    assert found.shape == (3, 16, 1, 4, 3)
    assert error(found[2:], vae_1.encode(pictures[2:])) < BOUND
    assert error(encode_images(of_core, pictures), found) < BOUND
    layers = found.squeeze(2).movedim(0, 1).unsqueeze(0)  # one latent of three frames
    for vae in (vae_1, of_core):
        assert error(decode_images(vae, layers), vae_1.decode(found)) < BOUND


def test_cores_nodes_work_on_it(vae_1, of_core):
    import nodes
    torch.manual_seed(21)  # a picture of which one tile decodes to more than white
    picture = torch.rand(1, 192, 160, 3)
    latent, = nodes.VAEEncode().encode(vae_1, picture)
    whole, = nodes.VAEDecode().decode(vae_1, latent)
    assert whole.shape == picture.shape
    tiled, = nodes.VAEDecodeTiled().decode(vae_1, latent, tile_size=64, overlap=32)
    expected, = nodes.VAEDecodeTiled().decode(of_core, latent, tile_size=64, overlap=32)
    assert tiled.shape == expected.shape and error(tiled, expected) < 1e-4
    pieces, = nodes.VAEEncodeTiled().encode(vae_1, picture, tile_size=128, overlap=32)
    assert pieces["samples"].shape == latent["samples"].shape


def test_latents_are_on_the_scale_that_core_normalizes(vae_1):
    import comfy.latent_formats
    theirs = comfy.latent_formats.Wan21()
    assert theirs.latents_mean.flatten().tolist() == pytest.approx(latents.LATENT_MEAN)
    assert theirs.latents_std.flatten().tolist() == pytest.approx(latents.LATENT_STD)


def test_a_checkpoint_with_statistics_of_its_own(vae_1, vae_1_file, tmp_path):
    from qwen_image_2.nodes.bridge.vae import load_vae
    from qwen_image_2.tools import tiny
    path = tmp_path / "own_scale.safetensors"
    tiny.save(load_file(vae_1_file), path, {"latents_mean": [0.5] * 16, "latents_std": [2.0] * 16}, torch.float32)
    ours, picture = load_vae(path, path.name), torch.rand(1, 32, 32, 3)
    mean, std = (torch.tensor(values).view(1, 16, 1, 1, 1) for values in (latents.LATENT_MEAN, latents.LATENT_STD))
    raw = vae_1.encode(picture)
    assert error((ours.encode(picture) - mean) / std, (raw - 0.5) / 2) < 1e-5
    assert error(ours.decode(ours.encode(picture)), vae_1.decode(raw)) < 1e-4


def test_memory_that_is_asked_for(vae_1):
    """Enough for what is counted at the published widths, not the 18.5 GiB that core reserves at 2048 x 2048."""
    ask = vae_1.memory_used_decode
    assert 0.98 * 2**30 < ask((1, 16, 256, 256), torch.bfloat16) < 1.5 * 2**30
    assert ask((1, 16, 32, 32), torch.bfloat16) < 2**27
    assert vae_1.memory_used_encode((1, 3, 2048, 2048), torch.bfloat16) == ask((1, 16, 256, 256), torch.bfloat16)


def test_a_peak_is_asked_for_and_kept_to(vae_1, monkeypatch):
    from qwen_image_2.model.qwen_image_1.vae import VAE
    chunks, decode = [], VAE.decode
    monkeypatch.setattr(VAE, "decode", lambda self, latent, chunk_bytes=0, clamped=True: chunks.append(chunk_bytes)
                        or decode(self, latent))
    peak = 2**29
    limited = vae_1.with_peak(peak)
    latent = torch.randn(2, 16, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    assert limited.memory_used_decode((2, 16, 8, 12), torch.float32) == peak
    assert error(limited.decode(latent), vae_1.decode(latent)) < 1e-5
    summed = vae_memory.summed(vae_1.first_stage_model.decoder)
    assert chunks == [MEMORY.chunk_for(peak, 64, 96, 4, summed)] * 2 + [0]
    with pytest.raises(Refusal, match="at least 0.4. GiB for 96 x 64 pixels, but VRAM for VAE .* is 0.25 GiB"):
        vae_1.with_peak(2**28).decode(latent)
    assert limited.largest_side % 8 == 0 and vae_1.first_stage_model.peak is None
    MEMORY.chunk_for(peak, limited.largest_side, limited.largest_side, 4, summed)


def test_fp16_may_be_asked_for(comfyui, monkeypatch, vae_1_file):
    import comfy.model_management

    from qwen_image_2.nodes.bridge.vae import load_vae
    monkeypatch.setattr(comfy.model_management, "vae_dtype", lambda device, dtypes: dtypes[1])
    assert load_vae(vae_1_file, vae_1_file.name).vae_dtype == torch.float16
    monkeypatch.setattr(comfy.model_management, "vae_dtype", lambda device, dtypes: dtypes[0])
    assert load_vae(vae_1_file, vae_1_file.name).vae_dtype == torch.bfloat16


@pytest.mark.parametrize("file", ["vae_file", "vae_1_file"])
def test_a_file_that_was_cast_to_fp8_as_it_was(comfyui, request, tmp_path, file):
    """Inside a whole checkpoint that was. It computes in the dtype of any VAE."""
    from qwen_image_2.nodes.bridge.vae import load_vae
    state = load_file(request.getfixturevalue(file))
    cast = {f"vae.{name}": value.to(torch.float8_e4m3fn) for name, value in state.items()}
    save_file(cast, tmp_path / "fp8.safetensors")
    save_file({name: value.to(torch.float32) for name, value in cast.items()}, tmp_path / "rounded.safetensors")
    fp8, rounded = (load_vae(tmp_path / name, name) for name in ("fp8.safetensors", "rounded.safetensors"))
    picture = torch.rand(1, 64, 64, 3)
    assert error(fp8.encode(picture), rounded.encode(picture)) < 1e-6
    assert fp8.vae_dtype == rounded.vae_dtype


def test_it_is_saved_and_loaded(vae_1, tmp_path):
    """As core's VAESave writes it: a 2-D network under our names."""
    from qwen_image_2.nodes.bridge.vae import load_vae
    path = tmp_path / "saved.safetensors"
    save_file({name: value.contiguous() for name, value in vae_1.get_sd().items()}, path)
    latent = torch.randn(1, 16, 1, 4, 3)
    assert error(load_vae(path, path.name).decode(latent), vae_1.decode(latent)) < 1e-6


@pytest.mark.parametrize("which", ["vae", "vae_1", "of_core", "rgba"])
def test_whose_a_vae_is(which, request):
    from qwen_image_2.nodes.bridge.vae import family_of
    from qwen_image_2.nodes.common.checks import check_vae
    vae = request.getfixturevalue(which)
    assert family_of(vae) == ("2.x" if which == "vae" else "1.x")
    check_vae(vae)
    if which == "of_core":
        with pytest.raises(Refusal, match="This VAE is not the Qwen-Image 2 VAE. Load it with Load VAE"):
            check_vae(vae, ours=True)
    else:
        check_vae(vae, ours=True)


def test_a_vae_of_16_channels_of_another_model_is_refused(comfyui):
    import comfy.sd

    from qwen_image_2.nodes.common.checks import check_vae
    other = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    other.latent_channels = 16
    with pytest.raises(Refusal, match="This VAE is not the Qwen-Image 2 VAE"):
        check_vae(other)


@pytest.fixture
def ours(comfyui, monkeypatch):
    from qwen_image_2.nodes import vae
    for node in (vae.QwenImage2VAEEncode, vae.QwenImage2VAEDecode):
        monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id=None), raising=False)
    return vae


@pytest.mark.parametrize("which", ["vae_1", "of_core"])
@pytest.mark.parametrize("frames", [False, True], ids=["4-D", "5-D"])
def test_our_nodes_work_on_it(ours, request, which, frames):
    vae = request.getfixturevalue(which)
    picture = torch.rand(2, 64, 48, 3)
    latent = ours.QwenImage2VAEEncode.execute(picture, vae).result[0]["samples"]
    assert latent.shape == (2, 16, 1, 8, 6)
    given = latent if frames else latent.squeeze(2)
    image, rgba, alpha = ours.QwenImage2VAEDecode.execute({"samples": given}, vae).result
    assert image.shape == (2, 64, 48, 3) and rgba.shape == (2, 64, 48, 4) and alpha.shape == (2, 64, 48)
    assert torch.equal(rgba[..., :3], image) and not alpha.any()
    expected = request.getfixturevalue("vae_1").decode(latent)
    assert error(image, expected) < BOUND


def test_transparency_is_white_for_rgb_and_kept_for_rgba(ours, vae_1, rgba):
    picture = torch.rand(1, 32, 32, 4)
    picture[..., 3] = (picture[..., 3] > 0.5).float()
    white = torch.where(picture[..., 3:] > 0, (picture[..., :3] * 255).round() / 255, 1)
    encode = ours.QwenImage2VAEEncode.execute
    expected = vae_1.encode(white)
    assert error(encode(picture, vae_1).result[0]["samples"], expected) < BOUND
    masked = encode(picture[..., :3], vae_1, 1 - picture[..., 3]).result[0]["samples"]
    assert error(masked, expected) < BOUND
    assert error(encode(picture, rgba).result[0]["samples"], rgba.encode(picture)) < BOUND
    latent = rgba.encode(picture)
    assert error(latent, rgba.encode(picture[..., :3])) > 0.01
    image, _, alpha = ours.QwenImage2VAEDecode.execute({"samples": latent}, rgba).result
    assert error(torch.cat([image, 1 - alpha.unsqueeze(-1)], -1), rgba.decode(latent)) < BOUND and alpha.any()


def test_an_opaque_picture_is_not_rounded(ours, vae_1):
    picture = torch.rand(1, 32, 32, 3)
    found = ours.QwenImage2VAEEncode.execute(picture, vae_1).result[0]["samples"]
    assert torch.equal(found, vae_1.encode(picture))


@pytest.mark.parametrize("side, left", [(104, 96), (112, 112), (127, 112)])
def test_sides_are_multiples_of_two_latents(ours, vae_1, side, left):
    latent = ours.QwenImage2VAEEncode.execute(torch.rand(1, side, 32, 3), vae_1).result[0]["samples"]
    assert latent.shape[-2:] == (left // 8, 4)


@pytest.mark.parametrize("which, shape, words", [
    ("vae_1", (1, 64, 4, 4), "64 channels, as those of Qwen-Image 2.x have, but this VAE is that of Qwen-Image 1.x. "
                             "Connect the VAE of Qwen-Image 2.x."),
    ("of_core", (1, 64, 4, 4), "64 channels, as those of Qwen-Image 2.x"),
    ("vae", (1, 16, 1, 4, 4), "16 channels, as those of Qwen-Image 1.x have, but this VAE is that of Qwen-Image 2.x"),
    ("vae", (1, 16, 4, 4), "Connect the VAE of Qwen-Image 1.x"),
    ("vae_1", (1, 4, 4, 4), r"shape \[1, 4, 4, 4\]; this VAE decodes \[batch, 16, height/8, width/8\]"),
    ("vae_1", (1, 16, 0, 4), r"shape \[1, 16, 0, 4\]"), ("vae_1", (1, 16, 4), r"shape \[1, 16, 4\]"),
    ("vae", (1, 64, 1, 4, 4), r"shape .*; this VAE decodes \[batch, 64, height/16, width/16\]"),
])
def test_other_latents_are_refused(ours, request, which, shape, words):
    with pytest.raises(Refusal, match=words):
        ours.QwenImage2VAEDecode.execute({"samples": torch.zeros(shape)}, request.getfixturevalue(which))


def test_a_file_of_another_model_is_refused(comfyui, tmp_path):
    """Each family refuses its own files, and the second what is neither's."""
    from qwen_image_2.nodes.bridge.vae import open_vae
    for name, words in (("decoder.mid.block_1.norm1.weight", "is a Stable Diffusion VAE, not a vae"),
                        ("double_blocks.0.img_attn.qkv.weight", "is a Flux model, not a vae")):
        save_file({name: torch.ones(2)}, tmp_path / "it.safetensors")
        with pytest.raises(CheckpointError, match=words):
            open_vae(tmp_path / "it.safetensors", "it.safetensors")
    state = reference.vae_1().state_dict()
    del state["decoder.conv_in.bias"]
    save_file(state, tmp_path / "it.safetensors")
    with pytest.raises(CheckpointError, match="incomplete: tensor decoder.conv_in.bias is missing"):
        open_vae(tmp_path / "it.safetensors", "it.safetensors")
