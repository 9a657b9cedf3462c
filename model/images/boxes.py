"""Rectangles of pixels. No torch here: pages/ places words with them."""
from typing import NamedTuple


class Box(NamedTuple):
    """Pixels [left, right) x [top, bottom)."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top
