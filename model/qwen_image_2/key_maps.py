"""The names that the same weights carry in circulating files, as tables that work in both directions.

Our modules use the names of the diffusers checkpoint, and for the MLP's matrix that of Comfy-Org's files, in which gate
and projection are fused. Any file may have a prefix; transformer files have fused MLPs or split ones; VAE files may use
Wan 2.2's names.
"""
from ..checkpoints.rename import KeyMap

# One fused matrix holds the rows of these two, in this order.
FUSED_MLP = "img_mlp.gate_up"
SPLIT_MLP = ("img_mlp.gate_layer", "img_mlp.proj")

# diffusers, Wan
VAE_WAN = KeyMap((
    ("quant_conv.", "conv1."),
    ("post_quant_conv.", "conv2."),
    ("encoder.conv_in.", "encoder.conv1."),
    ("encoder.down_blocks.{i}.downsampler.", "encoder.downsamples.{i}.downsamples.2."),
    ("encoder.down_blocks.{i}.resnets.{j}.", "encoder.downsamples.{i}.downsamples.{j}."),
    ("encoder.mid_block.attentions.0.", "encoder.middle.1."),
    ("encoder.mid_block.resnets.0.", "encoder.middle.0."),
    ("encoder.mid_block.resnets.1.", "encoder.middle.2."),
    ("encoder.norm_out.", "encoder.head.0."),
    ("encoder.conv_out.", "encoder.head.2."),
    ("decoder.conv_in.", "decoder.conv1."),
    ("decoder.up_blocks.{i}.upsampler.", "decoder.upsamples.{i}.upsamples.3."),
    ("decoder.up_blocks.{i}.resnets.{j}.", "decoder.upsamples.{i}.upsamples.{j}."),
    ("decoder.mid_block.attentions.0.", "decoder.middle.1."),
    ("decoder.mid_block.resnets.0.", "decoder.middle.0."),
    ("decoder.mid_block.resnets.1.", "decoder.middle.2."),
    ("decoder.norm_out.", "decoder.head.0."),
    ("decoder.conv_out.", "decoder.head.2."),
), leaves=(
    (".norm1.", ".residual.0."),
    (".conv1.", ".residual.2."),
    (".norm2.", ".residual.3."),
    (".conv2.", ".residual.6."),
    (".conv_shortcut.", ".shortcut."),
), inside=".resnets.")
# In every file, and never used for a single frame.
VAE_UNUSED = ".time_conv."


def rows_of(name: str) -> tuple[str, ...]:
    """The names in split files of the rows of this matrix: two for a fused MLP matrix, else the name itself. Also of
    names that have no dots."""
    for written in (lambda form: form, lambda form: form.replace(".", "_")):
        if written(FUSED_MLP) in name:
            return tuple(name.replace(written(FUSED_MLP), written(half)) for half in SPLIT_MLP)
    return (name,)


def mlp_halves(name: str) -> tuple[str, ...]:
    """The parameters that stand with this one in a matrix of Comfy-Org's files, in the order of their rows."""
    half = next((half for half in SPLIT_MLP if half in name), None)
    return (name,) if half is None else tuple(name.replace(half, other) for other in SPLIT_MLP)


def fused_mlp(name: str) -> str:
    """The name in Comfy-Org's files of the matrix that holds this parameter."""
    return next((name.replace(half, FUSED_MLP) for half in SPLIT_MLP if half in name), name)
