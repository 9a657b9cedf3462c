"""Reads what a checkpoint's configuration says, entry by entry: like every part of a file it may hold anything."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeGuard, TypeVar

from ...messages import Message
from .errors import CheckpointError

Value = TypeVar("Value")
Default = TypeVar("Default")


@dataclass(frozen=True)
class Kind(Generic[Value]):
    words: str  # that can follow 'expected'
    fits: Callable[[object], TypeGuard[Value]]


def _is_flag(value: object) -> TypeGuard[bool]:
    return isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    """Not NaN, not infinite, and not a whole number beyond every float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e30 < value < 1e30


def _is_positive(value: object) -> TypeGuard[float]:
    return _is_number(value) and value > 0


def _is_index(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and _is_number(value) and value >= 0


def _is_count(value: object) -> TypeGuard[int]:
    return _is_index(value) and value > 0


FLAG = Kind(Message("kind_flag", "true or false"), _is_flag)
NUMBER = Kind(Message("kind_number", "a number"), _is_number)
POSITIVE = Kind(Message("kind_positive", "a positive number"), _is_positive)
COUNT = Kind(Message("kind_count", "a positive integer"), _is_count)
INDEX = Kind(Message("kind_index", "a non-negative integer"), _is_index)


class Configuration:
    """Entries that are missing or null have the default. Raises CheckpointError for one of another kind."""

    def __init__(self, entries: Mapping, label: str):
        self.entries, self.label = entries, label

    def __bool__(self) -> bool:
        return bool(self.entries)

    def one(self, name: str, kind: Kind[Value], default: Default) -> Value | Default:
        value = self.entries.get(name)
        if value is None:
            return default
        if not kind.fits(value):
            raise self._refusal(name, value, kind.words)
        return value

    def several(self, name: str, kind: Kind[Value], default: Default, length: int | None = None) -> tuple | Default:
        """A list of one kind; length: how long it must be."""
        value = self.entries.get(name)
        if value is None:
            return default
        if not isinstance(value, list) or not all(map(kind.fits, value)) or length not in (None, len(value)):
            listed = (Message("kind_list", "a list, each {kind}", kind=kind.words) if length is None else
                      Message("kind_list_of", "a list of {length}, each {kind}", length=length, kind=kind.words))
            raise self._refusal(name, value, listed)
        return tuple(value)

    def section(self, name: str) -> "Configuration":
        value = self.entries.get(name)
        if not isinstance(value, Mapping | None):
            raise self._refusal(name, value, Message("kind_section", "a section"))
        return Configuration(value or {}, self.label)

    def _refusal(self, name: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError("config_entry", "Invalid configuration in {file}: {entry} is {value}, expected "
                               "{expected}. Download the file again.",
                               file=self.label, entry=name, value=repr(value)[:60],
                               expected=expected)
