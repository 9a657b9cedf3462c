"""What is known of a sampling run while it lasts."""
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .prefix_placement import CacheLocation


class Prefix(Protocol):
    """What a run asks of its prefixes, see ../prefix_cond.py."""

    location: CacheLocation | None

    @property
    def video_memory(self) -> int: ...

    def clear(self) -> None: ...


@dataclass
class RunState:
    """Made when a run begins and dropped when it ends, so that no run knows anything of an earlier one.

    Outside of a run a model has one as well, with the values below: nodes that call a model without ComfyUI's samplers
    have prefixes and can run out of memory, too.
    """

    # Tokens whose keys and values are kept beside the model, over all prompts; None outside of a run.
    cached_tokens: int | None = None
    # How many it samples at once; None outside of a run.
    images: int | None = None
    # Those that its schedule has; none outside of a run.
    sigmas: tuple[float, ...] = ()
    # Tiles, and height and width of each in latents, that one pass computes; None where it computes whole latents.
    pass_shape: tuple[int, int, int] | None = None
    # Control networks applied to it, as ../control.py has prepared them.
    controls: tuple = ()
    # Those that a step has used. They belong to ComfyUI's conditionings, and end with them.
    prefixes: weakref.WeakSet[Prefix] = field(default_factory=weakref.WeakSet)
    # Whether a step has run out of memory and been repeated with less: that happens once in a run.
    oom_retried: bool = False
    # Kinds of other nodes' patches that the run has reported as of no effect.
    reported_patches: set[str] = field(default_factory=set)
    # The run that this one interrupts: a node may sample from within another's callback.
    outer: "RunState | None" = None

    def begin(self, cached_tokens: int, images: int | None = None, sigmas: Iterable[float] = (),
              controls: tuple = (), pass_shape: tuple[int, int, int] | None = None) -> "RunState":
        """A run that begins now. It knows the prefixes that are there already, since they take video memory, too."""
        return RunState(cached_tokens, images, tuple(sigmas), pass_shape, controls, self.prefixes,
                        outer=None if self.cached_tokens is None else self)

    def end(self) -> "RunState":
        """Free what the run has kept. Returns what holds from then on: the run that it has interrupted, or nothing."""
        self.clear_prefixes()
        return self.outer or RunState()

    def clear_prefixes(self) -> None:
        for prefix in self.prefixes:
            prefix.clear()

    def of_pass(self, shape: Sequence[int]) -> Sequence[int]:
        """The shape of what one pass computes of latents of this shape (B, C, ..., h, w)."""
        return shape if self.pass_shape is None else (self.pass_shape[0], *shape[1:-2], *self.pass_shape[1:])

    @property
    def keeps_beside_model(self) -> bool:
        """Whether keys and values of a prefix lie beside the model."""
        return any(prefix.location is CacheLocation.VRAM for prefix in self.prefixes)

    def video_memory_beside(self, prefix: Prefix) -> int:
        """Bytes of video memory that the keys and values of all other prefixes take."""
        return sum(each.video_memory for each in self.prefixes if each is not prefix)

    def first_location(self, chosen: CacheLocation) -> CacheLocation:
        """Where to try to keep keys and values: no longer beside the model where memory has run out."""
        return CacheLocation.RAM if self.oom_retried and chosen is CacheLocation.VRAM else chosen
