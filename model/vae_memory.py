"""What the autoencoder takes beside its weights, at the published widths, and how to keep it below a peak.

Counted in tests/model/test_vae_memory.py. `element` is the bytes of a value, pixels are those of the picture.
"""
import math

from .vae import CHUNK_BYTES

# A picture that fits into one chunk of rows takes up to 1730 values per pixel; a larger one takes about twenty chunks,
# and per pixel what the mid-block and the picture itself need.
SMALL_VALUES_PER_PIXEL, VALUES_PER_PIXEL, CHUNKS = 1730, 50, 24
# However small a chunk is wished, it has some rows: what they take at the least, per column of pixels.
VALUES_PER_COLUMN = 160_000


def expected(pixels: int, element: int) -> int:
    """Bytes to decode a picture of so many pixels in chunks of the standard size; encoding takes less."""
    return min(pixels * SMALL_VALUES_PER_PIXEL * element,
               pixels * VALUES_PER_PIXEL * element + CHUNKS * CHUNK_BYTES)


def chunk_for(peak: int, height: int, width: int, element: int) -> int:
    """Bytes of a chunk of rows with which a picture takes at most `peak` bytes. Raises ValueError where none does."""
    picture = height * width * VALUES_PER_PIXEL * element
    least = picture + width * VALUES_PER_COLUMN * element
    if peak < least:
        raise ValueError(f"A picture of {width} x {height} pixels takes the VAE at least {least / 2**30:.2f} GiB, but "
                         f"vae_peak of QwenImage2Memory is {peak / 2**30:.2f} GiB: raise it, or set it to 0.")
    return (peak - picture) // CHUNKS


def largest_side(peak: int, element: int) -> float:
    """Pixels of the side of the largest square picture that keeps to the peak."""
    edge = VALUES_PER_COLUMN / VALUES_PER_PIXEL / 2
    return math.sqrt(edge ** 2 + peak / element / VALUES_PER_PIXEL) - edge
