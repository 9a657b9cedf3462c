"""Memory and arithmetic of the autoencoder at its published widths and real sizes, counted without computing.

Tensors on the meta device have shapes and storages but no values, so a decode at 4096 x 4096 takes a second here.
"""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from qwen_image_2.model.qwen_image_2.spec import VAESpec
from qwen_image_2.model.qwen_image_2.vae import VAE
from qwen_image_2.model.qwen_image_2.vae_memory import MEMORY
from qwen_image_2.model.runtime import vae_layers, vae_memory
from qwen_image_2.tests.peak_memory import PeakMemory

GIB = 2**30


@pytest.fixture(scope="module")
def vae():
    return VAE(VAESpec(), device="meta", dtype=torch.bfloat16)


def inputs(direction: str, height: int, width: int) -> torch.Tensor:
    shape = (1, 64, height // 16, width // 16) if direction == "decode" else (1, 4, height, width)
    return torch.empty(shape, device="meta", dtype=torch.bfloat16)


@torch.no_grad()
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("height, width", [(2048, 2048), (2752, 1536), (1536, 2752), (4096, 4096)])
def test_memory(vae, direction, height, width):
    given = inputs(direction, height, width)
    with PeakMemory() as memory:
        getattr(vae, direction)(given)
    assert memory.peak < (2 if height * width < 2**23 else 3) * GIB


@torch.no_grad()
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("height, width, room", [(512, 512, 1), (1024, 1024, 1), (1024, 1024, 2), (1536, 2752, 1.3)])
def test_a_peak_holds(vae, direction, height, width, room):
    """From the least on that is not refused."""
    summed = vae_memory.summed(vae.decoder)
    peak = int(room * MEMORY.least(height, width, 2, summed))
    given = inputs(direction, height, width)
    with PeakMemory() as memory:
        getattr(vae, direction)(given, MEMORY.chunk_for(peak, height, width, 2, summed))
    assert memory.peak <= peak


def test_the_count_sees_what_the_whole_would_take(vae):
    with torch.no_grad(), PeakMemory() as memory:
        vae.decoder(inputs("decode", 2048, 2048))
    assert memory.peak > 8 * GIB


@torch.no_grad()
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("side", [1024, 2048])
def test_arithmetic(vae, direction, side):
    given = inputs(direction, side, side)
    counts = []
    for work in (lambda: getattr(vae, direction)(given),
                 lambda: vae.decoder(vae.post_quant_conv(given)) if direction == "decode"
                 else vae.quant_conv(vae.encoder(given))):
        with FlopCounterMode(display=False) as counter:
            work()
        counts.append(counter.get_total_flops())
    banded, whole = counts
    assert 1 <= banded / whole < 1.05


class Traffic(TorchDispatchMode):
    """Bytes that kernels read and write beside the products of convolutions and attention."""

    PRODUCTS = {"convolution", "bmm"}
    NOTHING = {"empty", "empty_like", "new_empty", "empty_strided"}
    bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        name = function.overloadpacket.__name__
        if not function.is_view and name not in self.PRODUCTS | self.NOTHING:
            self.bytes += sum(tensor.nbytes for tensor in tree_leaves((arguments, options, result))
                              if isinstance(tensor, torch.Tensor))
        return result


@torch.no_grad()
def test_what_a_decode_moves(vae, monkeypatch):
    """At 2048 x 2048, where a card waits for memory. The kernel for the norms reads twice and writes once."""
    given = inputs("decode", 2048, 2048)
    with Traffic() as plain:
        vae.decode(given)

    def kernel(x, gamma, above=None):
        fused.bytes += 3 * x.nbytes
        return vae_layers.below(above, x)[0]

    monkeypatch.setattr(vae_layers, "normed_silu", kernel)
    with Traffic() as fused:
        vae.decode(given)
    assert fused.bytes < 145e9 and plain.bytes < 270e9
