"""Frozen sizes of the networks. A spec is all that detection hands to a network.

Defaults are the published Qwen-Image-2.1 values (diffusers 0.42.1: transformer_qwenimage21.py,
autoencoder_kl_qwenimage21.py).
"""
from dataclasses import dataclass

from ...messages import Refusal
from ..runtime.latent_scale import check_statistics
from ..runtime.rope import check_axes
from .latents import LATENT_MEAN, LATENT_STD


@dataclass(frozen=True)
class TransformerSpec:
    layers: int = 32
    dim: int = 4096                 # width of the residual stream
    heads: int = 32
    head_dim: int = 128
    mlp_dim: int = 12288            # hidden width of the SwiGLU
    context_dim: int = 4096         # width of the text encoder's hidden states
    channels: int = 64              # latent channels, in and out (patch size 1)
    rope_axes: tuple[int, int, int] = (16, 56, 56)  # rotary channels of a head for frame, height, width
    rope_theta: float = 10000.0
    eps: float = 1e-6
    causal_condition: bool = True   # text and references are modulated at t = 0, so their keys can be kept
    fused_mlp: bool = True          # gate and projection are the rows of one matrix; two where a file forbids that

    def __post_init__(self) -> None:
        check_axes(self.rope_axes, self.head_dim)


@dataclass(frozen=True)
class ControlSpec:
    base: TransformerSpec           # whose blocks' sizes its own have; how many there are, no file of it tells
    blocks: int = 16
    channels: int = 129             # of control latents, keep mask, and latents of the masked source


@dataclass(frozen=True)
class VAESpec:
    base_dim: int = 96              # encoder channels at full resolution
    decoder_base_dim: int = 144
    dim_mult: tuple[int, ...] = (1, 2, 4, 8, 8)  # channels of each level, in units of the base
    res_blocks: int = 2             # residual blocks of an encoder level; a decoder level has one more
    latent_channels: int = 64
    pixel_channels: int = 4         # RGBA
    # Levels whose shortcut was built for video, with a time factor of 2 (it shows in still images too, see vae.py).
    video_levels: tuple[bool, ...] = (False, True, True, True)
    latent_mean: tuple[float, ...] = LATENT_MEAN
    latent_std: tuple[float, ...] = LATENT_STD

    def __post_init__(self) -> None:
        if len(self.video_levels) != len(self.dim_mult) - 1:
            raise Refusal("vae_levels", "{levels} levels resize {steps} times, but video_levels has {entries} entries.",
                          levels=len(self.dim_mult), steps=len(self.dim_mult) - 1, entries=len(self.video_levels))
        check_statistics(self.latent_channels, self.latent_mean, self.latent_std)

    @property
    def scale(self) -> int:
        """Pixels per latent, along one side."""
        return 2 ** (len(self.dim_mult) - 1)
