"""What an autoencoder takes beside its weights, and how to keep it below a peak: the formulas, whose figures differ
with its widths.

`element` is the bytes of a value, pixels are those of the image.
"""
import math
from dataclasses import dataclass

from torch import nn

from ...messages import Refusal
from .vae_layers import Doubling

# The weights of a doubling are summed in fp32 (vae_layers.py), bytes per weight of the largest; all sums are kept for a
# decode.
BYTES_PER_SUMMED_WEIGHT, SUMS_PER_WEIGHT = 9, 4 * 4 / 9


def summed(decoder: nn.Module) -> int:
    """Bytes that a decoder's doublings take for the sums of their weights."""
    weights = [layer.weight for layer in decoder.modules() if isinstance(layer, Doubling)]
    return math.ceil(BYTES_PER_SUMMED_WEIGHT * max(weight.numel() for weight in weights)
                     + SUMS_PER_WEIGHT * sum(weight.nbytes for weight in weights))


@dataclass(frozen=True)
class VAEMemory:
    """Of one architecture, at its published widths."""

    small_values_per_pixel: int  # what an image that fits into one chunk of rows takes at the most
    values_per_pixel: int        # what the mid-block and the image itself need
    values: int                  # what the mid-block needs at any size: the scores of one piece of queries
    values_per_column: int       # however small a chunk is wished, it has some rows: what they take at the least
    chunks: int                  # what a larger image takes beside that, in chunks of rows
    chunk_bytes: int             # of a chunk of the standard size

    def expected(self, pixels: int, element: int) -> int:
        """Bytes to decode an image of so many pixels in chunks of the standard size; encoding takes less."""
        return min(pixels * self.small_values_per_pixel * element,
                   (pixels * self.values_per_pixel + self.values) * element + self.chunks * self.chunk_bytes)

    def least(self, height: int, width: int, element: int, summed: int) -> int:
        """Bytes below which no chunk is small enough."""
        values = height * width * self.values_per_pixel + width * self.values_per_column + self.values
        return values * element + summed

    def chunk_for(self, peak: int, height: int, width: int, element: int, summed: int) -> int:
        """Bytes of a chunk of rows with which an image takes at most `peak` bytes. Raises ValueError where none
        does."""
        needed = self.least(height, width, element, summed)
        if peak < needed:
            raise Refusal("vae_peak_low", "The VAE needs at least {needed} GiB for {width} x {height} pixels, but VRAM "
                          "for VAE on Memory Budget is {peak} GiB. Raise it, or set it to 0.", width=width,
                          height=height, needed=f"{needed / 2**30:.2f}", peak=f"{peak / 2**30:.2f}")
        return (peak - needed) // self.chunks

    def largest_side(self, peak: int, element: int, summed: int) -> float:
        """Pixels of the side of the largest square image that keeps to the peak; 0 where there is none."""
        edge = self.values_per_column / self.values_per_pixel / 2
        values = max(0, (peak - summed) / element - self.values)
        return math.sqrt(edge ** 2 + values / self.values_per_pixel) - edge
