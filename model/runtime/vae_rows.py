"""An autoencoder's layers in chunks of rows: little memory at any height, and the result of the whole image.

Outside the mid-block a layer sees at most the neighbouring rows. So the rows of a feature map flow through the layers
from top to bottom in chunks, and each 3x3 convolution keeps its last two input rows for the next chunk. Nothing is
blended, and only two rows at each seam are computed twice.

Shapes: a chunk is (B, C, rows, W); `Rows` yields the chunks of one feature map in order.
"""
import sys
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...messages import Refusal
from .vae_layers import MAX_SCORES, AttentionBlock, Doubling, FoldedWeights, MidBlock, ResidualBlock

Rows = Iterator[Tensor]

# A chunk must outlast the rows that the convolutions of a level hold back, seven at most.
MIN_ROWS = 16


def check_sides(pixels: Tensor, multiple: int) -> None:
    """Raises Refusal for images (B, C, H, W) whose sides give no whole latents."""
    height, width = pixels.shape[-2:]
    if height % multiple or width % multiple:
        raise Refusal("vae_multiple", "The VAE encodes multiples of {multiple} pixels, got {width} x {height}.",
                      multiple=multiple, width=width, height=height)


class RowBuffer:
    """Rows that have gone in and are not taken out yet."""

    def __init__(self) -> None:
        self.chunks: list[Tensor] = []

    def __len__(self) -> int:
        return sum(chunk.shape[2] for chunk in self.chunks)

    def put(self, chunk: Tensor) -> None:
        self.chunks.append(chunk)

    def take(self, count: int) -> Tensor:
        taken = list(self.pieces(count))
        return taken[0] if len(taken) == 1 else torch.cat(taken, dim=2)

    def pieces(self, count: int, most: int = sys.maxsize) -> Iterator[Tensor]:
        """So many rows as they have come, at most `most` at a time: without a copy."""
        while count:
            first = self.chunks[0]
            piece = first[:, :, :min(count, most)]
            self.chunks[:1] = [first[:, :, piece.shape[2]:]] if first.shape[2] > piece.shape[2] else []
            count -= piece.shape[2]
            del first  # see map_rows
            yield piece


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


def remember(rows: Rows, buffer: RowBuffer) -> Rows:
    def put(chunk: Tensor) -> Tensor:
        buffer.put(chunk)
        return chunk
    return map_rows(put, rows)


def add_(chunk: Tensor, pieces: Iterable[Tensor]) -> Tensor:
    """Add rows that come in pieces to a chunk that nobody else has, in its place."""
    top = 0
    for piece in pieces:
        chunk[:, :, top:top + piece.shape[2]].add_(piece)  # += would write it twice
        top += piece.shape[2]
    return chunk


def joined(chunk: Tensor, above: Tensor | None) -> Tensor:
    return chunk if above is None else torch.cat([above, chunk], dim=2)


def convolution(layer: Callable[[Tensor], Tensor], rows: Rows, height: int, factor: int = 1,
                join: Callable[[Tensor, Tensor | None], Tensor] = joined) -> Rows:
    """A 3x3 convolution with padding 1 over `height` rows, each of which becomes `factor` rows. What it makes of the
    rows beside a seam, which it has padded too, is dropped.

    join(chunk, above): puts a chunk below the rows kept of the one before. It may change the chunk on the way: a norm
    that writes its result there saves a pass over it."""
    above: Tensor | None = None
    done = 0
    for chunk in rows:
        done += chunk.shape[2]
        first = 0 if above is None else factor
        x = join(chunk, above)
        del chunk  # see map_rows
        above = x[:, :, -2:].clone()  # a view would keep all of x
        y = [layer(x)[:, :, first:None if done == height else -factor]]
        del x
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
    y = convolution(block.conv1, remember(rows, buffer), height, join=block.norm1.silu)
    y = convolution(block.conv2, y, height, join=block.norm2.silu)
    return map_rows(lambda chunk: add_(chunk, map(block.conv_shortcut, buffer.pieces(chunk.shape[2]))), y)


def folded_once(layer: Doubling) -> Callable[[Tensor], Tensor]:
    """A doubling that folds its weights for the first chunk, and keeps them as long as the rows flow."""
    taps: list[FoldedWeights] = []

    def double(chunk: Tensor) -> Tensor:
        if not taps:
            taps.append(layer.taps(chunk))
        return layer(chunk, *taps)
    return double


def mid_block(block: MidBlock, rows: Rows, height: int, size: int) -> Rows:
    """The mid-block over `height` rows, of which its attention alone sees all at once."""
    seen = torch.cat(list(residual(block.resnets[0], rechunk(rows, size), height)), dim=2)
    attend_(block.attentions[0], seen, size)
    return residual(block.resnets[1], rechunk(iter([seen]), size), height)


def attend_(block: AttentionBlock, x: Tensor, size: int) -> None:
    """x (B, C, H, W) becomes what the block makes of it; beside it lie queries, keys and values, 3 x as large.

    Each piece of queries gives way to its result, and x itself is overwritten: there are no derivatives.
    """
    batch, channels, height, width = x.shape
    qkv = x.new_empty(3, batch, 1, height * width, channels)
    count = max(MIN_ROWS, size // (x[:, :, :1].numel() * x.element_size()))
    for top in range(0, height, count):
        some = block.to_qkv(block.norm(x[:, :, top:top + count])).flatten(2)  # (B, 3C, rows * W)
        qkv[:, :, 0, top * width:(top + count) * width] = some.unflatten(1, (3, channels)).permute(1, 0, 3, 2)
    q, k, v = qkv
    for piece in q.split(max(1, MAX_SCORES // (batch * height * width)), dim=2):
        piece.copy_(F.scaled_dot_product_attention(piece, k, v))
    for top in range(0, height, count):
        some = q[:, 0, top * width:(top + count) * width].transpose(1, 2).unflatten(2, (-1, width))  # (B, C, rows, W)
        x[:, :, top:top + count].add_(block.proj(some))
