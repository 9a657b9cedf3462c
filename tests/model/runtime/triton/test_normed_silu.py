"""The VAE's norm and SiLU as one kernel, without a card: interpreted on the CPU beside the plain form, and compiled."""

import pytest
import torch

from qwen_image_2.model.runtime.vae_layers import few_pixels, plain_normed_silu, triton_normed_silu
from qwen_image_2.tests.model.runtime.triton.test_gguf import CARDS

pytest.importorskip("triton")
KERNELS = "normed_silu"


@pytest.fixture
def kernel(interpreted):
    return triton_normed_silu()


def image(*shape: int) -> torch.Tensor:
    """With pixels that are large, tiny and nothing."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    x[..., 0, 0], x[..., 0, 1], x[..., 0, 2] = 1e4 * x[..., 0, 0], 1e-9 * x[..., 0, 1], 0
    return x


@pytest.mark.parametrize("shape", [(1, 32, 8, 8), (2, 40, 5, 9), (3, 7, 1, 3)])  # full tiles, cut ones, less than one
def test_it_computes_what_the_plain_form_does(kernel, shape):
    x, gamma = image(*shape), torch.randn(shape[1], 1, 1, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(kernel(x, gamma), plain_normed_silu(x, gamma), rtol=1e-5, atol=1e-6)
    for dtype in (torch.float16, torch.bfloat16):
        found = kernel(x.to(dtype), gamma)
        assert found.dtype == dtype
        # The interpreter cuts to bf16, where a card rounds.
        torch.testing.assert_close(found, plain_normed_silu(x.to(dtype), gamma), rtol=8 * torch.finfo(dtype).eps,
                                   atol=1e-3)


def test_rows_of_a_larger_image_and_other_orders(kernel):
    x, gamma = image(2, 16, 12, 5), torch.ones(16, 1, 1)
    for part in (x[:, :, 2:9], x[:, :, :, 1:4], x.to(memory_format=torch.channels_last)):
        found = kernel(part, gamma)
        assert found.is_contiguous()
        torch.testing.assert_close(found, plain_normed_silu(part, gamma), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_it_writes_below_the_rows_that_a_convolution_has_kept(kernel):
    x, gamma, kept = image(2, 40, 5, 9), torch.rand(40, 1, 1), torch.randn(2, 40, 2, 9)
    found = kernel(x, gamma, kept)
    assert torch.equal(found[:, :, :2], kept)
    torch.testing.assert_close(found[:, :, 2:], plain_normed_silu(x, gamma), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, plain_normed_silu(x, gamma, kept), rtol=1e-5, atol=1e-6)


def test_the_comparison_on_a_card_would_see_a_wrong_kernel(kernel):
    """What it compares is no special case: another gamma, or a channel left out, shows."""
    x, gamma = few_pixels(torch.empty(1, 96, 1, 1), torch.rand(96, 1, 1))[:2]
    expected = plain_normed_silu(x, gamma)
    torch.testing.assert_close(kernel(x, gamma), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(kernel(x, gamma.roll(1)), expected, rtol=1e-2)
    without_one = torch.cat([x[:, :95], 0 * x[:, 95:]], dim=1)
    assert not torch.allclose(kernel(without_one, gamma), expected, rtol=1e-3)


@pytest.mark.parametrize("card", CARDS)
def test_it_compiles_for_the_card(compiled, tmp_path, monkeypatch, card):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"x": "*bf16", "gamma": "*bf16", "out": "*bf16", "pixels": "i32", "image_stride": "i32",
             "channel_stride": "i32", "out_image_stride": "i32", "out_channel_stride": "i32", "length": "fp32",
             "CHANNELS": "constexpr", "PIXELS": "constexpr", "TILE": "constexpr"}
    aligned = [["tt.divisibility", 16]]
    constants = {"CHANNELS": 384, "PIXELS": compiled.PIXELS, "TILE": compiled.TILE}
    source = ASTSource(compiled._normed_silu, types, constants, {(number,): aligned for number in range(8)})
    code = triton.compile(source, target=GPUTarget(*CARDS[card])).asm
    assert code.get("cubin") or code.get("hsaco")
