"""The autoencoder against diffusers."""
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from qwen_image_2.messages import Refusal
from qwen_image_2.model.qwen_image_1 import latents
from qwen_image_2.model.qwen_image_1.spec import VAESpec
from qwen_image_2.model.qwen_image_1.vae import VAE
from qwen_image_2.tests import reference
from qwen_image_2.tests.reference import error

BOUND = 1e-5
SIZES = [(64, 96), (8, 40), (136, 24)]  # height, width in pixels


@pytest.fixture(scope="module", params=[3, 4], ids=["RGB", "RGBA"])
def pair(request):
    theirs = reference.vae_1(request.param)
    ours = VAE(VAESpec(base_dim=8, pixel_channels=request.param))
    state = {name: value for name, value in theirs.state_dict().items() if "time_conv" not in name}
    ours.load_state_dict({name: (value[:, :, -1] if value.ndim == 5 else value).reshape(ours.state_dict()[name].shape)
                          for name, value in state.items()})
    return theirs, ours.eval()


@torch.no_grad()
@pytest.mark.parametrize("height, width", SIZES)
def test_encode_equals_the_reference(pair, height, width):
    theirs, ours = pair
    pixels = torch.rand(2, ours.spec.pixel_channels, height, width) * 2 - 1
    expected = theirs.encode(pixels.unsqueeze(2)).latent_dist.mode().squeeze(2)
    assert error(ours.encode(pixels), expected) < BOUND


@torch.no_grad()
@pytest.mark.parametrize("height, width", SIZES)
def test_decode_equals_the_reference(pair, height, width):
    theirs, ours = pair
    latent = torch.randn(2, 16, height // 8, width // 8) * 2
    latent[1] *= 20
    expected = theirs.decode(latent.unsqueeze(2)).sample.squeeze(2)
    assert 0.1 < expected.abs().mean() < 0.9, "clamped away: this would compare nothing"
    assert expected.abs().max() == 1, "without a clamp this would pass"
    assert error(ours.decode(latent), expected) < BOUND


@torch.no_grad()
@pytest.mark.parametrize("chunk_bytes", [1, 10_000, 10**9])
@pytest.mark.parametrize("height, width", [(8, 48), (264, 32), (528, 40)])
def test_rows_equal_the_whole(pair, height, width, chunk_bytes):
    """The layers' own forward passes are the whole: they know nothing of rows."""
    _, ours = pair
    latent = torch.randn(2, 16, height // 8, width // 8)
    whole = ours.decoder(ours.post_quant_conv(latent)).clamp(-1, 1)
    assert error(ours.decode(latent, chunk_bytes), whole) < 1e-5
    pixels = torch.rand(2, ours.spec.pixel_channels, height, width) * 2 - 1
    assert error(ours.encode(pixels, chunk_bytes), ours.quant_conv(ours.encoder(pixels))[:, :16]) < 1e-5


@torch.no_grad()
def test_attention_by_pieces_of_queries_is_the_same(pair, monkeypatch):
    from qwen_image_2.model.runtime import vae_rows
    _, ours = pair
    latent = torch.randn(2, 16, 9, 5)
    whole = ours.decode(latent)
    monkeypatch.setattr(vae_rows, "MAX_SCORES", 2 * 45 * 7)
    pieces = []
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(vae_rows.F, "scaled_dot_product_attention",
                        lambda q, k, v: pieces.append(q.shape[2]) or attention(q, k, v))
    assert error(ours.decode(latent), whole) < 1e-5
    assert pieces == [7] * 6 + [3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_stays_on_its_device(dtype):
    """On fake tensors: torch refuses operations on two devices as a card would."""
    card = torch.device("cuda:0")
    FakeTensorMode.cache_clear()  # what an earlier test asked must not answer for this one
    with FakeTensorMode(), torch.inference_mode():
        network = VAE(VAESpec(), device=card, dtype=dtype)
        latent = network.encode(torch.randn(1, 3, 64, 96, device=card, dtype=dtype))
        for tensor in (latent, network.decode(latent)):
            assert tensor.device == card and tensor.dtype == dtype


def test_sizes_that_are_no_multiple_of_8_are_refused(pair):
    channels = pair[1].spec.pixel_channels
    with pytest.raises(Refusal, match="multiples of 8 pixels, got 36 x 32"):
        pair[1].encode(torch.zeros(1, channels, 32, 36))


def test_latent_scale_is_the_published_one(pair):
    assert list(latents.LATENT_MEAN) == pair[0].config.latents_mean
    assert list(latents.LATENT_STD) == pair[0].config.latents_std


def test_statistics_for_other_channels_are_refused():
    with pytest.raises(Refusal, match="16 latent channels, but 3 means and 16 deviations"):
        VAESpec(latent_mean=(0, 0, 0))


@torch.no_grad()
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_arithmetic(direction):
    """What the chunks compute twice, at the published widths: of decode and encode at 1328 x 1328."""
    vae = VAE(VAESpec(), device="meta", dtype=torch.bfloat16)
    given = torch.empty((1, 16, 166, 166) if direction == "decode" else (1, 3, 1328, 1328), device="meta",
                        dtype=torch.bfloat16)
    counts = []
    for work in (lambda: getattr(vae, direction)(given),
                 lambda: vae.decoder(vae.post_quant_conv(given)) if direction == "decode"
                 else vae.quant_conv(vae.encoder(given))):
        with FlopCounterMode(display=False) as counter:
            work()
        counts.append(counter.get_total_flops())
    assert 1 <= counts[0] / counts[1] < 1.05
