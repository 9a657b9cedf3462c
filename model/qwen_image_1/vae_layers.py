"""The layers of the autoencoder of Qwen-Image 1.x: 8 pixels to one latent of 16 channels.

It is Wan 2.1's video autoencoder on a single frame, where only the last temporal tap of its kernels meets anything but
zeros: 2-D convolutions with those taps are all of it (detect.py takes them), and 44.6 of 126.9 million parameters.
Checked against diffusers 0.42.1, autoencoder_kl_qwenimage.py; module names are those of the diffusers checkpoint, in
which the encoder's blocks are one flat list.

Shapes: B batch, C channels of the level at hand, H x W pixels of the level at hand, h x w latents, Z 16.
"""
from itertools import pairwise

from torch import Tensor, nn
from typing_extensions import Unpack

from ..runtime.operations import Factory, ModuleList, Operations
from ..runtime.vae_layers import ChannelNorm, Doubling, MidBlock, Resample, ResidualBlock, upsample_conv
from .spec import VAESpec


def halving(channels: int, ops: Operations, **factory: Unpack[Factory]) -> Resample[nn.Conv2d]:
    """(B, C, H, W) -> (B, C, H/2, W/2)"""
    return Resample(nn.ZeroPad2d((0, 1, 0, 1)), ops.Conv2d(channels, channels, 3, stride=2, **factory))


def doubling(channels: int, ops: Operations, **factory: Unpack[Factory]) -> Resample[Doubling]:
    """(B, C, H, W) -> (B, C/2, 2H, 2W)"""
    return Resample(nn.Identity(), upsample_conv(ops)(channels, channels // 2, 3, padding=1, **factory))


class UpBlock(nn.Module):
    """One decoder level. doubles: all but the last do."""

    def __init__(self, c_in: int, c_out: int, res_blocks: int, doubles: bool, ops: Operations,
                 **factory: Unpack[Factory]):
        super().__init__()
        widths = [c_in] + [c_out] * (res_blocks + 1)
        self.resnets = ModuleList(ResidualBlock(a, b, ops, **factory) for a, b in pairwise(widths))
        self.upsamplers = ModuleList([doubling(c_out, ops, **factory)] if doubles else [])

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.resnets, *self.upsamplers):
            x = block(x)
        return x


class Encoder(nn.Module):
    def __init__(self, spec: VAESpec, ops: Operations, **factory: Unpack[Factory]):
        super().__init__()
        widths = [spec.base_dim * m for m in (1, *spec.dim_mult)]
        self.conv_in = ops.Conv2d(spec.pixel_channels, widths[0], 3, padding=1, **factory)
        blocks: list[ResidualBlock | Resample[nn.Conv2d]] = []
        for a, b in pairwise(widths):
            if blocks:  # between two levels
                blocks.append(halving(a, ops, **factory))
            level = [a] + [b] * spec.res_blocks
            blocks += [ResidualBlock(*pair, ops, **factory) for pair in pairwise(level)]
        self.down_blocks = ModuleList(blocks)
        self.mid_block = MidBlock(widths[-1], ops, **factory)
        self.norm_out = ChannelNorm(widths[-1], **factory)
        self.conv_out = ops.Conv2d(widths[-1], 2 * spec.latent_channels, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(self.norm_out.silu(self.mid_block(x)))


class Decoder(nn.Module):
    def __init__(self, spec: VAESpec, ops: Operations, **factory: Unpack[Factory]):
        super().__init__()
        widths = [spec.base_dim * m for m in reversed(spec.dim_mult)]
        last = len(widths) - 1
        self.conv_in = ops.Conv2d(spec.latent_channels, widths[0], 3, padding=1, **factory)
        self.mid_block = MidBlock(widths[0], ops, **factory)
        # Each level begins with what its predecessor's doubling has left: half the channels.
        self.up_blocks = ModuleList(
            UpBlock(widths[level - 1] // 2 if level else widths[0], widths[level], spec.res_blocks, level < last, ops,
                    **factory)
            for level in range(len(widths)))
        self.norm_out = ChannelNorm(widths[-1], **factory)
        self.conv_out = ops.Conv2d(widths[-1], spec.pixel_channels, 3, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(self.norm_out.silu(x))
