"""The layers of the RGBA autoencoder of Qwen-Image 2.x: 16 pixels to one latent of 64 channels.

It was cut out of Wan 2.2's video autoencoder: 2-D convolutions, one frame, residual blocks with average-down and
duplicate-up shortcuts around each level. Checked against diffusers 0.42.1, autoencoder_kl_qwenimage21.py; module
names are those of the diffusers checkpoint. Every norm acts on one pixel, so after the decoder's mid-block each
output pixel depends only on its neighbourhood.

Shapes: B batch, C channels of the level at hand, H x W pixels of the level at hand, h x w latents, Z 64.
"""
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from ...messages import Refusal
from ..runtime.operations import Factory, Layer, ModuleList, Operations
from ..runtime.vae_layers import ChannelNorm, MidBlock, Resample, ResidualBlock, upsample_conv
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


class LevelResample(Resample[Layer]):
    """video: see the shortcut around it."""

    def __init__(self, before: nn.Module, conv: Layer, video: bool):
        super().__init__(before, conv)
        self.video = video


class DownBlock(nn.Module):
    """One encoder level. video: None for the last level, which does not resize."""

    def __init__(self, c_in: int, c_out: int, res_blocks: int, video: bool | None, ops: Operations,
                 **factory: Unpack[Factory]):
        super().__init__()
        self.channels = c_out
        widths = [c_in] + [c_out] * res_blocks
        self.resnets = ModuleList(ResidualBlock(a, b, ops, **factory) for a, b in pairwise(widths))
        self.downsampler = None if video is None else LevelResample(
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
        self.upsampler = None if video is None else LevelResample(
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
