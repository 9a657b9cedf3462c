"""The layers of the RGBA autoencoder of Qwen-Image 2.x: 16 pixels to one latent of 64 channels.

It was cut out of Wan 2.2's video autoencoder: 2-D convolutions, one frame, residual blocks with average-down and
duplicate-up shortcuts around each level. Checked against diffusers 0.42.1, autoencoder_kl_qwenimage21.py; module
names are those of the diffusers checkpoint. Every norm acts on one pixel, so after the decoder's mid-block each
output pixel depends only on its neighbourhood.

Shapes: B batch, C channels of the level at hand, H x W pixels of the level at hand, h x w latents, Z 64.
"""
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Generic, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from ...messages import Refusal
from ..runtime.operations import Factory, Layer, ModuleList, Operations
from ..runtime.triton.checked import Checked
from .spec import VAESpec


def avg_down(x: Tensor, channels: int, video: bool) -> Tensor:
    """Shortcut around a halving level: (B, C, H, W) -> (B, channels, H/2, W/2), means over groups of sub-pixels.

    video: the level also halved time. A still image is then the second of two frames whose first is empty, so
    every group holds zeros beside its sub-pixels (or nothing but zeros).
    """
    x = F.pixel_unshuffle(x, 2)  # (B, C * 4, H/2, W/2)
    if video:
        x = x.unflatten(1, (-1, 4))
        x = torch.cat([torch.zeros_like(x), x], dim=2).flatten(1, 2)
    return x.unflatten(1, (channels, -1)).mean(2)


