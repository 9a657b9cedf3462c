"""What a prompt enhancer has answered: {"rewritten_prompt", "wh_ratio"}, for edits with "ratio_follow", after its
thinking. Language models write all kinds of things around that object, and into it. An answer takes minutes, so where
the object is nearly JSON it is mended, and that is said.
"""
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..messages import Message
from ..model.images.sizes import MAX_RATIO, reference_size, size_for_ratio

DECODER = json.JSONDecoder(strict=False)  # models write line breaks inside strings
KEYS = ("rewritten_prompt", "rewrited_prompt")  # the second is a misspelling of some training runs
MAX_BRACES = 500  # at which an object is looked for; a model that has lost its way writes thousands
RATIO = re.compile(r"\s*(\d+(?:\.\d+)?)\s*[:：∶xX×✕*/]\s*(\d+(?:\.\d+)?)\s*")
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
    mended: tuple[str, ...] = field(default=(), compare=False)  # what was wrong with the object


# ---------------------------------------------------------------- the object

def parse(generated: Generated) -> Answer | None:
    """The last JSON object with a prompt after the thinking, else the last that can be mended; None where there is
    none."""
    text = _after_thinking(generated)
    for found in _objects(text):
        prompt = next((found[key] for key in KEYS if isinstance(found.get(key), str) and found[key].strip()), None)
        if prompt is not None:
            return Answer(prompt.strip(), str(found.get("wh_ratio") or ""), str(found.get("ratio_follow") or ""))
    return _mended(text)


def _after_thinking(generated: Generated) -> str:
    """Drafts inside the thinking are no answer. The template opens it, so that only its end is in the text."""
    _, closed, answer = generated.text.rpartition("</think>")
    unfinished = not closed and (generated.truncated or "<think>" in answer)
    return "" if unfinished else answer


def _objects(text: str) -> Iterator[dict]:
    """The JSON objects that begin somewhere in the text, the last ones first."""
    for brace in [*re.finditer("{", text)][:-MAX_BRACES - 1:-1]:
        try:
            found, _ = DECODER.raw_decode(text, brace.start())
        except (ValueError, RecursionError):
            continue  # prose in braces, or an object that was cut
        yield found


# ---------------------------------------------------------------- an object that is nearly JSON

BEGINNING = re.compile(r'"(rewritten_prompt|rewrited_prompt|wh_ratio|ratio_follow)"\s*:\s*"')
MARK = re.compile(r'\\.|"', re.S)  # a mark, or what a backslash keeps from being one
# A mark ends its text where JSON goes on behind it: with another key, the end of the object, of the fence, of all.
# No two spaces stand side by side in the pattern: a run of them would be cut in two at each of its places.
BEHIND = re.compile(r'\s*(?:,\s*(?:"[a-z_]{3,40}"\s*:|\}|```|$)|\}|```|$)')
END = re.compile(r"\s*(,)?\s*(\})?")
UNKNOWN_ESCAPE = re.compile(r'\\(?!["\\/bfnrtu])')
MAX_ATTEMPTS = 20


def _mended(text: str) -> Answer | None:
    """The object around the last prompt that can be read, whether or not the object as a whole is JSON."""
    begins = [*BEGINNING.finditer(text)]
    prompts = [place for place, begin in enumerate(begins) if begin[1] in KEYS]
    for place in prompts[:-MAX_ATTEMPTS - 1:-1]:
        prompt = _text_from(text, begins[place].end())
        if prompt is not None and prompt.value.strip():
            others = {begin[1]: _text_from(text, begin.end()) for begin in _others(text, begins, place)}
            ratio, follow = (one.value if (one := others.get(key)) else "" for key in ("wh_ratio", "ratio_follow"))
            return Answer(prompt.value.strip(), ratio, follow, tuple(_faults(text, [prompt, *others.values()])))
    return None


def _others(text: str, begins: Sequence[re.Match], place: int) -> Iterator[re.Match]:
    """Where the other texts of a prompt's object begin, of which there are at most two."""
    for begin in begins[max(0, place - 2):place]:
        if "{" not in text[begin.start():begins[place].start()]:
            yield begin
    yield from itertools.takewhile(lambda begin: begin[1] not in KEYS, begins[place + 1:place + 3])


@dataclass(frozen=True)
class _Text:
    """A text of the object, and where it ends."""

    value: str
    end: int  # behind its mark
    inner: bool  # it holds marks that JSON wants with a backslash


def _text_from(text: str, begin: int) -> _Text | None:
    """The text that begins there; None where it does not end."""
    end = next((mark.start() for mark in MARK.finditer(text, begin)
                if mark[0] == '"' and BEHIND.match(text, mark.end())), None)
    if end is None:
        return None
    raw = UNKNOWN_ESCAPE.sub(r"\\\\", text[begin:end])
    escaped = MARK.sub(lambda mark: '\\"' if mark[0] == '"' else mark[0], raw)
    try:
        return _Text(DECODER.decode(f'"{escaped}"'), end + 1, escaped != raw)
    except ValueError:  # such as half of \u1234
        return None


def _faults(text: str, found: Sequence[_Text | None]) -> Iterator[str]:
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        yield Message("answer_unended", "one of its texts had no end")
    if any(one.inner for one in known):
        yield Message("answer_marks", "quotation marks inside a text had no backslash")
    end = END.match(text, max(one.end for one in known))
    assert end is not None  # it may be empty
    comma, brace = end.groups()
    if comma and brace:
        yield Message("answer_comma", "there was a comma too many")
    if not comma and not brace:
        yield Message("answer_brace", "the last brace was missing")


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
        return None, Message("canvas_unproposed", "Canvas: as set on the node, because the language model proposed "
                             "none.")
    return None, Message("canvas_no_proposal", "Canvas: as set on the node, because the language model proposed "
                         "{proposed}, which is not a canvas.", proposed=repr(proposed[:40]))


def _ratio(text: str) -> float | None:
    """Width / height of "16:9"; None for what is none, or so long that no picture is."""
    match = RATIO.fullmatch(text)
    if not match or not float(match[1]) or not float(match[2]):
        return None
    ratio = float(match[1]) / float(match[2])
    return ratio if 1 / MAX_RATIO <= ratio <= MAX_RATIO else None
