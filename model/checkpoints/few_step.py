"""Adapters that make a model sample in few steps: which one a file is.

Nothing in their tensors tells, so it is their publishers' names that count: of the file and its folder, or those that
trainers write into the metadata.
"""
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

TITLES = ("modelspec.title", "ss_output_name")  # metadata of sd-scripts, musubi and others

_SEPARATORS = re.compile(r"[^a-z0-9]+")
_STEPS = re.compile(r"(?<![a-z0-9])(\d{1,2}) ?steps?(?![a-z0-9])")


@dataclass(frozen=True)
class FewStep:
    """One that is published. words: in its names, without capitals and with spaces for all separators."""

    words: tuple[str, ...]
    steps: int | None            # in its names; None: its names have none
    presets: tuple[str, ...]     # of sigmas that it was trained with; none where they are not known
    alpha: float | None = None   # what it was trained with and its file leaves out, other than its rank


def recognized(label: str, metadata: Mapping[str, str], published: Iterable[FewStep]) -> FewStep | None:
    """The first of `published` whose names are in a file's. label: the file's name, with its folder."""
    text = _spelled(" ".join((label, *(metadata.get(title, "") for title in TITLES))))
    found = _STEPS.search(text)
    steps = int(found[1]) if found else None
    return next((one for one in published if one.steps == steps and all(word in text for word in one.words)), None)


def _spelled(text: str) -> str:
    return _SEPARATORS.sub(" ", text.lower())
