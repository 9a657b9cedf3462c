"""Where the keys and values of a prefix are kept: beside the model, in RAM, or nowhere.

At the published sizes they take 512 KiB per token in bf16, so four references of 1024 x 1024 take 8 GiB.
"""
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial

import comfy.model_management
import torch
from torch import Tensor

from ....messages import Message
from ....model.qwen_image_2.prefix_cache import PrefixCache, RecomputedPrefix
from ....model.qwen_image_2.prefix_prefetch import PrefetchedPrefix
from ....model.runtime.offload import transfer_for

log = logging.getLogger(__name__)

RAM_MARGIN = 2 * 2**30  # left to the system

# Starts a pass over the prefix: keys and values block by block, each (P, T, H, C), see Transformer.prefix_layers.
StartPass = Callable[[], Iterator[tuple[Tensor, Tensor]]]


class CacheLocation(Enum):
    """The value is what the user reads."""

    VRAM = Message("cache_in_vram", "in VRAM")
    RAM = Message("cache_in_ram", "in system RAM")
    RECOMPUTE = Message("cache_recomputed", "recomputed every step")


INSTEAD = {CacheLocation.RAM: Message("cache_in_ram_instead", "in system RAM, because VRAM has no room for it"),
           CacheLocation.RECOMPUTE: Message("cache_recomputed_instead", "recomputed every step, because neither VRAM "
                                            "nor system RAM has room for it")}


def in_words(cache: PrefixCache, location: CacheLocation, first: CacheLocation, tokens: int, size: int,
             device: torch.device) -> Iterator[Message]:
    """Where so many tokens' keys and values of `size` bytes are kept; first: the place that was asked for."""
    where = location.value if location is first else INSTEAD.get(location, location.value)
    if location is CacheLocation.VRAM and device.type == "cpu":  # whose memory is system RAM
        where = CacheLocation.RAM.value
    yield Message("cache_size", "KV cache of prompt and references: {tokens} tokens, {size} MiB, {place}.",
                  tokens=f"{tokens:,}", size=f"{size / 2**20:,.1f}", place=where)
    if _waits(cache, location):
        yield Message("cache_unpinned", "The KV cache in system RAM could not be pinned: each block waits for "
                      "its copy.")


def allocate_prefix_cache(start_pass: StartPass, position: int, needed: int, working: int, device: torch.device,
                          first: CacheLocation = CacheLocation.VRAM, others: int = 0,
                          ) -> tuple[PrefixCache, CacheLocation]:
    """Run a pass over the prefix and keep its keys and values in the fastest place that holds them, from `first` on.

    position: the rotary counter after the prefix; needed: bytes of all keys and values; working: bytes that a pass
    needs beside them; others: bytes of video memory that the run's other prefixes keep.
    """
    beside = first is CacheLocation.VRAM or (first is CacheLocation.RAM and device.type == "cpu")  # the same place
    if beside and _may_fit(needed + working + others, device):
        try:
            return PrefixCache(position, _collect(start_pass, device)), CacheLocation.VRAM
        except Exception as error:
            if not comfy.model_management.is_oom(error):
                raise
            log.info("The keys and values of the prefix did not fit beside the model: %s", error)
        comfy.model_management.soft_empty_cache()
    if first is not CacheLocation.RECOMPUTE and device.type != "cpu" and needed + RAM_MARGIN <= _free_ram():
        return _in_ram(start_pass, position, device), CacheLocation.RAM
    return RecomputedPrefix(position, compute=partial(_cancellable_pass, start_pass)), CacheLocation.RECOMPUTE


def _may_fit(size: int, device: torch.device) -> bool:
    """Whether a run has room for so many bytes beside its weights.

    On a graphics card ComfyUI moves weights out for all that the run says it needs (QwenImage2.memory_required: the
    keys and values of every prompt), so the card's whole memory counts.
    """
    if device.type == "cpu":
        return size + RAM_MARGIN <= _free_ram()
    return size + comfy.model_management.extra_reserved_memory() <= comfy.model_management.get_total_memory(device)


@dataclass
class PinnedPrefix(PrefetchedPrefix):
    """Keys and values in RAM that ComfyUI has pinned, until they are released."""

    def __post_init__(self):
        self._unpin = weakref.finalize(self, _unpin, _tensors(self.layers))
        self._unpin.atexit = False  # the driver may be gone by then

    def release(self) -> None:
        super().release()
        self._unpin()


def _waits(cache: PrefixCache, location: CacheLocation) -> bool:
    """Whether every block of a pass waits for a copy of its own."""
    return location is CacheLocation.RAM and not isinstance(cache, PinnedPrefix)


def _in_ram(start_pass: StartPass, position: int, device: torch.device) -> PrefixCache:
    """Pinned if ComfyUI has so much pinned memory to give."""
    kept = [(k.contiguous(), v.contiguous()) for k, v in _collect(start_pass, torch.device("cpu"))]
    if device.type == "cuda" and _pin(_tensors(kept)):
        return PinnedPrefix(position, kept, transfer=transfer_for(device))
    return PrefixCache(position, kept)


def _tensors(layers: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [tensor for pair in layers for tensor in pair]


def _pin(tensors: list[Tensor]) -> bool:
    """All of them or none, by ComfyUI's own account of such memory."""
    for count, tensor in enumerate(tensors):
        if not comfy.model_management.pin_memory(tensor):
            _unpin(tensors[:count])
            return False
    return True


def _unpin(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        comfy.model_management.unpin_memory(tensor)


def _free_ram() -> int:
    return comfy.model_management.get_free_memory(torch.device("cpu"))


def _collect(start_pass: StartPass, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    return [(k.to(device), v.to(device)) for k, v in _cancellable_pass(start_pass)]


def _cancellable_pass(start_pass: StartPass) -> Iterator[tuple[Tensor, Tensor]]:
    """With ten references a pass takes as long as a step: it can be cancelled between two blocks."""
    for pair in start_pass():
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield pair
