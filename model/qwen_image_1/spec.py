"""Frozen sizes of the networks. A spec is all that detection hands to a network.

Defaults are the published Qwen-Image values (diffusers 0.42.1: transformer_qwenimage.py, autoencoder_kl_qwenimage.py).
"""
from dataclasses import dataclass

from ..runtime.latent_scale import check_statistics
from ..runtime.rope import check_axes
from .latents import LATENT_MEAN, LATENT_STD


@dataclass(frozen=True)
class TransformerSpec:
    layers: int = 60
    dim: int = 3072                 # width of both streams
    heads: int = 24
    head_dim: int = 128
    mlp_dim: int = 12288
    context_dim: int = 3584         # width of the text encoder's hidden states
    channels: int = 16              # latent channels, in and out
    patch: int = 2                  # latents along a side of a token
    rope_axes: tuple[int, int, int] = (16, 56, 56)  # rotary channels of a head for frame, height, width
    rope_theta: float = 10000.0
    eps: float = 1e-6
    zero_cond_t: bool = False       # references are modulated at t = 0 (Edit-2511)
    layered: bool = False           # paints several frames, layers of one picture (Layered)

    def __post_init__(self) -> None:
        check_axes(self.rope_axes, self.head_dim)

    @property
    def token_channels(self) -> int:
        return self.channels * self.patch ** 2


@dataclass(frozen=True)
class VAESpec:
    base_dim: int = 96              # channels at full resolution
    dim_mult: tuple[int, int, int, int] = (1, 2, 4, 4)  # channels of each level, in units of the base
    res_blocks: int = 2             # residual blocks of an encoder level; a decoder level has one more
    latent_channels: int = 16
    pixel_channels: int = 3         # RGB; 4 in Qwen-Image-Layered's, which is RGBA
    latent_mean: tuple[float, ...] = LATENT_MEAN
    latent_std: tuple[float, ...] = LATENT_STD

    def __post_init__(self) -> None:
        check_statistics(self.latent_channels, self.latent_mean, self.latent_std)

    @property
    def scale(self) -> int:
        """Pixels per latent, along one side."""
        return 2 ** (len(self.dim_mult) - 1)
