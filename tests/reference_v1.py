"""The numerical oracle of Qwen-Image 1.x: diffusers' pipelines with tiny random weights, fp32, on the CPU."""
import math

import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn


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
