"""What the autoencoder takes beside its weights, at the published widths, and how to keep it below a peak.

Counted in tests/model/qwen_image_2/test_vae_memory.py. `element` is the bytes of a value, pixels are those of the
image.
"""
import math

from ...messages import Refusal
from .vae import CHUNK_BYTES
from .vae_layers import Decoder

# A image that fits into one chunk of rows takes up to 1730 values per pixel; a larger one takes about twenty chunks,
# and per pixel what the mid-block and the image itself need.
SMALL_VALUES_PER_PIXEL, VALUES_PER_PIXEL, CHUNKS = 1730, 50, 24
# However small a chunk is wished, it has some rows, what they take at the least per column of pixels. And the weights
# of a doubling are summed in fp32 (vae_layers.py), bytes per weight of the largest; all sums are kept for a decode.
VALUES_PER_COLUMN, BYTES_PER_SUMMED_WEIGHT, SUMS_PER_WEIGHT = 110_000, 9, 4 * 4 / 9


def expected(pixels: int, element: int) -> int:
    """Bytes to decode an image of so many pixels in chunks of the standard size; encoding takes less."""
    return min(pixels * SMALL_VALUES_PER_PIXEL * element,
               pixels * VALUES_PER_PIXEL * element + CHUNKS * CHUNK_BYTES)


def summed(decoder: Decoder) -> int:
    """Bytes that a decoder's doublings take for the sums of their weights."""
    weights = [block.upsampler.conv.weight for block in decoder.up_blocks if block.upsampler is not None]
    return math.ceil(BYTES_PER_SUMMED_WEIGHT * max(weight.numel() for weight in weights)
                     + SUMS_PER_WEIGHT * sum(weight.nbytes for weight in weights))


def least(height: int, width: int, element: int, summed: int) -> int:
    """Bytes below which no chunk is small enough."""
    return height * width * VALUES_PER_PIXEL * element + width * VALUES_PER_COLUMN * element + summed


def chunk_for(peak: int, height: int, width: int, element: int, summed: int) -> int:
    """Bytes of a chunk of rows with which an image takes at most `peak` bytes. Raises ValueError where none does."""
    needed = least(height, width, element, summed)
    if peak < needed:
        raise Refusal("vae_peak_low", "The VAE needs at least {needed} GiB for {width} x {height} pixels, but VRAM for "
                      "VAE on Memory Budget is {peak} GiB. Raise it, or set it to 0.", width=width, height=height,
                      needed=f"{needed / 2**30:.2f}", peak=f"{peak / 2**30:.2f}")
    return (peak - needed) // CHUNKS


def largest_side(peak: int, element: int, summed: int) -> float:
    """Pixels of the side of the largest square image that keeps to the peak; 0 where there is none."""
    edge = VALUES_PER_COLUMN / VALUES_PER_PIXEL / 2
    return math.sqrt(edge ** 2 + max(0, peak - summed) / element / VALUES_PER_PIXEL) - edge
