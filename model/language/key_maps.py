"""The names that a language model's weights carry: those of the Hugging Face checkpoint, ComfyUI's and llama.cpp's."""
from ..checkpoints.rename import KeyMap

# Hugging Face, ComfyUI's modules
COMFY = KeyMap((
    ("lm_head.", "model.lm_head."),
    ("model.language_model.", "model."),
    ("model.visual.", "visual."),
))
# A second head of the prompt enhancers' base model, which guesses several tokens at once.
ENHANCER_UNUSED = ("mtp.",)

# As ComfyUI's file of Qwen2.5-VL has them, by its modules' names: those of older Hugging Face checkpoints.
SAVED_QWEN2_5 = KeyMap((("lm_head.", "model.lm_head."),))

# Hugging Face, llama.cpp: its gguf-py/gguf/tensor_mapping.py, conversion/qwen3vl.py and conversion/qwenvl.py. The
# vision tower is in a file of its own (mmproj).
_LANGUAGE = (
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
)
_VISION = (
    ("model.visual.patch_embed.proj.", "v.patch_embd."),
    ("model.visual.blocks.{i}.norm1.", "v.blk.{i}.ln1."),
    ("model.visual.blocks.{i}.attn.qkv.", "v.blk.{i}.attn_qkv."),
    ("model.visual.blocks.{i}.attn.proj.", "v.blk.{i}.attn_out."),
    ("model.visual.blocks.{i}.norm2.", "v.blk.{i}.ln2."),
)
# Qwen3-VL. A deepstack merger has the number of the block that it follows.
LLAMA_CPP = KeyMap((
    *_LANGUAGE,
    *_VISION,
    ("model.visual.pos_embed.", "v.position_embd."),
    ("model.visual.blocks.{i}.mlp.linear_fc1.", "v.blk.{i}.ffn_up."),
    ("model.visual.blocks.{i}.mlp.linear_fc2.", "v.blk.{i}.ffn_down."),
    ("model.visual.merger.norm.", "v.post_ln."),
    ("model.visual.merger.linear_fc1.", "mm.0."),
    ("model.visual.merger.linear_fc2.", "mm.2."),
    ("model.visual.deepstack_merger_list.{i}.norm.", "v.deepstack.{i}.norm."),
    ("model.visual.deepstack_merger_list.{i}.linear_fc1.", "v.deepstack.{i}.fc1."),
    ("model.visual.deepstack_merger_list.{i}.linear_fc2.", "v.deepstack.{i}.fc2."),
))
# Qwen2.5-VL. Most files have attn_q, attn_k and attn_v instead of attn_qkv: see llama_cpp.py.
LLAMA_CPP_QWEN2_5 = KeyMap((
    *_LANGUAGE,
    *_VISION,
    ("model.visual.blocks.{i}.mlp.gate_proj.", "v.blk.{i}.ffn_gate."),
    ("model.visual.blocks.{i}.mlp.up_proj.", "v.blk.{i}.ffn_up."),
    ("model.visual.blocks.{i}.mlp.down_proj.", "v.blk.{i}.ffn_down."),
    ("model.visual.merger.ln_q.", "v.post_ln."),
    ("model.visual.merger.ln_q.", "merger.ln_q."),  # its name in newer files
    ("model.visual.merger.mlp.0.", "mm.0."),
    ("model.visual.merger.mlp.2.", "mm.2."),
))
