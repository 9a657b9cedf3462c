"""The names that the same weights carry in circulating files, as tables that work in both directions.

Our modules use the names of the diffusers checkpoint. Any file may have a prefix; VAE files may use Wan 2.1's names.
"""
from ..checkpoints.rename import KeyMap
from .spec import VAESpec

# Wan counts the decoder's blocks through all levels: each has three residual blocks and, but for the last, a doubling.
_PER_LEVEL = VAESpec.res_blocks + 2
_UP_BLOCKS = [(f"decoder.up_blocks.{i}.{block}.", f"decoder.upsamples.{_PER_LEVEL * i + j}.")
              for i in range(len(VAESpec.dim_mult))
              for j, block in enumerate((*(f"resnets.{k}" for k in range(_PER_LEVEL - 1)), "upsamplers.0"))]
# diffusers, Wan
VAE_WAN = KeyMap((
    ("quant_conv.", "conv1."),
    ("post_quant_conv.", "conv2."),
    ("encoder.conv_in.", "encoder.conv1."),
    ("encoder.down_blocks.{i}.", "encoder.downsamples.{i}."),
    ("encoder.mid_block.attentions.0.", "encoder.middle.1."),
    ("encoder.mid_block.resnets.0.", "encoder.middle.0."),
    ("encoder.mid_block.resnets.1.", "encoder.middle.2."),
    ("encoder.norm_out.", "encoder.head.0."),
    ("encoder.conv_out.", "encoder.head.2."),
    ("decoder.conv_in.", "decoder.conv1."),
    ("decoder.mid_block.attentions.0.", "decoder.middle.1."),
    ("decoder.mid_block.resnets.0.", "decoder.middle.0."),
    ("decoder.mid_block.resnets.1.", "decoder.middle.2."),
    *_UP_BLOCKS,
    ("decoder.norm_out.", "decoder.head.0."),
    ("decoder.conv_out.", "decoder.head.2."),
), leaves=(
    (".norm1.", ".residual.0."),
    (".conv1.", ".residual.2."),
    (".norm2.", ".residual.3."),
    (".conv2.", ".residual.6."),
    (".conv_shortcut.", ".shortcut."),
), inside="block")  # down_blocks, mid_block, up_blocks
# In every file, and never used for a single frame.
VAE_UNUSED = ".time_conv."
