"""Layers of a picture, from the lowest to the topmost."""
import torch
from torch import Tensor

from .references import over_white


def alpha_over(layers: Tensor) -> Tensor:
    """RGBA layers (L, H, W, 4) in [0, 1] -> what they show together (1, H, W, 4): each is laid over those before it.
    Colours are not premultiplied; where all is transparent they are 0."""
    colour, alpha = layers.new_zeros(layers[0, ..., :3].shape), layers.new_zeros(layers[0, ..., :1].shape)
    for layer in layers:  # (H, W, 4); colour is premultiplied meanwhile
        opacity = layer[..., 3:]
        colour = layer[..., :3] * opacity + colour * (1 - opacity)
        alpha = opacity + alpha * (1 - opacity)
    visible = alpha > 0
    return torch.cat([torch.where(visible, colour / alpha.where(visible, torch.ones_like(alpha)), 0), alpha],
                     -1).unsqueeze(0)


def distance(picture: Tensor, other: Tensor) -> float:
    """Mean absolute difference of two pictures (B, H, W, 3 or 4) as they look on white, in steps of 8 bits."""
    return 255 * float((over_white(picture) - over_white(other).to(picture)).abs().mean())
