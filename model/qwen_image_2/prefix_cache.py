"""What the target is conditioned on: first as prompt states and reference latents, then as keys and values.

Text and references never see the target (block-causal attention), and with `causal_condition` they do not see
the timestep either. So their keys and values are computed once, in a pass of their own, and shared by all steps
and by all images of a batch.

Shapes: P batch of prefixes (1, or as many as targets), S text-encoder tokens, K text-encoder width,
T prefix tokens, B batch of targets, N target tokens, H heads, C channels of a head.
"""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...messages import Refusal
from ..runtime.key_weights import PLAIN, KeyWeights, ReferenceWeight, key_weights


class Segment(NamedTuple):
    """A run of prefix tokens [start, end): text (grid None, attention causal) or one image (attention full)."""

    start: int
    end: int
    grid: tuple[int, int] | None
    source: int  # text: index of its first state; image: number of its reference


@dataclass(frozen=True)
class Condition:
    """One prompt and its reference images.

    text: text-encoder states (P, S, K), without those of the images, whose place the references take.
    slots: how many of these states stand before each reference, in the order of the prompt.
    references: latents on the transformer's scale, each (P or 1, 64, h, w).
    centred: whether references stand with their centres on the target's. An odd number of rows or columns is centred
    half a token beside an even one, in diffusers and as trained; ComfyUI's own model shifts such references back.
    Raises ValueError where these do not fit together.
    """

    text: Tensor
    slots: tuple[int, ...] = ()
    references: tuple[Tensor, ...] = ()
    centred: bool = False

    def __post_init__(self) -> None:
        if len(self.slots) != len(self.references):
            raise Refusal("slots_without_references", "The prompt has {slots} image placeholders, but {references} "
                          "reference latents came with it. Each reference needs both.", slots=len(self.slots),
                          references=len(self.references))
        before = 0
        for number, (slot, latent) in enumerate(zip(self.slots, self.references, strict=True), start=1):
            self._check_slot(number, slot, before)
            self._check_latent(number, latent)
            before = slot

    def _check_slot(self, number: int, slot: int, before: int) -> None:
        """before: the slot in front of it."""
        length = self.text.shape[1]
        if not before <= slot <= length:
            raise Refusal("image_slot", "Image placeholder {number} stands at position {slot} of the prompt; {before} "
                          "to {end} are possible. Placeholders must lie within the prompt and in order. Encode the "
                          "prompt again with Encode Edit (Qwen-Image 2).",
                          number=number, slot=slot, before=before, end=length)

    def _check_latent(self, number: int, latent: Tensor) -> None:
        if len(latent) not in (1, len(self.text)):
            raise Refusal("reference_batch", "Reference {number} is a batch of {latents} latents for {prompts} "
                          "prompts. It must hold one for all prompts or one per prompt.",
                          number=number, latents=len(latent),
                          prompts=len(self.text))

    def to(self, device: torch.device) -> "Condition":
        return replace(self, text=self.text.to(device),
                       references=tuple(latent.to(device) for latent in self.references))

    def key_weights(self, weights: Sequence[ReferenceWeight]) -> KeyWeights:
        """How much the target looks at each token of the prefix, for a weight of each reference; on the CPU."""
        return key_weights(torch.cat([
            torch.ones(segment.end - segment.start) if segment.grid is None
            else weights[segment.source].of_tokens(segment.grid) for segment in self.segments()]))

    def segments(self) -> Iterator[Segment]:
        """The prefix in order, text runs and images."""
        state, token = 0, 0
        for number, (slot, latent) in enumerate(zip(self.slots, self.references, strict=True)):
            if slot > state:
                yield Segment(token, token + slot - state, None, state)
                token += slot - state
            height, width = latent.shape[-2:]
            yield Segment(token, token + height * width, (height, width), number)
            state, token = slot, token + height * width
        rest = self.text.shape[1] - state
        if rest:
            yield Segment(token, token + rest, None, state)


@dataclass
class PrefixCache:
    """Post-RoPE keys and values of a prefix, one pair per block, each (P, T, H, C)."""

    position: int  # the rotary counter after the prefix: where the target's frame axis stands
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    target_size: tuple[int, int] | None = None  # height and width of the latest target
    target_rope: Tensor | None = None           # its rotations, from `position` on
    _joint: Tensor | None = None

    def layer(self, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """One block's keys and values, on the device where they are needed."""
        keys, values = self.layers[number]
        return keys.to(device, non_blocking=True), values.to(device, non_blocking=True)

    def release(self) -> None:
        """Called when it is no longer needed; here the tensors' own end is enough."""

    def join(self, layer: int, k: Tensor, v: Tensor, weights: KeyWeights = PLAIN) -> tuple[Tensor, Tensor]:
        """Keys and values [prefix | target] (B, T + N, H, C) of one block, for the target's k, v (B, N, H, C).
        weights: of the prefix; keys that do not count are left out.

        All blocks write into one preallocated buffer, valid until the next call. (A buffer per block would save
        copying T tokens, and cost 8 GiB at 2048 x 2048.) Where gradients are wanted nothing is overwritten.
        """
        prefix = tuple(weights.choose(each) for each in self.layer(layer, k.device))
        if torch.is_grad_enabled():
            keys, values = (torch.cat([p.expand(len(t), -1, -1, -1), t], 1)
                            for p, t in zip(prefix, (k, v), strict=True))
            return keys, values
        joint = self._buffer(k, prefix[0].shape[1])
        for row, p, t in zip(joint, prefix, (k, v), strict=True):
            row[:, :p.shape[1]] = p
            row[:, p.shape[1]:] = t
        return joint[0], joint[1]

    def _buffer(self, k: Tensor, prefix: int) -> Tensor:
        batch, tokens, heads, channels = k.shape
        shape = (2, batch, prefix + tokens, heads, channels)
        if self._joint is None or self._joint.shape != shape:
            self._joint = k.new_empty(shape)
        return self._joint


@dataclass
class RecomputedPrefix(PrefixCache):
    """Keeps nothing: every pass over the target makes the keys and values again, block by block.

    For prefixes whose keys and values fit nowhere. compute() starts a pass over the prefix.
    """

    compute: Callable[[], Iterator[tuple[Tensor, Tensor]]] = field(kw_only=True)
    _running: Iterator[tuple[Tensor, Tensor]] | None = None

    def layer(self, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Blocks must be asked for in their order."""
        if number == 0:
            self._running = self.compute()
        assert self._running is not None, "a pass begins with block 0"
        return next(self._running)
