"""Damage is found by bits: all patterns of 8 bits against torch, blocks against their decoded values."""
import pytest
import torch

from qwen_image_2.model.checkpoints import finite, gguf
from qwen_image_2.tests.model.checkpoints.test_gguf import packed


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu])
def test_every_pattern_of_eight_bits(dtype):
    patterns = torch.arange(256, dtype=torch.uint8).view(dtype)
    expected = patterns.float().isfinite()
    assert 1 <= (~expected).sum() <= 8
    assert [finite.is_finite(one) for one in patterns.split(1)] == expected.tolist()
    assert finite.is_finite(patterns.view(torch.uint8)[expected].view(dtype)) and not finite.is_finite(patterns)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_wider_numbers(dtype, value):
    values = torch.full((8, 8), torch.finfo(dtype).max, dtype=dtype)
    assert finite.is_finite(values)
    values[3, 4] = value
    assert not finite.is_finite(values)


def test_whole_numbers_and_nothing_are_finite():
    assert finite.is_finite(torch.full((4,), 0xFF, dtype=torch.uint8)) and finite.is_finite(torch.empty(0, 3))


@pytest.mark.parametrize("kind", gguf.BLOCKS)
@pytest.mark.parametrize("pattern", [0x7C00, 0xFC00, 0x7E01, 0xFFFF])
def test_scales_of_blocks(kind, pattern):
    data = torch.from_numpy(packed(kind))
    assert finite.has_finite_scales(data, kind)
    for place in gguf.BLOCKS[kind].halves:
        broken = data.clone()
        broken.view(-1, gguf.BLOCKS[kind].bytes)[7, place:place + 2] = torch.tensor([pattern & 0xFF, pattern >> 8])
        assert not gguf.dequantize(broken, kind).isfinite().all()
        assert not finite.has_finite_scales(broken, kind)


@pytest.mark.parametrize("kind", gguf.BLOCKS)
def test_no_other_byte_of_a_block_can_break_it(kind):
    """What is not looked at: with every other byte at any value the decoded matrix is finite."""
    data = torch.from_numpy(packed(kind))
    blocks = data.view(-1, gguf.BLOCKS[kind].bytes)
    halves = gguf.BLOCKS[kind].halves
    others = [place for place in range(blocks.shape[1]) if place not in halves and place - 1 not in halves]
    for byte in (0, 0x7C, 0x7F, 0x80, 0xFF):
        blocks[:, others] = byte
        assert finite.has_finite_scales(data, kind) and gguf.dequantize(data, kind).isfinite().all()
