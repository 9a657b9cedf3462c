"""Weights as slices of their file, the form in which ComfyUI's dynamic VRAM reads them straight into pinned memory.

Weights of another mapping it copies: the file's pages and the pinned copy are both in use while it does, and Windows
counts a mapping that could be written to as memory in use from the start.
"""
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.memory_management
import comfy.utils
from torch import Tensor

from ...model.checkpoints.checkpoint import StoredCheckpoint, copying_once

log = logging.getLogger(__name__)


class SlicedCheckpoint(StoredCheckpoint):
    """Read-only: for patchers that never write into the weights that they were given."""

    @contextmanager
    def mapped(self) -> Iterator[Callable[[str], Tensor]]:
        try:
            files = {path: comfy.utils.load_safetensors(str(path))[0] for path in dict.fromkeys(self.homes.values())}
        except (KeyError, RuntimeError) as error:  # a type that it does not know, or a file that cannot be mapped so
            log.info("ComfyUI cannot read %s in slices (%r): its weights are copied on their way to pinned memory.",
                     self.label, error)
            with super().mapped() as read:
                yield read
        else:
            yield copying_once(lambda name: files[self.homes[name]][name])


def sliced(checkpoint: StoredCheckpoint, dynamic: bool) -> StoredCheckpoint:
    """The same checkpoint in this form, where ComfyUI has it and the weights are for its dynamic patcher."""
    # GGUF has a reader of its own.
    if not (dynamic and comfy.memory_management.aimdo_enabled and type(checkpoint) is StoredCheckpoint):
        return checkpoint
    return SlicedCheckpoint(**vars(checkpoint))
