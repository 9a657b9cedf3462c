"""The names that the same weights carry in circulating files, as tables that work in both directions.

Our modules use the names of the diffusers checkpoint. Any file may have a prefix; VAE files may use Wan 2.1's names.
"""
from ..checkpoints.rename import KeyMap
from .spec import VAESpec

# diffusers, Wan: inside a residual block
RESIDUAL = (
    ("norm1.", "residual.0."),
    ("conv1.", "residual.2."),
    ("norm2.", "residual.3."),
    ("conv2.", "residual.6."),
    ("conv_shortcut.", "shortcut."),
)
# Wan counts the decoder's blocks through all levels: each has three residual blocks and, but for the last, a doubling.
_LEVELS = range(len(VAESpec.dim_mult))
_PER_LEVEL = VAESpec.res_blocks + 2
_RESIDUAL_BLOCKS = (
    ("encoder.down_blocks.{i}.", "encoder.downsamples.{i}."),
    *((f"{half}.mid_block.resnets.{j}.", f"{half}.middle.{2 * j}.") for half in ("encoder", "decoder") for j in (0, 1)),
    *((f"decoder.up_blocks.{i}.resnets.{j}.", f"decoder.upsamples.{_PER_LEVEL * i + j}.")
      for i in _LEVELS for j in range(_PER_LEVEL - 1)),
)
VAE_WAN = KeyMap((
    ("quant_conv.", "conv1."),
    ("post_quant_conv.", "conv2."),
    *((ours + one, theirs + other) for ours, theirs in _RESIDUAL_BLOCKS for one, other in RESIDUAL),
    ("encoder.down_blocks.{i}.", "encoder.downsamples.{i}."),
    *((f"decoder.up_blocks.{i}.upsamplers.0.", f"decoder.upsamples.{_PER_LEVEL * i + _PER_LEVEL - 1}.")
      for i in _LEVELS),
    *((f"{half}.{ours}.", f"{half}.{theirs}.") for half in ("encoder", "decoder") for ours, theirs in (
        ("conv_in", "conv1"), ("mid_block.attentions.0", "middle.1"), ("norm_out", "head.0"), ("conv_out", "head.2"))),
))
# In every file, and never used for a single frame.
VAE_UNUSED = ".time_conv."
