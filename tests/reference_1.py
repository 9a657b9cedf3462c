"""The numerical oracle of Qwen-Image 1.x: diffusers' pipelines with tiny random weights, fp32, on the CPU."""
import contextlib
import math
import sys
from pathlib import Path

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageLayeredPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from torch import nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from qwen_image_2.tests.reference import randomised, scheduler, vae_1
from qwen_image_2.tools import tiny

PIPELINES = {"t2i": QwenImagePipeline, "edit": QwenImageEditPipeline, "edit plus": QwenImageEditPlusPipeline}


def transformer(layers: int = 2, heads: int = 2, context: int = 64, zero_cond_t: bool = False, layered: bool = False,
                seed: int = 2) -> QwenImageTransformer2DModel:
    """Blocks of two heads of 128 channels: the published rotary axes at a tiny width."""
    return redrawn(QwenImageTransformer2DModel(
        num_layers=layers, num_attention_heads=heads, attention_head_dim=128, joint_attention_dim=context,
        zero_cond_t=zero_cond_t, use_additional_t_cond=layered, use_layer3d_rope=layered), seed)


def redrawn(module: nn.Module, seed: int) -> nn.Module:
    """Every parameter anew: one left at its default hides a missing addition or multiplication. Matrices and kernels at
    1 / sqrt(inputs), scales around 1, biases around 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.data = 0.2 * noise
        elif name.endswith("gamma") or parameter.ndim == 1:
            parameter.data = 1 + 0.2 * noise
        else:
            parameter.data = noise / math.sqrt(parameter[0].numel())
    return module.eval().requires_grad_(False)


def text_encoder(seed: int = 2, spatial_positions: bool = True) -> Qwen2_5_VLForConditionalGeneration:
    """spatial_positions: images have their positions on three axes, as the weights were trained. diffusers 0.42.1
    gives no mm_token_type_ids, and transformers 5 then counts an image's tokens like words."""
    encoder = randomised(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(
        text_config=tiny.TEXT_CONFIG_1, vision_config=tiny.VISION_CONFIG_1, image_token_id=151655,
        video_token_id=151656, vision_start_token_id=151652, vision_end_token_id=151653)), seed)
    if spatial_positions:
        encoder.register_forward_pre_hook(name_image_tokens, with_kwargs=True)
    return encoder


def name_image_tokens(encoder, arguments, named):
    """Which tokens are an image's."""
    if named.get("image_grid_thw") is None:
        return None
    return arguments, named | {"mm_token_type_ids": (named["input_ids"] == encoder.config.image_token_id).int()}


def pipelines(comfyui: Path, zero_cond_t: bool = False, lightning: bool = False) -> dict:
    """Kind -> the whole pipeline. All have the same weights, however they are used."""
    parts = dict(text_encoder=text_encoder(), vae=vae_1(), transformer=transformer(zero_cond_t=zero_cond_t),
                 scheduler=lightning_scheduler() if lightning else scheduler())
    made = {kind: assembled(kind, comfyui, **parts) for kind in PIPELINES}
    for pipeline in made.values():
        pipeline.set_progress_bar_config(disable=True)
    return made


def lightning_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """As the scripts of the few-step LoRAs set it (lightx2v): a shift of 3 at every size, without a stretch."""
    return FlowMatchEulerDiscreteScheduler.from_config(
        scheduler().config, base_shift=math.log(3), max_shift=math.log(3), shift_terminal=None)


@contextlib.contextmanager
def small_references(side: int):
    """Inside, the VAE sees references of about side x side pixels instead of 1024 x 1024, and so the model itself:
    4,096 tokens each are too many for a test. The text encoder of the first edit model sees the same."""
    first, plus = (sys.modules[PIPELINES[kind].__module__] for kind in ("edit", "edit plus"))
    rule, published = first.calculate_dimensions, plus.VAE_IMAGE_SIZE
    first.calculate_dimensions, plus.VAE_IMAGE_SIZE = lambda area, ratio: rule(side * side, ratio), side * side
    try:
        yield
    finally:
        first.calculate_dimensions, plus.VAE_IMAGE_SIZE = rule, published


def prompt_pipelines(comfyui: Path, encoder: Qwen2_5_VLForConditionalGeneration) -> dict:
    """Kind -> a pipeline that has what encode_prompt needs, and nothing else."""
    return {kind: assembled(kind, comfyui, text_encoder=encoder, vae=None, transformer=None, scheduler=None)
            for kind in PIPELINES}


def assembled(kind: str, comfyui: Path, **parts):
    tokenizer, processor = readers(comfyui)
    more = {} if kind == "t2i" else {"processor": processor}
    return PIPELINES[kind](tokenizer=tokenizer, **more, **parts)


def readers(comfyui: Path) -> tuple[Qwen2TokenizerFast, Qwen2VLProcessor]:
    """What turns prompts, and prompts with pictures, into tokens."""
    tokenizer = Qwen2TokenizerFast.from_pretrained(comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer")
    return tokenizer, Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 12845056}),
        tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor(), chat_template="{{ messages }}")


def layered_pipeline(comfyui: Path) -> QwenImageLayeredPipeline:
    """Qwen-Image-Layered, whole. Its scheduler's settings are taken for the base model's."""
    tokenizer, processor = readers(comfyui)
    pipeline = QwenImageLayeredPipeline(
        transformer=transformer(layered=True), vae=vae_1(4), text_encoder=text_encoder(), tokenizer=tokenizer,
        processor=processor, scheduler=scheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextlib.contextmanager
def area_of(pipeline: QwenImageLayeredPipeline, side: int):
    """Inside, pictures are resized to the area of this square, where the pipeline knows 640 and 1024."""
    module = sys.modules[type(pipeline).__module__]
    published = module.calculate_dimensions
    module.calculate_dimensions = lambda area, ratio: published(side * side, ratio)
    try:
        yield
    finally:
        module.calculate_dimensions = published


@contextlib.contextmanager
def longer_than_cut(pipeline):
    """Inside, the tokenizer cuts no prompt."""
    before = pipeline.tokenizer_max_length
    pipeline.tokenizer_max_length = sys.maxsize // 2
    try:
        yield
    finally:
        pipeline.tokenizer_max_length = before
