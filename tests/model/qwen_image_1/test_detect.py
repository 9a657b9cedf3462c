"""Detection: every circulating layout gives the same network, every other file one clear sentence."""
import pytest
import torch

from qwen_image_2.model.checkpoints import loading
from qwen_image_2.model.checkpoints.checkpoint import Checkpoint, StoredCheckpoint, TensorInfo
from qwen_image_2.model.checkpoints.errors import CheckpointError
from qwen_image_2.model.checkpoints.files import open_checkpoint
from qwen_image_2.model.qwen_image_1 import detect, key_maps
from qwen_image_2.model.qwen_image_1.spec import VAESpec
from qwen_image_2.model.qwen_image_1.vae import VAE
from qwen_image_2.model.qwen_image_2.spec import VAESpec as VAESpec2
from qwen_image_2.model.qwen_image_2.vae import VAE as VAE2
from qwen_image_2.tests import reference
from qwen_image_2.tools import tiny

SIZES = VAESpec(base_dim=8)


def infos(state, dtype="F32"):
    return {name: TensorInfo(tuple(value.shape), dtype) for name, value in state.items()}


def to_wan(state):
    return {key_maps.VAE_WAN.to(name): value for name, value in state.items()}


def beside_others(state):
    """A whole checkpoint: Rapid-AIO's names."""
    return {"model.diffusion_model.proj_out.weight": torch.ones(2, 2),
            "text_encoders.qwen25_7b.transformer.model.norm.weight": torch.ones(2),
            **{f"vae.{name}": value for name, value in to_wan(state).items()}}


def single_frame(state):
    return {name: value[:, :, -1] if value.ndim == 5 else value for name, value in state.items()
            if ".time_conv." not in name}


LAYOUTS = {
    "diffusers": dict,
    "Wan": to_wan,
    "Wan with a prefix": lambda state: {f"first_stage_model.{n}": v for n, v in to_wan(state).items()},
    "a whole checkpoint": beside_others,
    "diffusers, 4-D": single_frame,
    "Wan, one tap": lambda state: to_wan({n: v[:, :, -1:] if v.ndim == 5 else v for n, v in state.items()}),
}


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["kept", "converted"])
def test_layouts_load_the_same_weights(layout, channels, dtype, tmp_path):
    state = reference.vae_1(channels).state_dict()
    path = tmp_path / "model.safetensors"
    tiny.save(LAYOUTS[layout](state), path, {}, torch.float32)
    checkpoint = open_checkpoint(path)
    assert detect.is_vae(checkpoint)
    detected = detect.detect_vae(checkpoint)
    assert detected.spec == VAESpec(base_dim=8, pixel_channels=channels)
    model = VAE(detected.spec, device="meta")
    loading.load(model, detected, checkpoint, dtype)
    living = single_frame(state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, living[name].reshape(value.shape).to(dtype)), name
    for name in detected.last_taps:  # copies: what no frame meets is kept nowhere
        assert model.get_parameter(name).untyped_storage().nbytes() == model.get_parameter(name).nbytes
    # conv_in and conv_out of both halves, two kernels of each of 8 + 12 + 4 residual blocks
    assert len(detected.last_taps) == (0 if "4-D" in layout or "one tap" in layout else 4 + 2 * 24)


def test_kernels_are_mapped_on_their_own(tmp_path, monkeypatch):
    """Or the pages of what is not taken would stay as long as the file's other tensors do."""
    tiny.save(to_wan(reference.vae_1().state_dict()), tmp_path / "model.safetensors", {}, torch.float32)
    checkpoint, alone, read = open_checkpoint(tmp_path / "model.safetensors"), [], StoredCheckpoint.read
    monkeypatch.setattr(StoredCheckpoint, "read", lambda self, name: alone.append(name) or read(self, name))
    detected = detect.detect_vae(checkpoint)
    loading.load(VAE(detected.spec, device="meta"), detected, checkpoint, torch.float32)
    assert set(alone) == {key_maps.VAE_WAN.to(name) for name in detected.last_taps}


def test_values_that_no_frame_meets_may_be_anything(tmp_path):
    state = reference.vae_1().state_dict()
    state["decoder.conv_in.weight"][:, :, 0] = float("nan")
    tiny.save(state, tmp_path / "model.safetensors", {}, torch.float32)
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    loading.load(VAE(SIZES, device="meta"), detect.detect_vae(checkpoint), checkpoint, torch.float32)


def test_nan_weights_are_named(tmp_path):
    state = to_wan(reference.vae_1().state_dict())
    state["decoder.conv1.weight"][3, 5, 2, 1, 1] = float("nan")
    tiny.save(state, tmp_path / "nan.safetensors", {}, torch.float32)
    checkpoint = open_checkpoint(tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="nan.safetensors is damaged: tensor decoder.conv1.weight contains NaN"):
        loading.load(VAE(SIZES, device="meta"), detect.detect_vae(checkpoint), checkpoint, torch.float32)


