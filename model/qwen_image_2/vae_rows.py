"""The levels of the autoencoder in chunks of rows, with the shortcuts around them: see runtime/vae_rows.py."""
from torch import Tensor

from ..runtime.vae_rows import (
    MIN_ROWS,
    RowBuffer,
    Rows,
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
        rows = remember(rows, buffer)
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
                convolution(folded_once(upsampler.conv), rechunk(rows, size // 4), height, factor=2))
