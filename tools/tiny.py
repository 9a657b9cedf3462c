"""Tiny random checkpoints in the forms of the official files: they load and sample like the real ones, into noise.

    python -m tools.tiny FOLDER    # writes FOLDER/{diffusion_models,text_encoders,vae,model_patches}/*.safetensors

File names are the official ones, so that every shipped workflow runs on them, those of Qwen-Image 1.x included.
"""
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch

from qwen_image_2 import atomic
from qwen_image_2.model.language.key_maps import COMFY, SAVED_QWEN2_5
from qwen_image_2.model.qwen_image_1 import key_maps as key_maps_1
from qwen_image_2.model.qwen_image_1.detect import TAPS, ZERO_COND_MARK
from qwen_image_2.model.qwen_image_1.spec import TransformerSpec as TransformerSpec1
from qwen_image_2.model.qwen_image_1.spec import VAESpec as VAESpec1
from qwen_image_2.model.qwen_image_1.transformer import Transformer as Transformer1
from qwen_image_2.model.qwen_image_1.vae import VAE as VAE1
from qwen_image_2.model.qwen_image_2 import key_maps
from qwen_image_2.model.qwen_image_2.control import Control
from qwen_image_2.model.qwen_image_2.spec import ControlSpec, TransformerSpec, VAESpec
from qwen_image_2.model.qwen_image_2.transformer import Transformer
from qwen_image_2.model.qwen_image_2.vae import VAE

TRANSFORMER = "qwen_image_2.1_bf16.safetensors"
TURBO = "qwen_image_2.1_turbo_bf16.safetensors"
TEXT_ENCODER = "qwen3vl_8b_bf16.safetensors"
VAE_FILE = "qwen_image_2.1_vae_bf16.safetensors"
ENHANCER = "qwen3.5_9b_qwen_image_2.1_pe_t2i.int8_convrot.safetensors"
PRUNA = "p_q_image_2.1_8_steps_v0.1_comfyui_bf16.safetensors"
CONTROL = "Qwen-Image-2.1-Fun-Controlnet-Union.safetensors"
# Qwen-Image 1.x
TRANSFORMER_1 = "qwen_image_2512_bf16.safetensors"
EDIT_1 = "qwen_image_edit_2511_bf16.safetensors"
TEXT_ENCODER_1 = "qwen_2.5_vl_7b.safetensors"
VAE_1 = "qwen_image_vae.safetensors"
LAYERED_1, LAYERED_VAE_1 = "qwen_image_layered_bf16.safetensors", "qwen_image_layered_vae.safetensors"
LIGHTNING_1 = "Qwen-Image-2512-Lightning-4steps-V1.0-bf16.safetensors"
LORA_RANK = 4

TRANSFORMER_SPEC = TransformerSpec(layers=2, dim=128, heads=4, head_dim=32, mlp_dim=384, context_dim=64,
                                   rope_axes=(4, 14, 14))
VAE_SPEC = VAESpec(base_dim=8, decoder_base_dim=12)
TRANSFORMER_SPEC_1 = TransformerSpec1(layers=2, dim=128, heads=4, head_dim=32, mlp_dim=512, context_dim=64,
                                      rope_axes=(4, 14, 14))
VAE_SPEC_1 = VAESpec1(base_dim=8)
TEXT_CONFIG = dict(vocab_size=151936, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
                   num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=4096,
                   rope_parameters={"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default",
                                    "rope_theta": 5000000.0})
VISION_CONFIG = dict(depth=3, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=64,
                     deepstack_visual_indexes=[0, 1], patch_size=16, spatial_merge_size=2, temporal_patch_size=2,
                     num_position_embeddings=2304)
