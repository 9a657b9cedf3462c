"""The numerical oracle: diffusers' Qwen-Image 2.1 pipeline with tiny random weights, fp32, on the CPU."""
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from transformers import (
    Qwen2TokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from qwen_image_2.tools import tiny

# The pipeline counts the tokens of the system turn with it.
CHAT_TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
                 "{% for c in m['content'] %}{{ c['text'] }}{% endfor %}<|im_end|>\n{% endfor %}")


def transformer(causal_condition: bool = True, seed: int = 0, layers: int = 2) -> QwenImage21Transformer2DModel:
    """Blocks of two heads of 128 channels: the published rotary axes at a tiny width."""
    model = QwenImage21Transformer2DModel(num_layers=layers, num_attention_heads=2, attention_head_dim=128,
                                          context_in_dim=64, causal_condition=causal_condition)
    return randomised(model, seed)


def vae(seed: int = 1) -> AutoencoderKLQwenImage21:
    return randomised(AutoencoderKLQwenImage21(base_dim=8, decoder_base_dim=12), seed)


def vae_1(pixel_channels: int = 3, seed: int = 1) -> AutoencoderKLQwenImage:
    """That of Qwen-Image 1.x; with 4 channels Qwen-Image-Layered's."""
    return randomised(AutoencoderKLQwenImage(base_dim=8, input_channels=pixel_channels), seed)


def text_encoder(seed: int = 2) -> Qwen3VLForConditionalGeneration:
    config = Qwen3VLConfig(text_config=tiny.TEXT_CONFIG, vision_config=tiny.VISION_CONFIG, image_token_id=151655,
                           video_token_id=151656, vision_start_token_id=151652, vision_end_token_id=151653)
    return randomised(Qwen3VLForConditionalGeneration(config), seed)


def randomised(model, seed: int):
    model.load_state_dict(tiny.randomise(model.state_dict(), seed))
    return model.eval().requires_grad_(False)


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """scheduler_config.json of Qwen-Image-2.1."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type="exponential", base_shift=0.5, max_shift=0.9,
        base_image_seq_len=256, max_image_seq_len=8192, shift_terminal=0.02)


def build(comfyui: Path) -> QwenImage21Pipeline:
    tokenizer = Qwen2TokenizerFast.from_pretrained(comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer")
    # The area floor must lie below the test images, else slot count and latents disagree.
    images = Qwen2VLImageProcessor(patch_size=16, merge_size=2, temporal_patch_size=2, image_mean=[0.5] * 3,
                                   image_std=[0.5] * 3, size={"shortest_edge": 32 * 32, "longest_edge": 16777216})
    processor = Qwen3VLProcessor(image_processor=images, tokenizer=tokenizer,
                                 video_processor=Qwen3VLVideoProcessor(), chat_template=CHAT_TEMPLATE)
    pipeline = QwenImage21Pipeline(scheduler=scheduler(), vae=vae(), text_encoder=text_encoder(),
                                   processor=processor, transformer=transformer())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference, as a fraction of the expected tensor's largest value."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return ((found - expected).abs().max() / expected.abs().max()).item()
