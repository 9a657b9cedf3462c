"""Frozen sizes of the networks. A spec is all that detection hands to a network.

Defaults are the published Qwen-Image-2.1 values (diffusers 0.42.1: transformer_qwenimage21.py,
autoencoder_kl_qwenimage21.py; Qwen3-VL-8B-Instruct's config.json; transformers 5: configuration_qwen3_5.py).
"""
from dataclasses import dataclass

from ...messages import Refusal
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

    def __post_init__(self):
        if sum(self.rope_axes) != self.head_dim:
            raise Refusal("rope_axes_sum", "rope_axes {axes} add up to {sum}, but head_dim is {head_dim}.",
                          axes=str(self.rope_axes), sum=sum(self.rope_axes), head_dim=self.head_dim)
        if any(axis % 2 for axis in self.rope_axes):
            raise Refusal("rope_axes_odd", "rope_axes {axes} must be even: rotary channels come in pairs.",
                          axes=str(self.rope_axes))


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

    def __post_init__(self):
        if len(self.video_levels) != len(self.dim_mult) - 1:
            raise Refusal("vae_levels", "{levels} levels resize {steps} times, but video_levels has {entries} entries.",
                          levels=len(self.dim_mult), steps=len(self.dim_mult) - 1, entries=len(self.video_levels))
        if not len(self.latent_mean) == len(self.latent_std) == self.latent_channels:
            raise Refusal("latent_statistics", "{channels} latent channels, but {means} means and {deviations} "
                          "deviations.", channels=self.latent_channels, means=len(self.latent_mean),
                          deviations=len(self.latent_std))

    @property
    def scale(self) -> int:
        """Pixels per latent, along one side."""
        return 2 ** (len(self.dim_mult) - 1)


@dataclass(frozen=True)
class VisionSpec:
    depth: int = 27
    dim: int = 1152
    mlp_dim: int = 4304
    heads: int = 16
    patch: int = 16                 # pixels; merge x merge patches make one token
    temporal_patch: int = 2         # a still image is repeated this often
    merge: int = 2
    positions: int = 2304           # 48 x 48 learned positions, interpolated
    deepstack_layers: tuple[int, ...] = (8, 16, 24)

    def __post_init__(self):
        if self.dim % self.heads:
            raise Refusal("vision_heads", "the vision tower's width {width} is no multiple of its {heads} heads.",
                          width=self.dim, heads=self.heads)


@dataclass(frozen=True)
class TextEncoderSpec:
    layers: int = 36
    dim: int = 4096
    mlp_dim: int = 12288
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 151936
    rope_theta: float = 5_000_000.0
    mrope_section: tuple[int, int, int] = (24, 20, 20)  # rotary pairs for time, height, width
    eps: float = 1e-6
    lm_head: bool = True            # untied output matrix present in the file
    vision: VisionSpec | None = VisionSpec()  # None: it reads no pictures

    def __post_init__(self):
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise Refusal("mrope_sections", "mrope_section {sections} makes {channels} channels, but head_dim is "
                          "{head_dim}.", sections=str(self.mrope_section), channels=2 * sum(self.mrope_section),
                          head_dim=self.head_dim)
        if self.vision and max(self.vision.deepstack_layers, default=0) >= self.vision.depth:
            raise Refusal("deepstack_layers", "deepstack_layers {layers} are taken from a vision tower of {depth} "
                          "blocks.", layers=str(self.vision.deepstack_layers), depth=self.vision.depth)


@dataclass(frozen=True)
class EnhancerSpec:
    """Qwen3.5: gated attention in some layers, a gated delta rule with a short convolution in the others."""

    attention_layers: tuple[bool, ...] = (False, False, False, True) * 8  # per layer: attention, or the delta rule
    dim: int = 4096
    mlp_dim: int = 12288
    heads: int = 16
    kv_heads: int = 4
    head_dim: int = 256
    linear_key_heads: int = 16
    linear_value_heads: int = 32
    linear_key_dim: int = 128       # channels of a head
    linear_value_dim: int = 128
    conv_taps: int = 4
    vocabulary: int = 248320
    rope_theta: float = 10_000_000.0
    rotary_share: float = 0.25      # of a head's channels
    mrope_section: tuple[int, int, int] = (11, 11, 10)  # rotary pairs for time, height, width
    eps: float = 1e-6
    lm_head: bool = True            # else the vocabulary's matrix is the output matrix too
    vision: VisionSpec = VisionSpec(deepstack_layers=())

    def __post_init__(self):
        if 2 * sum(self.mrope_section) != int(self.head_dim * self.rotary_share):
            raise Refusal("mrope_rotary", "mrope_section {sections} makes {channels} channels, but {share} of head_dim "
                          "{head_dim} are rotary.", sections=str(self.mrope_section),
                          channels=2 * sum(self.mrope_section), share=str(self.rotary_share), head_dim=self.head_dim)
