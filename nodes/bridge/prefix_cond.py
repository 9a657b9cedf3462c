"""A prompt with its references as ComfyUI's conditioning object, which keeps their keys and values for a run."""
from collections.abc import Hashable
from dataclasses import replace

import torch
from torch import Tensor

from ...messages import Refusal
from ...model.qwen_image_2.prefix_cache import Condition, PrefixCache
from ...model.qwen_image_2.spec import TransformerSpec
from ...model.runtime.key_weights import PLAIN, KeyWeights, ReferenceWeight
from .keys import CENTRED_KEY, SLOTS_KEY
from .pack_model import WholeCond, check_prompt
from .runtime.prefix_placement import CacheLocation


class PromptPrefix:
    """One conditioning on its way through a sampling run, with its keys and values once they are known."""

    def __init__(self, condition: Condition, weights: tuple[ReferenceWeight, ...] = ()):
        self.condition = condition
        # How much the target looks at each of its tokens. Its keys and values do not depend on it.
        self.weights: KeyWeights = condition.key_weights(weights) if weights else PLAIN
        self._weights = weights
        self.cache: PrefixCache | None = None  # of its keys and values
        self.location: CacheLocation | None = None        # where they are kept, None where there are none
        self.reported: set[CacheLocation] = set()      # the places that its run has told of
        self._key: Hashable = None
        self._of_tiles: dict[int, PromptPrefix] = {}

    def is_valid(self, key: Hashable) -> bool:
        """Whether there are keys and values, and for this state of weights, device, dtype and time."""
        return self.cache is not None and self._key == key

    def fill(self, key: Hashable, cache: PrefixCache, location: CacheLocation) -> None:
        """Keep keys and values from now on. Those from before are to be cleared before the new ones are made."""
        self._key, self.cache, self.location = key, cache, location

    def weights_on(self, device: torch.device) -> KeyWeights:
        """They come to a device once."""
        self.weights = self.weights.to(device)
        return self.weights

    def for_tile(self, number: int, reference: Tensor | None) -> "PromptPrefix":
        """This prompt for a tile that has a reference of its own, latents (1, 64, h, w) on the transformer's scale,
        behind all others and looked at as it is; the prompt itself where it has none. Every step gets the same object.
        """
        if reference is None:
            return self
        if number not in self._of_tiles:
            slots, latents = self.condition.slots, self.condition.references
            behind = slots[-1] if slots else 0
            condition = replace(self.condition, slots=(*slots, behind),
                                references=(*latents, reference.to(self.condition.text.device)))
            weights = (*self._weights, ReferenceWeight()) if self._weights else ()
            self._of_tiles[number] = PromptPrefix(condition, weights)
            self._of_tiles[number].reported = self.reported
        return self._of_tiles[number]

    def clear(self) -> None:
        """Give up the keys and values; the next step makes them anew."""
        if self.cache is not None:
            self.cache.release()
        self._key = self.cache = self.location = None

    @property
    def video_memory(self) -> int:
        """Bytes that its keys and values take on a graphics card."""
        layers = self.cache.layers if self.cache is not None else ()
        return sum(t.nbytes for pair in layers for t in pair if t.device.type != "cpu")


class PrefixCond(WholeCond):
    """Hands its PromptPrefix on. Two prompts differ in length: one after the other they need no padding."""

    def size(self):
        return prefix_shape(self.cond.condition)


def prefix_shape(condition: Condition) -> list[int]:
    """[1, prompts, tokens of text and references in each], for ComfyUI's estimate of memory."""
    return [1, len(condition.text), list(condition.segments())[-1].end]


def prefix_count(prompts: int, spec: TransformerSpec, images: int) -> int:
    """How many prefixes a conditioning has in a run: one for each prompt, and where they change with the timestep one
    for each image."""
    return prompts if spec.causal_condition else max(prompts, images)


def prefix_tokens(condition: Condition, spec: TransformerSpec, images: int) -> int:
    """Tokens of text and references, over all prefixes of a conditioning."""
    _, prompts, tokens = prefix_shape(condition)
    return prefix_count(prompts, spec, images) * tokens


def condition_from(cond: dict, spec: TransformerSpec, normalize) -> Condition:
    """A conditioning's entries -> Condition. Raises ValueError where the encoder or the references do not fit."""
    text = cond.get("cross_attn")
    check_prompt(text, spec.context_dim)
    slots = tuple(cond.get(SLOTS_KEY) or ())
    references = tuple(normalize(latent) for latent in cond.get("reference_latents") or ())
    if len(references) != len(slots):
        raise Refusal("conditioning_slots", "The conditioning has {references} reference latents but {slots} image "
                      "placeholders in its prompt. Each reference needs both: use Encode Edit (Qwen-Image 2).",
                      references=len(references), slots=len(slots))
    return Condition(text, slots, references, bool(cond.get(CENTRED_KEY)))
