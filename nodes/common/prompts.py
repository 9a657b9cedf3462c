"""What is told of a prompt."""
from collections.abc import Sequence
from dataclasses import dataclass

from ...messages import Message
from ...model.qwen_image_1 import prompt as prompt_1
from ...pages.quotation import closed
from ..bridge.keys import FAMILY_1

# The model card's figure for what the model was trained to follow; longer prompts are encoded whole.
TRAINED_TOKENS = 1000
FOR_THE_METER = "qwen_image_2_trained_tokens"  # in a node's `ui` output, for js/token_meter.js


def trained_tokens(family: str) -> int:
    return prompt_1.TRAINED_TOKENS if family == FAMILY_1 else TRAINED_TOKENS


@dataclass(frozen=True)
class Measure:
    """What a node's prompts come to, before anything is drawn."""

    tokens: int  # of the longest prompt
    texts: Sequence[str]  # the literal lines
    notes: Sequence[str]  # what was shortened or left out
    slides: str | None = None  # how many prompts there are, where there may be several


def advice_on(prompt: str) -> Message | None:
    """Slips that draw something, but hardly what was meant."""
    if not prompt.strip():
        return Message("prompt_empty", "The prompt is empty: the content of the image is left to chance.")
    if not closed(prompt):
        return Message("quotation_unclosed", "A double quotation mark is never closed: nothing after it counts as "
                       "words to draw.")
    return None
