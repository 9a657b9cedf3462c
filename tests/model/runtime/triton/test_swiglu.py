"""SwiGLU's product as one kernel, without a card: interpreted on the CPU beside the plain form, and compiled."""
import pytest
import torch

from qwen_image_2.model.runtime.kernels import few_tokens, plain_silu_product
from qwen_image_2.tests.model.runtime.triton.test_gguf import CARDS

pytest.importorskip("triton")
KERNELS = "swiglu"


@pytest.mark.parametrize("shape", [(1, 2, 2048), (2, 3, 60), (1, 1, 2100)])  # full tiles, less than one, one and a bit
def test_it_computes_what_the_plain_form_does(interpreted, shape):
    x = 8 * torch.randn(shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(interpreted.silu_product(x), plain_silu_product(x), rtol=1e-6, atol=1e-7)
    for dtype in (torch.float16, torch.bfloat16):
        found = interpreted.silu_product(x.to(dtype))
        assert found.dtype == dtype and found.shape == (*shape[:-1], shape[-1] // 2)
        # The interpreter cuts to bf16, where a card rounds.
        torch.testing.assert_close(found, plain_silu_product(x.to(dtype)), rtol=4 * torch.finfo(dtype).eps, atol=1e-4)


def test_rows_with_gaps_between_them(interpreted):
    x = torch.randn(2, 5, 80, generator=torch.Generator().manual_seed(3))[:, 1:4, :64]
    torch.testing.assert_close(interpreted.silu_product(x), plain_silu_product(x), rtol=1e-6, atol=1e-7)


def test_the_comparison_on_a_card_would_see_a_wrong_kernel(interpreted):
    """Halves that are taken for each other, or a channel that is not its own, show."""
    x, = few_tokens(torch.empty(1, 4, 96))
    expected = plain_silu_product(x)
    torch.testing.assert_close(interpreted.silu_product(x), expected, rtol=1e-6, atol=1e-7)
    for wrong in (x.roll(48, dims=1), torch.cat([x[:, :48], x[:, 48:].roll(1, dims=1)], dim=1)):
        assert not torch.allclose(interpreted.silu_product(wrong), expected, rtol=1e-2)


@pytest.mark.parametrize("card", CARDS)
def test_it_compiles_for_the_card(compiled, tmp_path, monkeypatch, card):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    aligned = [["tt.divisibility", 16]]
    types = {"gate_up": "*bf16", "out": "*bf16", "hidden": "i32", "TILE": "constexpr"}
    source = ASTSource(compiled._silu_product, types, {"TILE": compiled.TILE},
                       {(number,): aligned for number in range(3)})
    code = triton.compile(source, target=GPUTarget(*CARDS[card])).asm
    assert code.get("cubin") or code.get("hsaco")
