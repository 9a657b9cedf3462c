"""Blocks of a transformer in turn, whose weights ComfyUI's dynamic VRAM brings one block ahead.

Left to itself it looks one weight ahead: while a small one computes, too little time passes to bring the next large
one. Its own models ask for whole blocks in this way.
"""
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from comfy import model_prefetch
from torch import nn

Block = TypeVar("Block", bound=nn.Module)


def in_turn(device: torch.device, transformer_options: dict) -> Callable[[Iterable[Block]], Iterator[Block]]:
    """A function of a pass's blocks that gives them one after the other, for a pass on this device. ComfyUI says in
    the options whether it places the weights, and knows whether the device can copy beside its computing."""
    def blocks_in_turn(blocks: Iterable[Block]) -> Iterator[Block]:
        blocks = list(blocks)
        queue = None if torch.compiler.is_compiling() else model_prefetch.make_prefetch_queue(
            list(blocks), device, transformer_options)
        return iter(blocks) if queue is None else _prefetched(blocks, queue, device)
    return blocks_in_turn


def _prefetched(blocks: list[Block], queue: list, device: torch.device) -> Iterator[Block]:
    for block in blocks:
        model_prefetch.prefetch_queue_pop(queue, device, block)
        yield block
    model_prefetch.prefetch_queue_pop(queue, device, None)  # the last block's buffers


def forget() -> None:
    """After a pass that broke off: what was under way. ComfyUI does the same after every node."""
    model_prefetch.cleanup_prefetch_queues()