# Qwen2.5-VL, whose second block alone sees the whole image. Its vocabulary as far as there are tokens.
TEXT_CONFIG_1 = dict(vocab_size=151680, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
                     num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, rms_norm_eps=1e-6,
                     rope_parameters={"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 3, 3]})
VISION_CONFIG_1 = dict(depth=3, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64,
                       fullatt_block_indexes=[1])
# Qwen3.5: its vocabulary as far as there are tokens, which tokenizers can then all decode.
ENHANCER_TEXT_CONFIG = dict(vocab_size=248077, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
                            num_attention_heads=4, num_key_value_heads=2, head_dim=32, linear_num_key_heads=2,
                            linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16,
                            layer_types=["linear_attention"] * 3 + ["full_attention"],
                            rope_parameters={"mrope_interleaved": True, "mrope_section": [2, 1, 1],
                                             "rope_type": "default", "rope_theta": 10000000.0,
                                             "partial_rotary_factor": 0.25})
ENHANCER_VISION_CONFIG = dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=64,
                              patch_size=16, spatial_merge_size=2, temporal_patch_size=2,
                              num_position_embeddings=2304)

State = dict[str, torch.Tensor]


def randomise(state: State, seed: int) -> State:
    """Every value drawn afresh: matrices at 1/sqrt(fan-in), scales about 1, biases and centred scales about 0.

    A norm left at its default would hide that nobody loads it.
    """
    generator = torch.Generator().manual_seed(seed)
    return {name: drawn(name, value.shape, generator) for name, value in state.items()}


def drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """One of them, on the generator's device."""
    values = torch.randn(shape, generator=generator, device=generator.device)
    if values.numel() > max(shape, default=1):
        return values / values[0].numel() ** 0.5
    return 0.2 * values + (0 if name.endswith("bias") or "text_norm" in name else 1)


def shapes(module: torch.nn.Module) -> State:
    return module.to("meta").state_dict()


def to_comfy_transformer(state: State) -> State:
    """diffusers names -> Comfy-Org's single file and the pack's own: gate and projection fused, gate rows first."""
    gate, projection = key_maps.SPLIT_MLP
    out = {}
    for name, value in state.items():
        if gate in name:
            out[name.replace(gate, key_maps.FUSED_MLP)] = torch.cat([value, state[name.replace(gate, projection)]])
        elif projection not in name:
            out[name] = value
    return out


def to_diffusers_transformer(state: State) -> State:
    """The inverse; gate and projection are views of the matrix's rows."""
    return {name: rows for whole, value in state.items()
            for names in [key_maps.rows_of(whole)] for name, rows in zip(names, value.chunk(len(names)), strict=True)}


def to_wan_vae(state: State) -> State:
    """diffusers names and 4-D convolutions -> Wan names, causal convolutions 5-D with one temporal tap."""
    out = {}
    for name, value in state.items():
        causal = value.ndim == 4 and "resample.1" not in name and "attentions" not in name
        out[key_maps.VAE_WAN.to(name)] = value.unsqueeze(2) if causal and name.endswith("weight") else value
    return out


def to_comfy_text_encoder_1(state: State) -> State:
    """Hugging Face names -> those of ComfyUI's file of Qwen2.5-VL."""
    return {SAVED_QWEN2_5.back(COMFY.to(name)): value for name, value in state.items()}


def to_wan_vae_1(state: State) -> State:
    """diffusers names of the VAE of Qwen-Image 1.x -> Wan 2.1's."""
    return {key_maps_1.VAE_WAN.to(name): value for name, value in state.items()}


def vae_1_state(spec: VAESpec1 = VAE_SPEC_1) -> State:
    """Names and shapes of a file of that VAE: our network's, and what only a video needs, the other taps of kernels and
    whole layers."""
    state = {}
    for name, value in shapes(VAE1(spec)).items():
        of_video = not any(part in name for part in ("resample.1.", "attentions."))
        if of_video and value.ndim == 4:
            taps = TAPS if value.shape[-1] > 1 else 1  # a kernel of one pixel is one of one frame
            value = value.unsqueeze(2).expand(-1, -1, taps, -1, -1)
        state[name] = value.unsqueeze(-1) if of_video and value.ndim == 3 else value  # a norm's
    for layer, width, outputs in (("encoder.down_blocks.5", 2, 2), ("encoder.down_blocks.8", 4, 4),
                                  ("decoder.up_blocks.0.upsamplers.0", 4, 8),
                                  ("decoder.up_blocks.1.upsamplers.0", 4, 8)):
        rows, columns = outputs * spec.base_dim, width * spec.base_dim
        state[f"{layer}.time_conv.weight"] = torch.empty(rows, columns, TAPS, 1, 1, device="meta")
        state[f"{layer}.time_conv.bias"] = torch.empty(rows, device="meta")
    return state


def whole_1(transformer: State, text_encoder: State, vae: State) -> State:
    """The three states, with diffusers' and Hugging Face's names, in one checkpoint as Rapid-AIO names its parts."""
    parts = {"model.diffusion_model.": transformer, "vae.": to_wan_vae_1(vae),
             "text_encoders.qwen25_7b.transformer.": to_comfy_text_encoder_1(text_encoder)}
    return {prefix + name: value for prefix, state in parts.items() for name, value in state.items()}


def quantized(chosen: Callable[[str], bool], state: State, algorithm: str, settings: dict,
              arguments: dict) -> tuple[State, State]:
    """A state with its chosen matrices as ComfyUI's tools store them, and the same with them dequantized.

    algorithm: ComfyUI's name of the format; settings: what its mark says beside that; arguments: of its quantiser.
    """
    from comfy import quant_ops
    layout = quant_ops.QUANT_ALGOS[algorithm]["comfy_tensor_layout"]
    stored, rounded = dict(state), dict(state)
    for key, value in state.items():
        if chosen(key) and value.ndim == 2:
            made = quant_ops.QuantizedTensor.from_float(value.float(), layout, **arguments)
            del stored[key]
            stored |= made.state_dict(key)
            stored[key.removesuffix("weight") + "comfy_quant"] = mark(format=algorithm, **settings)
            rounded[key] = made.dequantize()
    return stored, rounded


def mark(**settings) -> torch.Tensor:
    """What stands beside a quantized matrix."""
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def save_as_they_are(state: State, path: Path, metadata: dict[str, str] | None = None) -> None:
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    safetensors.torch.save_file(tensors, path, metadata)  # which refuses views of one tensor


def text_encoder_state() -> State:
    """Names and shapes of Qwen3-VL at a tiny size, from transformers."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
    with torch.device("meta"):
        return Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(text_config=TEXT_CONFIG, vision_config=VISION_CONFIG)).state_dict()


def text_encoder_1_state() -> State:
    """Names and shapes of Qwen2.5-VL at a tiny size, from transformers."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=TEXT_CONFIG_1, vision_config=VISION_CONFIG_1)).state_dict()


def enhancer_state() -> State:
    """Names and shapes of Qwen3.5 at a tiny size, from transformers."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration
    with torch.device("meta"):
        return Qwen3_5ForConditionalGeneration(
            Qwen3_5Config(text_config=ENHANCER_TEXT_CONFIG, vision_config=ENHANCER_VISION_CONFIG)).state_dict()


def scripted(state: State, tokens: list[int]) -> State:
    """A language model that says these tokens, each only once, after the first of them: its layers add nothing, and
    the output matrix knows each token's successor."""
    embedding, head = "model.language_model.embed_tokens.weight", "lm_head.weight"
    if len(set(tokens)) < len(tokens) or len(tokens) > state[embedding].shape[1]:
        raise ValueError(f"{len(tokens)} tokens, {len(set(tokens))} of them different, do not fit a script of "
                         f"{state[embedding].shape[1]} channels.")
    silent = (".o_proj.weight", ".out_proj.weight", ".down_proj.weight", "language_model.norm.weight", embedding, head)
    out = {name: torch.zeros_like(value) if name.endswith(silent) else value for name, value in state.items()}
    for channel, (token, successor) in enumerate(itertools.pairwise(tokens)):
        out[embedding][token, channel] = 1
        out[head][successor, channel] = 100
    return out


def save(state: State, path: Path, config: dict, dtype=torch.bfloat16) -> None:
    tensors = {name: value.to(dtype, copy=True).contiguous() for name, value in state.items()}
    atomic.write_bytes(path, safetensors.torch.save(tensors, {"format": "pt", "config": json.dumps(config)}))


def write(folder: Path) -> None:
    """Write one checkpoint of every part below `folder`, as ComfyUI's model folders are called."""
    transformer = to_comfy_transformer(randomise(shapes(Transformer(TRANSFORMER_SPEC)), 1))
    config = {"axes_dims_rope": TRANSFORMER_SPEC.rope_axes}
    for name in (TRANSFORMER, TURBO):
        save(transformer, folder / "diffusion_models" / name, config)
    save(to_wan_vae(randomise(shapes(VAE(VAE_SPEC)), 2)), folder / "vae" / VAE_FILE, {})
    save(randomise(text_encoder_state(), 3), folder / "text_encoders" / TEXT_ENCODER,
         {"text_config": TEXT_CONFIG, "vision_config": VISION_CONFIG})
    save(few_step_state(transformer, "diffusion_model."), folder / "loras" / PRUNA, {})
    write_control(folder / "model_patches" / CONTROL, ControlSpec(TRANSFORMER_SPEC, blocks=1))


def write_control(path: Path, spec: ControlSpec, dtype=torch.bfloat16) -> None:
    """A control network with the names of the published file, for a transformer of these sizes."""
    save(to_diffusers_transformer(randomise(shapes(Control(spec)), 9)), path, {}, dtype)


def few_step_state(transformer: State, prefix: str = "") -> State:
    """The form of few-step LoRAs: each matrix of a block but those of modulation, with its alpha. prefix: of the names,
    none in Lightning's for 1.x."""
    generator, out = torch.Generator().manual_seed(8), {}
    for name, value in transformer.items():
        if name.startswith("transformer_blocks.") and value.ndim == 2 and "_mod." not in name:
            layer, (rows, columns) = prefix + name.removesuffix(".weight"), value.shape
            out[f"{layer}.lora_down.weight"] = torch.randn(LORA_RANK, columns, generator=generator) / columns**0.5
            out[f"{layer}.lora_up.weight"] = torch.randn(rows, LORA_RANK, generator=generator) / 4
            out[f"{layer}.alpha"] = torch.tensor(float(LORA_RANK))
    return out


def write_1(folder: Path) -> None:
    """The same of Qwen-Image 1.x: models that draw, edit and make layers, what belongs to them, and a few-step LoRA."""
    transformer = randomise(shapes(Transformer1(TRANSFORMER_SPEC_1)), 5)
    save(transformer, folder / "diffusion_models" / TRANSFORMER_1, {})
    save(transformer | {ZERO_COND_MARK: torch.empty(0)}, folder / "diffusion_models" / EDIT_1, {})
    save(to_wan_vae_1(randomise(vae_1_state(), 6)), folder / "vae" / VAE_1, {})
    layered = replace(TRANSFORMER_SPEC_1, layered=True)
    save(randomise(shapes(Transformer1(layered)), 8), folder / "diffusion_models" / LAYERED_1, {})
    rgba = randomise(vae_1_state(replace(VAE_SPEC_1, pixel_channels=4)), 9)
    save(to_wan_vae_1(rgba), folder / "vae" / LAYERED_VAE_1, {})
    save(to_comfy_text_encoder_1(randomise(text_encoder_1_state(), 7)), folder / "text_encoders" / TEXT_ENCODER_1,
         {"text_config": TEXT_CONFIG_1, "vision_config": VISION_CONFIG_1})
    save(few_step_state(transformer), folder / "loras" / LIGHTNING_1, {})


def write_enhancer(path: Path, tokens: list[int] | None = None, dtype=torch.bfloat16) -> None:
    """A prompt enhancer: random, or one that says these tokens."""
    state = randomise(enhancer_state(), 4)
    save(state if tokens is None else scripted(state, tokens), path,
         {"text_config": ENHANCER_TEXT_CONFIG, "vision_config": ENHANCER_VISION_CONFIG}, dtype)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    write_1(Path(sys.argv[1]))
