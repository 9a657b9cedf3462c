"""Where every tensor is, and of which dtype, on a graphics card: on fake tensors, which need none.

A fake tensor has a device, a dtype and a shape but no values, and torch refuses operations on two devices as a card
would.
"""
import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from qwen_image_2.model.checkpoints import gguf
from qwen_image_2.model.qwen_image_2 import latents
from qwen_image_2.model.qwen_image_2.prefix_cache import Condition, RecomputedPrefix
from qwen_image_2.model.qwen_image_2.spec import TransformerSpec, VAESpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer, prefix_end
from qwen_image_2.model.qwen_image_2.vae import VAE

CARD = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def fake():
    FakeTensorMode.cache_clear()  # what an earlier test asked must not answer for this one
    with FakeTensorMode(), torch.inference_mode():
        yield


def on_card(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    return tensor.device == CARD and tensor.dtype == dtype


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_transformer_stays_on_its_device(dtype, causal):
    spec = dataclasses.replace(TransformerSpec(), layers=2, causal_condition=causal)
    network = Transformer(spec, device=CARD, dtype=dtype)
    # The text encoder's states are fp32.
    condition = Condition(torch.randn(1, 20, spec.context_dim, device=CARD), (3,),
                          (torch.randn(1, 64, 4, 8, device=CARD),))
    x, sigma = torch.randn(2, 64, 6, 10, device=CARD, dtype=dtype), torch.rand(2, device=CARD)
    cache = network.encode_prefix(condition, sigma[:1], dtype)
    assert all(on_card(tensor, dtype) for pair in cache.layers for tensor in pair)
    recomputed = RecomputedPrefix(prefix_end(condition),
                                  compute=lambda: network.prefix_layers(condition, sigma[:1], dtype))
    for kept in (cache, recomputed):
        velocity = network(x, sigma, kept)
        assert on_card(velocity, dtype) and velocity.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_autoencoder_stays_on_its_device(dtype):
    network = VAE(VAESpec(), device=CARD, dtype=dtype)
    latent = network.encode(torch.randn(1, 4, 64, 96, device=CARD, dtype=dtype))
    assert on_card(latent, dtype) and on_card(latents.denormalize(latents.normalize(latent)), dtype)
    assert on_card(network.decode(latent), dtype)


@pytest.mark.parametrize("kind", gguf.BLOCKS)
def test_packed_blocks_are_unpacked_where_they_are(kind):
    packed = torch.empty(8, 2 * gguf.BLOCKS[kind].bytes, dtype=torch.uint8, device=CARD)
    assert on_card(gguf.dequantize(packed, kind), torch.float32)
    assert on_card(gguf.quantize(torch.randn(8, 64, device=CARD)), torch.uint8)
