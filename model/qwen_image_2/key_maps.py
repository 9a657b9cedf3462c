"""The names that the same weights carry in circulating files, as tables that work in both directions.

Our modules use the names of the diffusers checkpoint. Any file may have a prefix; transformer files differ in whether
the MLP's gate and projection are fused (Comfy-Org); VAE files may use Wan 2.2's names; text encoders come with the
names of the Hugging Face checkpoint, with ComfyUI's or with llama.cpp's.
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

# Hugging Face, ComfyUI's modules
TEXT_ENCODER_COMFY = KeyMap((
    ("lm_head.", "model.lm_head."),
    ("model.language_model.", "model."),
    ("model.visual.", "visual."),
))
# A second head of the prompt enhancers' base model, which guesses several tokens at once.
ENHANCER_UNUSED = ("mtp.",)

# Hugging Face, llama.cpp: its gguf-py/gguf/tensor_mapping.py and conversion/qwen3vl.py. The second half is in a file
# of its own (mmproj), where a deepstack merger has the number of the block that it follows.
TEXT_ENCODER_LLAMA_CPP = KeyMap((
    ("model.language_model.embed_tokens.", "token_embd."),
    ("model.language_model.norm.", "output_norm."),
    ("lm_head.", "output."),
    ("model.language_model.layers.{i}.input_layernorm.", "blk.{i}.attn_norm."),
    ("model.language_model.layers.{i}.self_attn.q_proj.", "blk.{i}.attn_q."),
    ("model.language_model.layers.{i}.self_attn.k_proj.", "blk.{i}.attn_k."),
    ("model.language_model.layers.{i}.self_attn.v_proj.", "blk.{i}.attn_v."),
    ("model.language_model.layers.{i}.self_attn.o_proj.", "blk.{i}.attn_output."),
    ("model.language_model.layers.{i}.self_attn.q_norm.", "blk.{i}.attn_q_norm."),
    ("model.language_model.layers.{i}.self_attn.k_norm.", "blk.{i}.attn_k_norm."),
    ("model.language_model.layers.{i}.post_attention_layernorm.", "blk.{i}.ffn_norm."),
    ("model.language_model.layers.{i}.mlp.gate_proj.", "blk.{i}.ffn_gate."),
    ("model.language_model.layers.{i}.mlp.up_proj.", "blk.{i}.ffn_up."),
    ("model.language_model.layers.{i}.mlp.down_proj.", "blk.{i}.ffn_down."),
    ("model.visual.patch_embed.proj.", "v.patch_embd."),
    ("model.visual.pos_embed.", "v.position_embd."),
    ("model.visual.blocks.{i}.norm1.", "v.blk.{i}.ln1."),
    ("model.visual.blocks.{i}.attn.qkv.", "v.blk.{i}.attn_qkv."),
    ("model.visual.blocks.{i}.attn.proj.", "v.blk.{i}.attn_out."),
    ("model.visual.blocks.{i}.norm2.", "v.blk.{i}.ln2."),
    ("model.visual.blocks.{i}.mlp.linear_fc1.", "v.blk.{i}.ffn_up."),
    ("model.visual.blocks.{i}.mlp.linear_fc2.", "v.blk.{i}.ffn_down."),
    ("model.visual.merger.norm.", "v.post_ln."),
    ("model.visual.merger.linear_fc1.", "mm.0."),
    ("model.visual.merger.linear_fc2.", "mm.2."),
    ("model.visual.deepstack_merger_list.{i}.norm.", "v.deepstack.{i}.norm."),
    ("model.visual.deepstack_merger_list.{i}.linear_fc1.", "v.deepstack.{i}.fc1."),
    ("model.visual.deepstack_merger_list.{i}.linear_fc2.", "v.deepstack.{i}.fc2."),
))


def mlp_halves(name: str) -> tuple[str, ...]:
    """The parameters that stand with this one in a matrix of Comfy-Org's files, in the order of their rows."""
    half = next((half for half in SPLIT_MLP if half in name), None)
    return (name,) if half is None else tuple(name.replace(half, other) for other in SPLIT_MLP)


def fused_mlp(name: str) -> str:
    """The name in Comfy-Org's files of the matrix that holds this parameter."""
    return next((name.replace(half, FUSED_MLP) for half in SPLIT_MLP if half in name), name)
