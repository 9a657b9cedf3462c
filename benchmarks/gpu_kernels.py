"""The pack's own kernels on a graphics card, beside PyTorch's operations."""
import math
from functools import partial

import torch
from gpu_card import Card, Measurement, Setup, milliseconds
from torch import Tensor

from qwen_image_2.model.checkpoints import gguf
from qwen_image_2.model.runtime import kernels, vae_layers


def measure_gguf(setup: Setup, card: Card, device: torch.device) -> list[Measurement]:
    """An MLP's matrix decoded to bf16, by PyTorch's operations and by what the pack chooses here; the log says where a
    kernel did not stand its comparison."""
    from qwen_image_2.nodes.bridge.quant import gguf_ops
    rows, columns, found = 2 * setup.spec.mlp_dim, setup.spec.dim, []
    for type_name in gguf_ops.WITH_KERNEL:
        block = gguf.BLOCKS[type_name]
        blocks = rows * columns // block.values
        few, *settings = gguf_ops.few_blocks(torch.empty(0, device=device), type_name, torch.bfloat16)
        few = few.view(-1, block.bytes)
        packed = few.repeat(math.ceil(blocks / len(few)), 1)[:blocks].view(rows, -1)
        expected = gguf_ops.plain_decode(packed, *settings).float()
        moved = packed.nbytes + 2 * expected.numel()
        for form, way in (("PyTorch's operations", gguf_ops.plain_decode), ("the pack's choice", gguf_ops.decode)):
            error = ((way(packed, *settings).float() - expected).norm() / expected.norm()).item()
            found.append(Measurement(f"GGUF {type_name} of {rows:,} x {columns:,}, {form}", type_name, 0, 0, 1.0,
                                     *milliseconds(partial(way, packed, *settings), device),
                                     1000 * moved / card.memory, error=error))
    return found


def measure_kernels(setup: Setup, card: Card, device: torch.device) -> list[Measurement]:
    """SwiGLU of a step and a norm of the widest level of a decode, by PyTorch's operations and by the pack's choice."""
    tokens, rows = (setup.sides[-1] // 16) ** 2, max(1, setup.sides[-1] // 16)
    generator, found = torch.Generator(device).manual_seed(1), []

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).bfloat16()

    width = setup.vae.decoder_base_dim
    gate_up, level = random(1, tokens, 2 * setup.spec.mlp_dim), random(1, width, rows, setup.sides[-1])
    gamma = random(width, 1, 1)
    for what, plain, chosen, given, moved in (
            (f"SwiGLU of {tokens:,} tokens", kernels.plain_silu_product, kernels.silu_product, (gate_up,), 1.5),
            (f"norm and SiLU of {rows:,} rows", vae_layers.plain_normed_silu, vae_layers.normed_silu, (level, gamma),
             2)):
        expected = plain(*given).float()
        for form, way in (("PyTorch's operations", plain), ("the pack's choice", chosen)):
            error = ((way(*given).float() - expected).norm() / expected.norm()).item()
            found.append(Measurement(f"{what}, {form}", "bf16", 0, 0, 1.0,
                                     *milliseconds(partial(way, *given), device),
                                     1000 * moved * given[0].nbytes / card.memory, error=error))
    return found
