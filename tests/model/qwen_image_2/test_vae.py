"""The autoencoder against diffusers."""
import contextlib
import itertools
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from qwen_image_2.messages import Refusal
from qwen_image_2.model.qwen_image_2 import latents
from qwen_image_2.model.qwen_image_2.spec import VAESpec
from qwen_image_2.model.qwen_image_2.vae import VAE
from qwen_image_2.model.runtime import vae_layers
from qwen_image_2.tests import reference
from qwen_image_2.tests.reference import error

BOUND = 1e-4
SIZES = [(64, 96), (16, 48), (160, 32)]  # height, width in pixels


@pytest.fixture(scope="module")
def pair():
    theirs = reference.vae()
    ours = VAE(VAESpec(base_dim=8, decoder_base_dim=12))
    state = {name: value for name, value in theirs.state_dict().items() if "time_conv" not in name}
    ours.load_state_dict({name: value.reshape(ours.state_dict()[name].shape) for name, value in state.items()})
    return theirs, ours.eval()


@torch.no_grad()
@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("alpha", ["opaque", "transparent"])
def test_encode_equals_the_reference(pair, height, width, alpha):
    theirs, ours = pair
    pixels = torch.rand(2, 4, height, width) * 2 - 1
    if alpha == "opaque":
        pixels[:, 3] = 1
    expected = theirs.encode(pixels.unsqueeze(2)).latent_dist.mode().squeeze(2)
    assert error(ours.encode(pixels), expected) < BOUND


@torch.no_grad()
@pytest.mark.parametrize("height, width", SIZES)
def test_decode_equals_the_reference(pair, height, width):
    theirs, ours = pair
    latent = torch.randn(2, 64, height // 16, width // 16) * 3
    expected = theirs.decode(latent.unsqueeze(2)).sample.squeeze(2)
    assert 0.1 < expected.abs().mean() < 0.9, "clamped away: this would compare nothing"
    assert error(ours.decode(latent), expected) < BOUND


@torch.no_grad()
@pytest.mark.parametrize("chunk_bytes", [1, 20_000, 10**9])
@pytest.mark.parametrize("height, width", [(16, 48), (272, 32), (528, 64)])
def test_bands_equal_the_whole(pair, height, width, chunk_bytes):
    """The layers' own forward passes are the whole: they know nothing of bands."""
    _, ours = pair
    latent = torch.randn(2, 64, height // 16, width // 16) * 3
    whole = ours.decoder(ours.post_quant_conv(latent)).clamp(-1, 1)
    assert error(ours.decode(latent, chunk_bytes), whole) < 1e-5
    pixels = torch.rand(2, 4, height, width) * 2 - 1
    assert error(ours.encode(pixels, chunk_bytes), ours.quant_conv(ours.encoder(pixels))[:, :64]) < 1e-5


def test_sizes_that_are_no_multiple_of_16_are_refused(pair):
    with pytest.raises(ValueError, match="multiples of 16 pixels, got 40 x 32"):
        pair[1].encode(torch.zeros(1, 4, 32, 40))


def test_latent_scale_is_the_published_one():
    config = reference.vae().config
    assert list(latents.LATENT_MEAN) == config.latents_mean
    assert list(latents.LATENT_STD) == config.latents_std
    latent = torch.randn(2, 64, 3, 5)
    mean, std = (torch.tensor(v).view(1, 64, 1, 1) for v in (config.latents_mean, config.latents_std))
    assert torch.equal(latents.normalize(latent), (latent - mean) / std)
    assert torch.allclose(latents.denormalize(latents.normalize(latent)), latent, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3)])
def test_four_small_convolutions_are_doubling_and_a_large_one(size):
    layer = vae_layers.upsample_conv(torch.nn)(6, 10, 3, padding=1)
    x = torch.randn(2, 6, *size)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), layer.weight, layer.bias, padding=1)
    assert error(layer(x), expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("fails", [False, True])
def test_weights_are_folded_once_for_a_decode_and_kept_no_longer(pair, fails, monkeypatch):
    """However many chunks there are: at 2048 x 2048 the doublings are called 69 times."""
    _, ours = pair
    calls, folds, kept = [], [], []
    fold, double = vae_layers.fold, vae_layers._double

    def counted_fold(weight, bias):
        taps = fold(weight, bias)
        folds.append(weight.shape)
        kept.extend(map(weakref.ref, [*itertools.chain(*taps.weights), taps.bias]))
        return taps

    def counted_double(x, taps):
        calls.append(x.shape)
        if fails and len(calls) == 12:
            raise InterruptedError
        return double(x, taps)

    monkeypatch.setattr(vae_layers, "fold", counted_fold)
    monkeypatch.setattr(vae_layers, "_double", counted_double)
    with contextlib.suppress(InterruptedError):
        ours.decode(torch.randn(1, 64, 16, 4), chunk_bytes=1)
    assert len(calls) == 12 if fails else len(calls) > 12
    assert len(folds) == 4 and len(kept) == 4 * 5
    assert not any(reference() is not None for reference in kept)


def test_a_host_that_computes_otherwise_is_refused():
    """Its layer would not double, and the picture would be of half the size."""
    class Host:
        class Conv2d(torch.nn.Conv2d):
            def forward(self, x):
                return F.conv2d(x, self.weight, self.bias, padding=1)

    with pytest.raises(Refusal, match="does not support. Update this pack"):
        vae_layers.upsample_conv(Host)(6, 10, 3, padding=1)(torch.randn(1, 6, 4, 4))


def test_the_decoder_saves_five_ninths_of_its_doublings():
    """But for a row and a column of each of the four kinds of pixels."""
    layer = vae_layers.upsample_conv(torch.nn)(8, 8, 3, padding=1, device="meta")
    with FlopCounterMode(display=False) as counter:
        layer(torch.empty(1, 8, 16, 16, device="meta"))
    assert counter.get_total_flops() == 2 * 4 * 8 * 8 * 34 * 34
