"""Rotary positions on three axes (frame, height, width), as both families have them.

Text advances one counter on all three axes. An image stands still on the frame axis and lays its rows and columns out
centred on zero. Which counter an image has, and where the text begins, is its family's. (diffusers 0.42.1,
transformer_qwenimage21.py, QwenImage21Rope; transformer_qwenimage.py, QwenEmbedRope)

Shapes: S tokens, C channels of a head.
"""
import torch

from ...messages import Refusal


def published_axes(head_dim: int) -> tuple[int, int, int]:
    """Rotary channels of a head for frame, height and width in the published proportion, 16 : 56 : 56 of 128."""
    frame = head_dim // 8
    return frame, (head_dim - frame) // 2, (head_dim - frame) // 2


def text_positions(start: int, length: int) -> torch.Tensor:
    """Positions (length, 3) of `length` text tokens from the counter `start` on."""
    return torch.arange(start, start + length).unsqueeze(1).expand(length, 3)


def image_positions(start: int, height: int, width: int) -> torch.Tensor:
    """Positions (height * width, 3) of one image whose frame axis stands at `start`."""
    rows = torch.arange(height) - (height - height // 2)
    columns = torch.arange(width) - (width - width // 2)
    return torch.stack([
        torch.full((height, width), start),
        rows.unsqueeze(1).expand(height, width),
        columns.unsqueeze(0).expand(height, width),
    ], dim=-1).reshape(-1, 3)


def rotations(positions: torch.Tensor, axes: tuple[int, int, int], theta: float) -> torch.Tensor:
    """Positions (S, 3) -> unit complex numbers (S, C/2), complex64; `axes` are each axis's rotary channels.

    On the CPU: they are few, every device then gets the very same numbers, and not every one knows complex numbers.
    """
    angles = torch.cat([
        torch.outer(positions[:, i].float(), 1.0 / torch.pow(theta, torch.arange(0, channels, 2).float() / channels))
        for i, channels in enumerate(axes)
    ], dim=1)
    return torch.polar(torch.ones_like(angles), angles)


def check_axes(axes: tuple[int, int, int], head_dim: int) -> None:
    """Raises Refusal where these rotary channels for frame, height and width do not make up a head."""
    if sum(axes) != head_dim:
        raise Refusal("rope_axes_sum", "rope_axes {axes} add up to {sum}, but head_dim is {head_dim}.",
                      axes=str(axes), sum=sum(axes), head_dim=head_dim)
    if any(axis % 2 for axis in axes):
        raise Refusal("rope_axes_odd", "rope_axes {axes} must be even: rotary channels come in pairs.",
                      axes=str(axes))
