"""Which attention computes: ComfyUI's choice, or on NVIDIA's cards for servers cuDNN's."""
import inspect
from collections.abc import Callable

import comfy.ldm.modules.attention
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ....messages import Message
from ....model.runtime import kernels as plain

# Where a model's node may name a function of its own (core's wrap_attn reads it).
OVERRIDE_KEY = "optimized_attention_override"
# Compute capabilities (major) on which cuDNN's attention is faster than the FlashAttention 2 that PyTorch brings, which
# ComfyUI puts first: 9, H100 (pytorch#142132: 631 against 329 TFLOP/s at 4,608 tokens; transformers#48163: 1.7 to 2.3
# times), 10, B200 (sglang#33655). Slower on 8.0, disputed on 8.9.
CUDNN_CAPABILITIES = (9, 10)
# From so many keys on: cuDNN makes a plan for each new pair of lengths. Unmeasured; `bench gpu` prints the crossover.
CUDNN_MIN_KEYS = 4096
CUDNN_FIRST = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
CAN_ORDER = "set_priority" in inspect.signature(sdpa_kernel).parameters  # PyTorch 2.6 and newer

NAMES = {"attention_pytorch": "PyTorch", "attention_xformers": "xFormers", "attention_sage": "SageAttention",
         "attention_flash": "FlashAttention", "attention_split": "split attention",
         "attention_sub_quad": "sub-quadratic attention", "attention3_sage": "SageAttention 3"}


def attention_for(transformer_options: dict) -> Callable[..., Tensor]:
    """The attention that ComfyUI was started with (xformers, flash, sage), or that a node overrides. Where nobody chose
    one, PyTorch's, in the order that is right for the card."""
    core = comfy.ldm.modules.attention

    def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, visible: Tensor | None = None) -> Tensor:
        heads = q.shape[2]
        if visible is not None:  # not every function of core's takes a mask; this one does, and it is a sum
            mask = torch.zeros(visible.shape, dtype=q.dtype, device=q.device).masked_fill_(~visible, -torch.inf)
            return core.optimized_attention_masked(q.flatten(2), k.flatten(2), v.flatten(2), heads, mask[:, None],
                                                   transformer_options=transformer_options)
        if causal:  # only the prompt's own tokens, once: ComfyUI's functions take no causal flag
            return plain.attention(q, k, v, causal=True)
        if takes_cudnn(q, k.shape[1], transformer_options):
            return cudnn_attention(q, k, v)
        return core.optimized_attention(
            q.flatten(2), k.flatten(2), v.flatten(2), heads, transformer_options=transformer_options)
    return attention


def takes_cudnn(q: Tensor, keys: int, transformer_options: dict) -> bool:
    """Whether cuDNN's attention goes first for these queries (B, Q, H, C)."""
    return (q.device.type == "cuda" and keys >= CUDNN_MIN_KEYS and q.dtype in (torch.bfloat16, torch.float16)
            and is_left_to_us(transformer_options) and cudnn_is_faster(q.device))


def is_left_to_us(transformer_options: dict) -> bool:
    """Whether neither a launch flag nor a node has chosen an attention."""
    chosen = comfy.ldm.modules.attention.optimized_attention
    return chosen is comfy.ldm.modules.attention.attention_pytorch and OVERRIDE_KEY not in transformer_options


def cudnn_is_faster(device: torch.device) -> bool:
    return (CAN_ORDER and torch.version.hip is None
            and torch.cuda.get_device_capability(device)[0] in CUDNN_CAPABILITIES)


def cudnn_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of q (B, Q, H, C) over k, v (B, K, H, C) -> (B, Q, H * C), by the first that can."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    with sdpa_kernel(CUDNN_FIRST, set_priority=True):
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


def in_words(device: torch.device, transformer_options: dict) -> str | None:
    """Which attention a run on this device takes; None on a CPU, which has but one."""
    if device.type == "cpu":
        return None
    if OVERRIDE_KEY in transformer_options:
        return Message("attention_override", "Attention: chosen by another node.")
    if is_left_to_us(transformer_options) and device.type == "cuda" and cudnn_is_faster(device):
        return Message("attention_cudnn", "Attention: PyTorch, cuDNN first from {keys} tokens on.",
                       keys=f"{CUDNN_MIN_KEYS:,}")
    name = comfy.ldm.modules.attention.optimized_attention.__name__
    return Message("attention_chosen", "Attention: {name}.", name=NAMES.get(name, name))
