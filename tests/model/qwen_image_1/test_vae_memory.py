"""Memory of the autoencoder at its published widths and real sizes, counted without computing."""
import pytest
import torch

from qwen_image_2.model.qwen_image_1.spec import VAESpec
from qwen_image_2.model.qwen_image_1.vae import VAE
from qwen_image_2.model.qwen_image_1.vae_memory import MEMORY
from qwen_image_2.model.runtime import vae_memory
from qwen_image_2.tests.peak_memory import PeakMemory

GIB = 2**30


@pytest.fixture(scope="module")
def vae():
    return VAE(VAESpec(), device="meta", dtype=torch.bfloat16)


def inputs(direction: str, height: int, width: int) -> torch.Tensor:
    shape = (1, 16, height // 8, width // 8) if direction == "decode" else (1, 3, height, width)
    return torch.empty(shape, device="meta", dtype=torch.bfloat16)


def test_published_parameters(vae):
    """44,599,603 of 126,892,531: the others meet only zeros in a single frame."""
    assert sum(value.numel() for value in vae.parameters()) == 44_599_603


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("height, width, most", [(1328, 1328, 1), (928, 1664, 1), (3584, 3584, 2)])
def test_memory(vae, direction, height, width, most):
    given = inputs(direction, height, width)
    with PeakMemory() as memory:
        getattr(vae, direction)(given)
    assert memory.peak < most * GIB
    assert memory.peak < MEMORY.expected(height * width, 2)


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("height, width, room", [(512, 512, 1), (768, 1344, 1), (1344, 768, 1), (1328, 1328, 2)])
def test_a_peak_holds(vae, direction, height, width, room):
    """From the least on that is not refused."""
    summed = vae_memory.summed(vae.decoder)
    peak = int(room * MEMORY.least(height, width, 2, summed))
    given = inputs(direction, height, width)
    with PeakMemory() as memory:
        getattr(vae, direction)(given, MEMORY.chunk_for(peak, height, width, 2, summed))
    assert memory.peak <= peak


def test_the_largest_side_is_the_least_that_fits():
    peak, summed = GIB, 2**24
    side = int(MEMORY.largest_side(peak, 2, summed))
    assert MEMORY.least(side, side, 2, summed) <= peak < MEMORY.least(side + 8, side + 8, 2, summed)


@torch.no_grad()
def test_the_count_sees_what_the_whole_would_take(vae):
    with PeakMemory() as memory:
        vae.decoder(inputs("decode", 1328, 1328))
    assert memory.peak > 1.5 * GIB