def dup_up(x: Tensor, channels: int, video: bool) -> Tensor:
    """Shortcut around a doubling level: (B, C, H, W) -> (B, channels, 2H, 2W), copies of input channels.

    video: the level also doubled time; of the two frames that it makes of a still image the second is kept.
    """
    frames = 2 if video else 1
    copies = channels * frames * 4 // x.shape[1]
    out = torch.arange(channels * 4, device=x.device)
    position = (out // 4 * frames + frames - 1) * 4 + out % 4  # in (channel, frame, row, column) order
    return F.pixel_shuffle(x[:, position // copies], 2)


def channel_norm(x: Tensor, gamma: Tensor) -> Tensor:
    normed = F.normalize(x.float(), dim=1) * x.shape[1] ** 0.5
    return (normed * gamma.to(x.device, torch.float32)).type_as(x)


def plain_normed_silu(x: Tensor, gamma: Tensor) -> Tensor:
    return F.silu(channel_norm(x, gamma))


def triton_normed_silu() -> Callable[[Tensor, Tensor], Tensor]:
    from ..runtime.triton.normed_silu import normed_silu
    return normed_silu


def few_pixels(x: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Random ones of as many channels, with the same gamma."""
    return torch.randn(2, x.shape[1], 3, 5, generator=torch.Generator().manual_seed(1)).to(x), gamma


# Seven passes over the widest tensors of a decode, or one kernel. SiLU makes more of a difference in its input's last
# bit than one step: at -5 four.
normed_silu = Checked("The VAE's norms are computed", plain_normed_silu, triton_normed_silu, few_pixels, tolerance=8)


class ChannelNorm(nn.Module):
    """RMS norm over the channels of each pixel, in fp32."""

    def __init__(self, channels: int, **factory: Unpack[Factory]):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, 1, 1, **factory))

    def forward(self, x: Tensor) -> Tensor:
        return channel_norm(x, self.gamma)

    def silu(self, x: Tensor) -> Tensor:
        """SiLU of the norm."""
        return normed_silu(x, self.gamma)


class ResidualBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, ops: Operations, **factory: Unpack[Factory]):
        super().__init__()
        self.norm1 = ChannelNorm(c_in, **factory)
        self.conv1 = ops.Conv2d(c_in, c_out, 3, padding=1, **factory)
        self.norm2 = ChannelNorm(c_out, **factory)
        self.conv2 = ops.Conv2d(c_out, c_out, 3, padding=1, **factory)
        self.conv_shortcut = ops.Conv2d(c_in, c_out, 1, **factory) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.norm1.silu(x))
        return self.conv2(self.norm2.silu(y)) + self.conv_shortcut(x)


# Attention scores of one piece of queries. Where no fused kernel takes heads this wide, scores fill memory: at
# 2048 x 2048 all of them together are a GiB in fp32, at 4096 x 4096 sixteen.
MAX_SCORES = 2**25


class AttentionBlock(nn.Module):
    """Single-head attention over all pixels."""

    def __init__(self, channels: int, ops: Operations, **factory: Unpack[Factory]):
        super().__init__()
        self.norm = ChannelNorm(channels, **factory)
        self.to_qkv = ops.Conv2d(channels, 3 * channels, 1, **factory)
        self.proj = ops.Conv2d(channels, channels, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, H*W, 3C)
        q, k, v = (t.contiguous() for t in qkv.chunk(3, dim=-1))
        pieces = q.split(max(1, MAX_SCORES // q.shape[2]), dim=2)
        y = torch.cat([F.scaled_dot_product_attention(piece, k, v) for piece in pieces], dim=2)  # (B, 1, H*W, C)
        return self.proj(y.squeeze(1).transpose(1, 2).reshape(x.shape)) + x


class MidBlock(nn.Module):
    def __init__(self, channels: int, ops: Operations, **factory: Unpack[Factory]):
        super().__init__()
        self.resnets = ModuleList(ResidualBlock(channels, channels, ops, **factory) for _ in range(2))
        self.attentions = ModuleList([AttentionBlock(channels, ops, **factory)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Resample(nn.Module, Generic[Layer]):
    """A fixed resampling, then a convolution. video: see the shortcut around it."""

    def __init__(self, before: nn.Module, conv: Layer, video: bool):
        super().__init__()
        self.resample = nn.Sequential(before, conv)
        self.video = video

    @property
    def conv(self) -> Layer:
        return cast(Layer, self.resample[1])  # torch's Sequential does not say what it holds

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


class FoldedWeights(NamedTuple):
    """What a doubling convolution computes with, see `upsample_conv`."""

    weights: list[list[Tensor]]  # (C', C, 2, 2) for each kind of output row, then column: even, odd
    bias: Tensor


class Doubling(nn.Module):
    """A convolution that doubles its input first, each pixel to 2x2: (B, C, H, W) -> (B, C', 2H, 2W); kernel 3x3.
    The base of a host's Conv2d, see `upsample_conv`.

    The doubled image is never made. Of the three rows that an output row sees, two are copies of one input row, and
    so with columns. Each of the four kinds of output pixel (even or odd row, even or odd column) is therefore a 2x2
    convolution of the input with sums of the 3x3 weights: 4 products instead of 9.

    Summing takes longer than a small convolution: who calls often asks for the taps once and hands them in.
    """

    weight: nn.Parameter

    def forward(self, x: Tensor, taps: FoldedWeights | None = None) -> Tensor:
        return _double(x, taps or self.taps(x))

    def taps(self, x: Tensor) -> FoldedWeights:
        """For inputs of x's dtype and on its device: copies, which hold until the weights change."""
        taps = super().forward(x)
        if not isinstance(taps, FoldedWeights):  # or the decoder would give images of half the size
            raise Refusal("convolution_unknown", "This version of ComfyUI or PyTorch computes convolutions in a way "
                          "that the Qwen-Image 2 VAE does not support. Update this pack.")
        return taps

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> FoldedWeights:
        """Where torch's layer gets its weights, and where a host's gets them once they are on the device."""
        return fold(weight, bias)


def upsample_conv(ops: Operations) -> type[Doubling]:
    """A host's Conv2d that doubles its input first."""
    conv2d: Any = ops.Conv2d  # known only when the network is built

    class UpsampleConv2d(Doubling, conv2d):
        pass

    return UpsampleConv2d


def fold(weight: Tensor, bias: Tensor) -> FoldedWeights:
    """3x3 weights (C', C, 3, 3) -> the taps of a doubling, summed in fp32."""
    rows = (_folded(weight.float(), 2, row) for row in (0, 1))  # (C', C, 2, 3)
    folded = [[_folded(taps, 3, column).to(weight.dtype) for column in (0, 1)] for taps in rows]
    return FoldedWeights(folded, bias.clone())


def _double(x: Tensor, taps: FoldedWeights) -> Tensor:
    height, width = x.shape[-2:]
    out = x.new_empty(x.shape[0], len(taps.bias), 2 * height, 2 * width)
    for row in (0, 1):
        for column in (0, 1):
            padded = F.pad(x, (1 - column, column, 1 - row, row))
            out[:, :, row::2, column::2] = F.conv2d(padded, taps.weights[row][column], taps.bias)
    return out


def _folded(weight: Tensor, axis: int, odd: int) -> Tensor:
    """Three taps -> two: an even output sees one input and the next twice, an odd one the first twice."""
    first, middle, last = weight.unbind(axis)
    return torch.stack([first + middle, last] if odd else [first, middle + last], axis)


class DownBlock(nn.Module):
    """One encoder level. video: None for the last level, which does not resize."""

    def __init__(self, c_in: int, c_out: int, res_blocks: int, video: bool | None, ops: Operations,
                 **factory: Unpack[Factory]):
        super().__init__()
        self.channels = c_out
        widths = [c_in] + [c_out] * res_blocks
        self.resnets = ModuleList(ResidualBlock(a, b, ops, **factory) for a, b in pairwise(widths))
        self.downsampler = None if video is None else Resample(
            nn.ZeroPad2d((0, 1, 0, 1)), ops.Conv2d(c_out, c_out, 3, stride=2, **factory), video)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.resnets:
            y = block(y)
        if self.downsampler is None:
            return y + x  # the last level keeps its width, see Encoder
        return self.downsampler(y) + avg_down(x, self.channels, self.downsampler.video)


class UpBlock(nn.Module):
    """One decoder level. video: None for the last level, which neither resizes nor has a shortcut."""

    def __init__(self, c_in: int, c_out: int, res_blocks: int, video: bool | None, ops: Operations,
                 **factory: Unpack[Factory]):
        super().__init__()
        self.channels = c_out
        widths = [c_in] + [c_out] * (res_blocks + 1)
        self.resnets = ModuleList(ResidualBlock(a, b, ops, **factory) for a, b in pairwise(widths))
        self.upsampler = None if video is None else Resample(
            nn.Identity(), upsample_conv(ops)(c_out, c_out, 3, padding=1, **factory), video)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.resnets:
            y = block(y)
        if self.upsampler is None:
            return y
        return self.upsampler(y) + dup_up(x, self.channels, self.upsampler.video)


class Encoder(nn.Module):
    def __init__(self, spec: VAESpec, ops: Operations, **factory: Unpack[Factory]):
        super().__init__()
        widths = [spec.base_dim * m for m in (1, *spec.dim_mult)]
        if widths[-1] != widths[-2]:
            raise Refusal("encoder_width", "The encoder's last level must keep its width; got {before} and {last}.",
                          before=widths[-2], last=widths[-1])
        self.conv_in = ops.Conv2d(spec.pixel_channels, widths[0], 3, padding=1, **factory)
        self.down_blocks = ModuleList(
            DownBlock(a, b, spec.res_blocks, video, ops, **factory)
            for a, b, video in zip(widths, widths[1:], (*spec.video_levels, None)))
        self.mid_block = MidBlock(widths[-1], ops, **factory)
        self.norm_out = ChannelNorm(widths[-1], **factory)
        self.conv_out = ops.Conv2d(widths[-1], 2 * spec.latent_channels, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.out(x)

    def out(self, x: Tensor) -> Tensor:
        """From the last level on: what sees the whole image."""
        return self.conv_out(self.norm_out.silu(self.mid_block(x)))


class Decoder(nn.Module):
    def __init__(self, spec: VAESpec, ops: Operations, **factory: Unpack[Factory]):
        super().__init__()
        widths = [spec.decoder_base_dim * m for m in (spec.dim_mult[-1], *reversed(spec.dim_mult))]
        self.conv_in = ops.Conv2d(spec.latent_channels, widths[0], 3, padding=1, **factory)
        self.mid_block = MidBlock(widths[0], ops, **factory)
        self.up_blocks = ModuleList(
            UpBlock(a, b, spec.res_blocks, video, ops, **factory)
            for a, b, video in zip(widths, widths[1:], (*reversed(spec.video_levels), None)))
        self.norm_out = ChannelNorm(widths[-1], **factory)
        self.conv_out = ops.Conv2d(widths[-1], spec.pixel_channels, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(self.norm_out.silu(x))

    def into(self, x: Tensor) -> Tensor:
        """Up to the first level: what sees the whole image."""
        return self.mid_block(self.conv_in(x))
