"""The autoencoder's levels in chunks of rows: little memory at any height, and the result of the whole image.

Outside the mid-block a layer sees at most the neighbouring rows. So the rows of a feature map flow through the layers
from top to bottom in chunks, and each 3x3 convolution keeps its last two input rows for the next chunk. Nothing is
blended, and only two rows at each seam are computed twice.

Shapes: a chunk is (B, C, rows, W); `Rows` yields the chunks of one feature map in order.
"""
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .vae_layers import Doubling, DownBlock, FoldedWeights, ResidualBlock, UpBlock, avg_down, dup_up

Rows = Iterator[Tensor]

# A chunk must outlast the rows that the convolutions of a level hold back, seven at most.
MIN_ROWS = 16


class RowBuffer:
    """Rows that have gone in and are not taken out yet."""

    def __init__(self) -> None:
        self.chunks: list[Tensor] = []

    def __len__(self) -> int:
        return sum(chunk.shape[2] for chunk in self.chunks)

    def put(self, chunk: Tensor) -> None:
        self.chunks.append(chunk)

    def take(self, count: int) -> Tensor:
        taken = []
        while count:
            first = self.chunks[0]
            taken.append(first[:, :, :count])
            self.chunks[:1] = [first[:, :, count:]] if first.shape[2] > count else []
            count -= taken[-1].shape[2]
        return taken[0] if len(taken) == 1 else torch.cat(taken, dim=2)


def rechunk(rows: Rows, size: int) -> Rows:
    """The same rows in chunks of about `size` bytes."""
    buffer = RowBuffer()
    for chunk in rows:
        buffer.put(chunk)
        count = max(MIN_ROWS, size // (chunk[:, :, :1].numel() * chunk.element_size()))
        del chunk  # see map_rows
        while len(buffer) >= count:
            yield buffer.take(count)
    if len(buffer):
        yield buffer.take(len(buffer))


def map_rows(change: Callable[[Tensor], Tensor], rows: Rows) -> Rows:
    """The changed chunks. (A suspended generator keeps its variables: each one here lets go of a chunk before it
    hands on the next, or a dozen layers in a row would keep a dozen of them.)"""
    for chunk in rows:
        changed = [change(chunk)]
        del chunk
        yield changed.pop()


def _remember(rows: Rows, buffer: RowBuffer) -> Rows:
    def put(chunk: Tensor) -> Tensor:
        buffer.put(chunk)
        return chunk
    return map_rows(put, rows)


def convolution(layer: Callable[[Tensor], Tensor], rows: Rows, height: int, factor: int = 1) -> Rows:
    """A 3x3 convolution with padding 1 over `height` rows, each of which becomes `factor` rows. What it makes of the
    rows beside a seam, which it has padded too, is dropped."""
    above: Tensor | None = None
    done = 0
    for chunk in rows:
        done += chunk.shape[2]
        first = 0 if above is None else factor
        x = chunk if above is None else torch.cat([above, chunk], dim=2)
        above = x[:, :, -2:].clone()  # a view would keep all of x
        y = [layer(x)[:, :, first:None if done == height else -factor]]
        del chunk, x
        if y[0].shape[2]:
            yield y.pop()


def strided_conv(pad: nn.Module, layer: nn.Module, rows: Rows, height: int) -> Rows:
    """A 3x3 convolution with stride 2, padded below and to the right: row i is made of rows 2i to 2i + 2."""
    left: Tensor | None = None
    done = 0
    for chunk in rows:
        done += chunk.shape[2]
        x = chunk if left is None else torch.cat([left, chunk], dim=2)
        count = x.shape[2] // 2 if done == height else (x.shape[2] - 1) // 2
        left = x[:, :, 2 * count:].clone()
        y = [layer(pad(x))[:, :, :count]]
        del chunk, x
        if count:
            yield y.pop()


def residual(block: ResidualBlock, rows: Rows, height: int) -> Rows:
    buffer = RowBuffer()
    y = map_rows(block.norm1.silu, _remember(rows, buffer))
    y = map_rows(block.norm2.silu, convolution(block.conv1, y, height))
    return map_rows(lambda chunk: chunk + block.conv_shortcut(buffer.take(chunk.shape[2])),
                convolution(block.conv2, y, height))


def down_block(block: DownBlock, rows: Rows, height: int, size: int) -> Rows:
    """One encoder level of `height` rows, in chunks of about `size` bytes."""
    buffer = RowBuffer()
    rows = _remember(rechunk(rows, size), buffer)
    for resnet in block.resnets:
        rows = residual(resnet, rows, height)
    downsampler = block.downsampler
    if downsampler is None:
        return map_rows(lambda chunk: chunk + buffer.take(chunk.shape[2]), rows)

    def shortcut(chunk: Tensor) -> Tensor:
        return avg_down(buffer.take(2 * chunk.shape[2]), block.channels, downsampler.video)

    pad, layer = downsampler.resample
    return map_rows(lambda chunk: chunk + shortcut(chunk), strided_conv(pad, layer, rows, height))


def up_block(block: UpBlock, rows: Rows, height: int, size: int) -> Rows:
    """One decoder level of `height` rows, in chunks of about `size` bytes."""
    buffer, doubled = RowBuffer(), RowBuffer()
    rows = rechunk(rows, size)
    upsampler = block.upsampler
    if upsampler is not None:
        rows = _remember(rows, buffer)
    for resnet in block.resnets:
        rows = residual(resnet, rows, height)
    if upsampler is None:
        return rows

    def shortcut(count: int) -> Tensor:
        while len(doubled) < count:  # little by little: it is up to four times as large as its input
            few = buffer.take(min(MIN_ROWS, len(buffer)))
            doubled.put(dup_up(few, block.channels, upsampler.video))
        return doubled.take(count)

    return map_rows(lambda chunk: chunk + shortcut(chunk.shape[2]),
                convolution(_folded_once(upsampler.conv), rechunk(rows, size // 4), height, factor=2))


def _folded_once(layer: Doubling) -> Callable[[Tensor], Tensor]:
    """A doubling that folds its weights for the first chunk, and keeps them as long as the rows flow."""
    taps: list[FoldedWeights] = []

    def double(chunk: Tensor) -> Tensor:
        if not taps:
            taps.append(layer.taps(chunk))
        return layer(chunk, *taps)
    return double
