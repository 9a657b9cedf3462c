"""Literal texts inside a prompt: how they are quoted, and how they are read back.

A text that holds a double quotation mark itself is enclosed in another pair, so that reading from left to right, from
an opening mark to the first closing mark of its own kind, always gives the text back unchanged.
"""
import re
from bisect import bisect_left
from collections.abc import Sequence

from ..messages import Refusal

STRAIGHT, CURLY, CORNER, WHITE_CORNER = '""', "“”", "「」", "『』"

# „...“ and „...” are only read: people write them, the pack does not.
# No opening mark stands inside: text after one that is never closed would be searched again and again.
QUOTED = re.compile('"([^"]*)"|“([^“”]*)”|„([^„“”]*)[“”]|「([^「」]*)」|『([^『』]*)』')
OPENING = re.compile('["“„「『]')


def quote(text: str, pairs: tuple[str, ...]) -> str:
    """The text in the first of these pairs whose marks it does not hold itself."""
    for pair in pairs:
        if pair[0] not in text and pair[1] not in text:
            return pair[0] + text + pair[1]
    raise Refusal("quotation_marks", "The text {text} contains every kind of quotation mark ({marks}), so none is left "
                  "to enclose it. Use one kind less.", text=repr(text[:80]), marks=", ".join(pairs))


def literals(prompt: str) -> list[str]:
    """What is quoted in a prompt, in order. A mark that is never closed quotes nothing."""
    found = map(inside, QUOTED.finditer(prompt))
    return [text for text in found if text]


def inside(quotation: re.Match[str]) -> str:
    """The text of a match of QUOTED, without its two marks."""
    return quotation[0][1:-1]


def closed(prompt: str) -> bool:
    """Whether every quotation that is opened also ends."""
    return not OPENING.search(QUOTED.sub("", prompt))


def closed_ends(prompt: str, ends: Sequence[int]) -> list[int]:
    """Those of the rising `ends` for which closed(prompt[:end]), found in one pass over the prompt.

    A mark finds its partner wherever the text is cut behind it, so an end is open only inside a quotation of the whole
    prompt, or behind a mark that finds no partner there.
    """
    spans = [match.span() for match in QUOTED.finditer(prompt)]
    lost = OPENING.search(QUOTED.sub(lambda match: " " * len(match[0]), prompt))
    starts = [start for start, _ in spans]

    def outside(end: int) -> bool:
        before = bisect_left(starts, end) - 1
        return before < 0 or end >= spans[before][1]

    return [end for end in ends if outside(end) and (lost is None or end <= lost.start())]
