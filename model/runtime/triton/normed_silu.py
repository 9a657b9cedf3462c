"""RMS norm over channels and SiLU in one kernel: the plain form moves 38 bytes for each bf16 value, this one six.

The norm is over the axis whose neighbours lie far apart, so a program has some pixels that lie side by side and goes
through their channels twice: once for the sum of squares, once for the result.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS, TILE = 64, 32  # a tile: this many channels of this many pixels


@triton.jit
def _sum(one, other):
    return one + other


@triton.jit
def _normed_silu(x, gamma, out, pixels, image_stride, channel_stride, out_image_stride, out_channel_stride, length,
                 CHANNELS: tl.constexpr, PIXELS: tl.constexpr, TILE: tl.constexpr):
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[None, :]
    tile = tl.arange(0, TILE)[:, None]
    image = tl.program_id(1).to(tl.int64)
    source, target = x + image * image_stride + pixel, out + image * out_image_stride + pixel
    squares = tl.full((TILE, PIXELS), 0, tl.float32)
    for first in range(0, CHANNELS, TILE):
        channel = first + tile
        there = (channel < CHANNELS) & (pixel < pixels)
        value = tl.load(source + channel.to(tl.int64) * channel_stride, there, other=0).to(tl.float32)
        squares += value * value
    norm = tl.maximum(tl.sqrt(tl.reduce(squares, 0, _sum)), 1e-12)[None, :]  # 1e-12: as F.normalize has it
    for first in range(0, CHANNELS, TILE):
        channel = first + tile
        there = (channel < CHANNELS) & (pixel < pixels)
        value = tl.load(source + channel.to(tl.int64) * channel_stride, there, other=0).to(tl.float32)
        factor = tl.load(gamma + channel, channel < CHANNELS, other=0).to(tl.float32)
        # Rounded in between, as where the norm is a tensor of its own.
        normed = (value / norm * length * factor).to(out.dtype.element_ty).to(tl.float32)
        value = normed / (1 + tl.exp(-normed))
        tl.store(target + channel.to(tl.int64) * out_channel_stride, value.to(out.dtype.element_ty), there)


def normed_silu(x: Tensor, gamma: Tensor, out: Tensor) -> None:
    """x (B, C, H, W), gamma (C, 1, 1) -> silu(x / |x| * sqrt(C) * gamma), norms over the channels of each pixel, into
    out. Both may be some rows of larger images."""
    batch, channels, height, width = x.shape
    if x.stride()[2:] != (width, 1):
        x = x.contiguous()
    assert out.stride()[2:] == (width, 1), "rows lie one after the other"
    pixels = height * width
    with torch.cuda.device_of(x):  # Triton launches on the current one
        _normed_silu[(triton.cdiv(pixels, PIXELS), batch)](
            x, gamma.to(x.device).flatten(), out, pixels, *x.stride()[:2], *out.stride()[:2], channels ** 0.5,
            CHANNELS=channels, PIXELS=PIXELS, TILE=TILE)
