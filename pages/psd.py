"""Layers of a page -> a PSD file, as Photoshop, Affinity, Krita and GIMP open it.

psd-tools is an optional extra, so it is imported when a file is written and not before.
"""
from collections.abc import Sequence
from importlib.util import find_spec
from typing import BinaryIO

from numpy import ndarray
from PIL import Image

from ..messages import Refusal

INSTALL = 'python -m pip install "psd-tools>=1.20"'  # before it, transparent parts of the flattened picture were opaque


def require() -> None:
    """Raises Refusal with the install command where psd-tools is not there."""
    if find_spec("psd_tools") is None:
        raise Refusal("psd_missing", "PSD files need psd-tools, which is not installed. Run {command} with ComfyUI's "
                      "Python and restart ComfyUI, or choose png.", command=INSTALL)


def write_psd(file: BinaryIO, layers: Sequence[ndarray], flattened: ndarray) -> None:
    """layers: (H, W, 4), 8 bits, the lowest first; they are called Layer 1, Layer 2 and so on. flattened: (H, W, 4),
    what they show together, for programs that know no layers."""
    require()
    from psd_tools import PSDImage
    document = PSDImage.frompil(Image.fromarray(flattened))
    for number, layer in enumerate(layers, start=1):
        document.create_pixel_layer(Image.fromarray(layer), name=f"Layer {number}")
    document.save(file)