def test_wan_names_are_the_published_ones():
    """As in qwen_image_vae.safetensors: one list for all levels."""
    for ours, theirs in {
            "decoder.mid_block.resnets.1.norm1.gamma": "decoder.middle.2.residual.0.gamma",
            "decoder.mid_block.attentions.0.to_qkv.weight": "decoder.middle.1.to_qkv.weight",
            "decoder.conv_out.weight": "decoder.head.2.weight", "encoder.norm_out.gamma": "encoder.head.0.gamma",
            "encoder.down_blocks.2.resample.1.weight": "encoder.downsamples.2.resample.1.weight",
            "encoder.down_blocks.3.conv_shortcut.bias": "encoder.downsamples.3.shortcut.bias",
            "encoder.down_blocks.10.conv2.weight": "encoder.downsamples.10.residual.6.weight",
            "decoder.up_blocks.1.resnets.0.conv_shortcut.weight": "decoder.upsamples.4.shortcut.weight",
            "decoder.up_blocks.1.upsamplers.0.time_conv.bias": "decoder.upsamples.7.time_conv.bias",
            "decoder.up_blocks.3.resnets.2.norm2.gamma": "decoder.upsamples.14.residual.3.gamma",
            "quant_conv.bias": "conv1.bias", "post_quant_conv.weight": "conv2.weight"}.items():
        assert key_maps.VAE_WAN.to(ours) == theirs and key_maps.VAE_WAN.back(theirs) == ours


def test_wan_names_are_those_of_comfyui(comfyui):
    from comfy.ldm.wan.vae import WanVAE
    theirs = WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True]).state_dict()
    state = to_wan(reference.vae_1().state_dict())
    assert {name: value.shape for name, value in state.items()} == {n: v.shape for n, v in theirs.items()}


def test_the_key_map_is_one_to_one_and_knows_its_own_names():
    names = list(reference.vae_1().state_dict())
    theirs = list(map(key_maps.VAE_WAN.to, names))
    assert len(set(theirs)) == len(names) == 194 and not set(theirs) & set(names)
    assert list(map(key_maps.VAE_WAN.back, theirs)) == list(map(key_maps.VAE_WAN.back, names)) == names


def test_the_configuration_adds_the_scale():
    config = {"latents_mean": [0.5] * 16, "latents_std": [2.0] * 16}
    detected = detect.detect_vae(Checkpoint("file", infos(reference.vae_1().state_dict()), config))
    assert detected.spec.latent_mean == (0.5,) * 16 and detected.config == config
    with pytest.raises(CheckpointError, match="file has inconsistent layer sizes: 16 latent channels, but 3 means"):
        detect.detect_vae(Checkpoint("file", infos(reference.vae_1().state_dict()), {"latents_mean": [0.5] * 3}))


def changed(**tensors):
    return infos(to_wan(reference.vae_1().state_dict())) | {
        name.replace("__", "."): TensorInfo(shape, dtype) for name, (shape, dtype) in tensors.items()}


@pytest.mark.parametrize("tensors, words", [
    (changed(decoder__conv1__weight=((32, 48, 3, 3, 3), "F32")), "with 3 pixel channels .3 decoded. and 48 "
     "latent channels; Qwen-Image 1.x needs 3 or 4, as many decoded, and 16: choose the VAE of Qwen-Image 1.x"),
    (changed(encoder__conv1__weight=((8, 12, 3, 3, 3), "F32")), "with 12 pixel channels .3 decoded."),
    (changed(decoder__head__2__weight=((12, 8, 3, 3, 3), "F32")), "with 3 pixel channels .12 decoded."),
    (changed(encoder__conv1__weight=((8, 3, 2, 3, 3), "F32")), r"has shape \[8, 3, 2, 3, 3\], expected \[8, 3, 3, 3\]"),
    (changed(extra__weight=((3,), "F32")), "1 tensors that do not belong .* for example extra.weight"),
    (changed(conv1__weight=((32, 32, 1, 1, 1), "I8")), "is quantized in an unsupported format"),
    (changed(conv1__weight_scale=((), "F32")), "is quantized in an unsupported format"),
    (changed(encoder__conv1__weight=((0, 3, 3, 3, 3), "F32")), "has invalid shape"),
    ({"decoder.mid.block_1.norm1.weight": TensorInfo((4,), "F32")}, "a Stable Diffusion VAE, not a vae for Qwen"),
], ids=["latents", "pixels", "enlarges", "taps", "unknown", "int8", "scaled", "empty", "another VAE"])
def test_other_files_are_refused(tensors, words):
    with pytest.raises(CheckpointError, match=f"^it.safetensors.*{words}"):
        detect.detect_vae(Checkpoint("it.safetensors", tensors))


@pytest.mark.parametrize("gone", ["encoder.down_blocks.3.conv1.weight", "decoder.up_blocks.3.resnets.2.norm1.gamma",
                                  "encoder.conv_in.weight", "encoder.down_blocks.9.norm2.gamma", "quant_conv.bias"])
def test_missing_tensors_are_named(gone):
    tensors = infos(reference.vae_1().state_dict())
    del tensors[gone]
    assert detect.is_vae(Checkpoint("file", tensors))
    with pytest.raises(CheckpointError, match=f"file is incomplete: tensor {gone} is missing"):
        detect.detect_vae(Checkpoint("file", tensors))


def test_vaes_of_other_families_are_theirs():
    """Qwen-Image 2.x's and Wan 2.2's have levels inside their levels."""
    state = tiny.shapes(VAE2(VAESpec2(base_dim=8, decoder_base_dim=12)))
    for layout in (state, tiny.to_wan_vae(state), {"a": torch.ones(1)}):
        assert not detect.is_vae(Checkpoint("file", infos(layout)))
