"""The levels of the autoencoder in chunks of rows, with the shortcuts around them: see runtime/vae_rows.py."""
from collections.abc import Iterator

from torch import Tensor

from ..runtime.vae_rows import (
    MIN_ROWS,
    RowBuffer,
    Rows,
    add_,
    convolution,
    folded_once,
    map_rows,
    rechunk,
    remember,
    residual,
    strided_conv,
)
from .vae_layers import DownBlock, UpBlock, avg_down, dup_up


def down_block(block: DownBlock, rows: Rows, height: int, size: int) -> Rows:
    """One encoder level of `height` rows, in chunks of about `size` bytes."""
    buffer = RowBuffer()
    rows = remember(rechunk(rows, size), buffer)
    for resnet in block.resnets:
        rows = residual(resnet, rows, height)
    downsampler = block.downsampler
    if downsampler is None:
        return map_rows(lambda chunk: add_(chunk, buffer.pieces(chunk.shape[2])), rows)

    def shortcut(chunk: Tensor) -> Tensor:
        return avg_down(buffer.take(2 * chunk.shape[2]), block.channels, downsampler.video)

    pad, layer = downsampler.resample
    return map_rows(lambda chunk: chunk.add_(shortcut(chunk)), strided_conv(pad, layer, rows, height))


def up_block(block: UpBlock, rows: Rows, height: int, size: int) -> Rows:
    """One decoder level of `height` rows, in chunks of about `size` bytes."""
    buffer = RowBuffer()
    rows = rechunk(rows, size)
    upsampler = block.upsampler
    if upsampler is not None:
        rows = remember(rows, buffer)
    for resnet in block.resnets:
        rows = residual(resnet, rows, height)
    if upsampler is None:
        return rows

    def shortcut(rows: int) -> Iterator[Tensor]:
        """Little by little: it is up to four times as large as its input."""
        for piece in buffer.pieces(rows // 2, MIN_ROWS):
            yield dup_up(piece, block.channels, upsampler.video)

    return map_rows(lambda chunk: add_(chunk, shortcut(chunk.shape[2])),
                    convolution(folded_once(upsampler.conv), rechunk(rows, size // 4), height, factor=2))
