"""Reads what a checkpoint's configuration says, entry by entry: like every part of a file it may hold anything."""
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..sentences import Sentence
from .files import CheckpointError


class Kind(NamedTuple):
    words: str  # that can follow 'expected'
    fits: Callable[[object], bool]


def _is_number(value: object) -> bool:
    """Not NaN, not infinite, and not a whole number beyond every float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e30 < value < 1e30


def _is_whole(value: object) -> bool:
    return _is_number(value) and isinstance(value, int)


FLAG = Kind(Sentence("true or false"), lambda value: isinstance(value, bool))
NUMBER = Kind(Sentence("a number"), _is_number)
POSITIVE = Kind(Sentence("a number above 0"), lambda value: _is_number(value) and value > 0)
COUNT = Kind(Sentence("a whole number above 0"), lambda value: _is_whole(value) and value > 0)
INDEX = Kind(Sentence("a whole number from 0 on"), lambda value: _is_whole(value) and value >= 0)


class Configuration:
    """Entries that are missing or null have the default. Raises CheckpointError for one of another kind."""

    def __init__(self, entries: Mapping, label: str):
        self.entries, self.label = entries, label

    def __bool__(self) -> bool:
        return bool(self.entries)

    def one(self, name: str, kind: Kind, default):
        value = self.entries.get(name)
        if value is None:
            return default
        if not kind.fits(value):
            raise self._refusal(name, value, kind.words)
        return value

    def several(self, name: str, kind: Kind, default: tuple, length: int | None = None) -> tuple:
        """A list of one kind; length: how long it must be."""
        value = self.entries.get(name)
        if value is None:
            return default
        if not isinstance(value, list) or not all(map(kind.fits, value)) or length not in (None, len(value)):
            listed = (Sentence("a list, each {kind}", kind=kind.words) if length is None else
                      Sentence("a list of {length}, each {kind}", length=length, kind=kind.words))
            raise self._refusal(name, value, listed)
        return tuple(value)

    def section(self, name: str) -> "Configuration":
        value = self.entries.get(name)
        if not isinstance(value, Mapping | None):
            raise self._refusal(name, value, Sentence("a section"))
        return Configuration(value or {}, self.label)

    def _refusal(self, name: str, value, expected: str) -> CheckpointError:
        return CheckpointError(f"In the configuration of {self.label} the entry {name} is {repr(value)[:60]}, expected "
                               f"{expected}: download it again.")
