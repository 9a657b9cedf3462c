"""Layers of the autoencoders that were cut out of Wan's: one frame, and norms that act on one pixel.

Checked against diffusers 0.42.1, autoencoder_kl_qwenimage.py and autoencoder_kl_qwenimage21.py; module names are those
of the diffusers checkpoints. Only the attention of the mid-block sees more than a pixel's neighbourhood.

Shapes: B batch, C channels of the level at hand, H x W pixels of the level at hand.
"""
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from ...messages import Refusal
from .operations import Factory, Layer, ModuleList, Operations
from .triton.checked import Checked


def channel_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """RMS norm over the channels of x (B, C, H, W), in fp32."""
    return (x * _factor(x) * gamma.to(x.device, torch.float32)).type_as(x)


def _factor(x: Tensor) -> Tensor:
    """sqrt(C) by the length of each pixel's channels, (B, 1, H, W) in fp32."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    return x.shape[1] ** 0.5 / length.clamp_min(1e-12)  # as F.normalize has it


def plain_normed_silu(x: Tensor, gamma: Tensor, above: Tensor | None = None) -> Tensor:
    """[above | SiLU of the norm of x], one below the other; above (B, C, rows, W) is taken as it is."""
    if torch.is_grad_enabled():  # nothing is overwritten
        y = F.silu(channel_norm(x, gamma))
        return y if above is None else torch.cat([above, y], dim=2)
    out, normed = below(above, x)
    torch.mul(x * _factor(x), gamma.to(x.device, torch.float32), out=normed)  # rounds as it writes
    F.silu(normed, inplace=True)
    return out


def below(above: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor [above | room for one like x], and the room in it."""
    if above is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        return out, out
    first, rows = above.shape[2], x.shape[2]
    out = x.new_empty(*x.shape[:2], first + rows, x.shape[3])
    out[:, :, :first] = above
    return out, out[:, :, first:]


def triton_normed_silu() -> Callable[..., Tensor]:
    from .triton.normed_silu import normed_silu

    def kernel(x: Tensor, gamma: Tensor, above: Tensor | None = None) -> Tensor:
        out, room = below(above, x)
        normed_silu(x, gamma, room)
        return out
    return kernel


def few_pixels(x: Tensor, gamma: Tensor, above: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Random ones of as many channels, with the same gamma."""
    few = torch.randn(2, x.shape[1], 3, 5, generator=torch.Generator().manual_seed(1)).to(x)
    return few, gamma, None if above is None else few[:, :, 1:]


# Four passes over the widest tensors of a decode, or one kernel. SiLU makes more of a difference in its input's last
# bit than one step: at -5 four.
normed_silu = Checked("The VAE's norms are computed", plain_normed_silu, triton_normed_silu, few_pixels, tolerance=8)


class ChannelNorm(nn.Module):
    """RMS norm over the channels of each pixel, in fp32."""

    def __init__(self, channels: int, **factory: Unpack[Factory]):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, 1, 1, **factory))

    def forward(self, x: Tensor) -> Tensor:
        return channel_norm(x, self.gamma)

    def silu(self, x: Tensor, above: Tensor | None = None) -> Tensor:
        """SiLU of the norm, below the rows `above` where there are any."""
        return normed_silu(x, self.gamma, above)


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
    """A fixed resampling, then a convolution."""

    def __init__(self, before: nn.Module, conv: Layer):
        super().__init__()
        self.resample = nn.Sequential(before, conv)

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
            # Padded on all sides, and a row and a column dropped: to pad two sides alone would copy x.
            y = F.conv2d(x, taps.weights[row][column], taps.bias, padding=1)  # (B, C', H + 1, W + 1)
            out[:, :, row::2, column::2] = y[:, :, row:row + height, column:column + width]
    return out


def _folded(weight: Tensor, axis: int, odd: int) -> Tensor:
    """Three taps -> two: an even output sees one input and the next twice, an odd one the first twice."""
    first, middle, last = weight.unbind(axis)
    return torch.stack([first + middle, last] if odd else [first, middle + last], axis)
