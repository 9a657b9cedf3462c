"""What a checkpoint file is, by the names of its tensors: also those of other models, to say what a file is instead."""
from collections.abc import Callable

from ...messages import Message
from .checkpoint import Tensors


def _has(*parts: str) -> Callable[[Tensors], bool]:
    return lambda tensors: all(any(part in name for name in tensors) for part in parts)


def _text_only(tensors: Tensors) -> bool:
    return _has("layers.0.self_attn.q_norm.weight")(tensors) and not _has("visual.")(tensors)


is_text_encoder = _has("visual.deepstack_merger_list.0", "self_attn.q_norm.weight")

# Tested in order; the marks are names that nothing else in circulation has.
KNOWN_FILES: tuple[tuple[Message, Callable[[Tensors], bool]], ...] = (
    (Message("known_lora", "a LoRA (load it with a LoRA loader, after this node)"),
     lambda t: any(mark in name for name in t for mark in (".lora_A.", ".lora_down.", ".lora_up.", ".lokr_w1"))),
    (Message("known_transformer", "the transformer of Qwen-Image 2.x"),
     _has("txt_in.text_norm.weight", "modulation.1.weight")),
    (Message("known_control_2", "the control network of Qwen-Image-2.1 (load it with Load Control (Qwen-Image 2))"),
     _has("control_img_in.weight", "control_blocks.0.img_mlp.out.weight")),
    (Message("known_controlnet_1", "a ControlNet of Qwen-Image 1.x (put it into models/controlnet and load it with "
             "ComfyUI's Load ControlNet Model)"),
     lambda t: any(mark in name for name in t for mark in ("controlnet_x_embedder.weight", "control_img_in.weight"))),
    (Message("known_model_patch_1", "a model patch of Qwen-Image 1.x (put it into models/model_patches and load it "
             "with ComfyUI's Load Model Patch)"), _has("controlnet_blocks.0.y_rms.weight")),
    (Message("known_qwen_image_1", "the transformer of Qwen-Image 1.x"), _has("transformer_blocks.0.img_mod.1.")),
    (Message("known_flux_diffusers", "a Flux model in diffusers format"),
     _has("transformer_blocks.0.attn.add_q_proj.weight", "single_transformer_blocks.0.")),
    (Message("known_sd3_diffusers", "a Stable Diffusion 3 model in diffusers format"),
     _has("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight")),
    (Message("known_enhancer",
             "a prompt-enhancer language model (Qwen3.5), which as a text encoder would give pure noise"),
     _has(".linear_attn.")),
    (Message("known_qwen2_5_vl", "a Qwen2.5-VL text encoder, which belongs to Qwen-Image 1.x"),
     _has("visual.blocks.0.mlp.gate_proj")),
    (Message("known_qwen3_vl", "a Qwen3-VL text encoder"), is_text_encoder),
    (Message("known_text_only", "a text-only language model without a vision tower"), _text_only),
    (Message("known_projector", "the vision projector of a language model"), _has("v.patch_embd.weight")),
    (Message("known_llama_cpp", "a language model in llama.cpp format"),
     _has("token_embd.weight", "blk.0.attn_norm.weight")),
    (Message("known_flux", "a Flux model"), _has("double_blocks.0.img_attn")),
    (Message("known_sd_controlnet", "a ControlNet of Stable Diffusion or SDXL"),
     lambda t: any(mark in name for name in t for mark in ("input_hint_block.0.", "controlnet_cond_embedding."))),
    (Message("known_sd_checkpoint", "a Stable Diffusion or SDXL checkpoint"), _has("input_blocks.0.0.weight")),
    (Message("known_sd_diffusers", "a Stable Diffusion or SDXL model in diffusers format"),
     _has("down_blocks.0.attentions", "time_embedding")),
    (Message("known_wan_vae", "a VAE with Wan key names"), _has("decoder.middle.0.residual.0.gamma")),
    (Message("known_diffusers_vae", "a VAE with diffusers key names"), _has("decoder.mid_block.resnets.0.norm1")),
    (Message("known_sd_vae", "a Stable Diffusion VAE"), _has("decoder.mid.block_1.norm1")),
)


def describe(tensors: Tensors) -> Message:
    """What a file is, in words that can follow 'is'."""
    for words, matches in KNOWN_FILES:
        if matches(tensors):
            return words
    if not tensors:
        return Message("file_empty", "empty")
    return Message("file_unknown", "of an unknown kind ({count} tensors: {some}, ...)", count=len(tensors),
                   some=sorted(tensors)[:2])
