"""What a prompt enhancer has answered: {"rewritten_prompt", "wh_ratio"}, for edits with "ratio_follow", after its
thinking. Language models write all kinds of things around that object, and into it.
"""
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..messages import Message
from ..model.images.sizes import LARGEST_RATIO, reference_size, size_for_ratio

DECODER = json.JSONDecoder(strict=False)  # models write line breaks inside strings
KEYS = ("rewritten_prompt", "rewrited_prompt")  # the second is a misspelling of some training runs
MOST_BRACES = 500  # at which an object is looked for; a model that has lost its way writes thousands
RATIO = re.compile(r"\s*(\d+(?:\.\d+)?)\s*[:：xX/]\s*(\d+(?:\.\d+)?)\s*")
REFERENCE = re.compile(r"\s*<?image\s*(\d{1,3})>?\s*", re.I)


@dataclass(frozen=True)
class Generated:
    """What a language model has written."""

    text: str
    tokens: int
    truncated: bool  # it was stopped at the most tokens, not by itself


@dataclass(frozen=True)
class Answer:
    """The fields of the JSON object, as they are written."""

    prompt: str
    ratio: str = ""  # "16:9": a new composition of this shape
    follow: str = ""  # "<image2>": the shape of that reference


# ---------------------------------------------------------------- the object

def parse(generated: Generated) -> Answer | None:
    """The last JSON object with a prompt after the thinking; None where there is none."""
    for found in _objects(_after_thinking(generated)):
        prompt = next((found[key] for key in KEYS if isinstance(found.get(key), str) and found[key].strip()), None)
        if prompt is not None:
            return Answer(prompt.strip(), str(found.get("wh_ratio") or ""), str(found.get("ratio_follow") or ""))
    return None


def _after_thinking(generated: Generated) -> str:
    """Drafts inside the thinking are no answer. The template opens it, so that only its end is in the text."""
    _, closed, answer = generated.text.rpartition("</think>")
    unfinished = not closed and (generated.truncated or "<think>" in answer)
    return "" if unfinished else answer


def _objects(text: str) -> Iterator[dict]:
    """The JSON objects that begin somewhere in the text, the last ones first."""
    for brace in [*re.finditer("{", text)][:-MOST_BRACES - 1:-1]:
        try:
            found, _ = DECODER.raw_decode(text, brace.start())
        except (ValueError, RecursionError):
            continue  # prose in braces, or an object that was cut
        yield found


# ---------------------------------------------------------------- the canvas

def proposed_canvas(answer: Answer, size_class: int,
                    references: Sequence[tuple[int, int]]) -> tuple[tuple[int, int] | None, str]:
    """(width, height) of the shape that the answer proposes, None where it proposes none, and what there is to say."""
    reference = REFERENCE.fullmatch(answer.follow)
    if reference and 1 <= int(reference[1]) <= len(references):
        size = reference_size(*references[int(reference[1]) - 1], size_class)
        return size, Message("canvas_of_reference", "Canvas: {width} x {height}, the shape of <image{number}>.",
                             width=size[0], height=size[1], number=int(reference[1]))
    ratio = _ratio(answer.ratio)
    if ratio is not None:
        size = size_for_ratio(ratio, size_class)
        return size, Message("canvas_ratio", "Canvas: {width} x {height}, for the proposed ratio {ratio}.",
                             width=size[0], height=size[1], ratio=answer.ratio.strip())
    proposed = answer.follow.strip() or answer.ratio.strip()
    if not proposed:
        return None, Message("canvas_unproposed", "Canvas: as chosen on the node, because the language model proposes "
                             "none.")
    return None, Message("canvas_no_proposal", "Canvas: as chosen on the node, because the language model proposes "
                         "{proposed}, which is no canvas.", proposed=repr(proposed[:40]))


def _ratio(text: str) -> float | None:
    """Width / height of "16:9"; None for what is none, or so long that no picture is."""
    match = RATIO.fullmatch(text)
    if not match or not float(match[1]) or not float(match[2]):
        return None
    ratio = float(match[1]) / float(match[2])
    return ratio if 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO else None
