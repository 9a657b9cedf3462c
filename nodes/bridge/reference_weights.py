"""How much of single references is looked at, as conditionings carry it."""
import node_helpers
from torch import Tensor

from ...messages import Refusal
from ...model.runtime.key_weights import AS_TRAINED, ReferenceWeight
from .keys import REFERENCE_WEIGHTS_KEY
from .text_encoders.lazy import LazyConditioning

MAX_STRENGTH = 2.0


def with_weight(conditioning, number: int, strength: float, mask: Tensor | None) -> LazyConditioning:
    """The conditioning with another weight for one of its references, from 1 on; mask: (H, W), 1 is looked at. It is
    read, and the number looked at, when somebody samples with it."""
    def encoded() -> list:
        out = []
        for one in conditioning:
            _check_number(number, one[1])
            weights = {**(one[1].get(REFERENCE_WEIGHTS_KEY) or {}), number: (strength, mask)}
            out += node_helpers.conditioning_set_values([one], {REFERENCE_WEIGHTS_KEY: weights})
        return out
    return LazyConditioning(encoded)


def weights_from(cond: dict) -> tuple[ReferenceWeight, ...]:
    """A conditioning's entries -> a weight for each of its references; none where all are looked at as trained."""
    given = cond.get(REFERENCE_WEIGHTS_KEY) or {}
    for number in given:
        _check_number(number, cond)
    weights = tuple(ReferenceWeight(*given[number]) if number in given else AS_TRAINED
                    for number in range(1, 1 + len(cond.get("reference_latents") or ())))
    return weights if any(each is not AS_TRAINED for each in weights) else ()


def _check_number(number: int, cond: dict) -> None:
    references = len(cond.get("reference_latents") or ())
    if not references:
        raise Refusal("strength_no_reference", "The conditioning holds no reference image, so there is no strength to "
                      "set. Connect the outputs of Encode Edit (Qwen-Image 2).")
    if number > references:
        raise Refusal("strength_reference", "Reference {number} was given a strength, but the conditioning holds only "
                      "{count}. Choose a number from 1 to {count}; each image of a batch counts.", number=number,
                      count=references)
