"""Messages and refusals that the page can say in other languages.

In English each is plain text: logs, programs and other nodes need nothing else. It keeps its key and what it was filled
in with, so that the page can look the key up in locales/<language>/main.json.

Key and template are written out where a message is made, each key in one place only: tools/translations.py finds them
there. A number that needs a format is given as formatted text.

No message is longer than MAX_LENGTH characters, whatever it is filled in with: a file may hold a name of a megabyte, or
50,000 of them, and each would stand in the log and on a node. Long names lose their middle and the rest of a list is
counted, where the message is made, so that every language says the same.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Value = str | int | Sequence[str]  # the strings may be Messages themselves

MAX_LENGTH = 400  # characters of a message
# Characters that one value may have. The first that makes the message fit is taken: names stay whole where they can.
ROOMS = (MAX_LENGTH, 300, 200, 150, 100, 70, 50, 35, 25, 15)


class Translatable:
    """What a Message and a Refusal have in common.

    key: names the message in every language. template: its English, such as "{count} of {total} pages".
    values: what is filled in, by name; lists are separated by commas.
    """

    key: str
    template: str
    values: dict[str, Value]

    def _keep(self, key: str, template: str, values: dict[str, Value]) -> None:
        self.key, self.template, self.values = key, template, values

    def to_json(self) -> dict:
        """{"key", "template", "values"}: all that the page needs."""
        return {"key": self.key, "template": self.template,
                "values": {name: to_json(value) for name, value in self.values.items()}}


class Message(Translatable, str):
    """A template, filled in; values that are too long for it are shortened. Raises KeyError for a name without a
    value."""

    def __new__(cls, key: str, template: str, /, **values: Value) -> Message:
        values = _shortened(template, values)
        message = super().__new__(cls, _filled(template, values))
        message._keep(key, template, values)
        return message

    def __getnewargs_ex__(self) -> tuple[tuple[str, str], dict[str, Value]]:
        """For copies: a string's own way would take the filled-in text for a key."""
        return (self.key, self.template), self.values


class Refusal(Translatable, ValueError):
    """What the user asked for cannot be done: why, and what to do instead. As text it is English."""

    def __init__(self, key: str, template: str, /, **values: Value):
        values = _shortened(template, values)
        super().__init__(_filled(template, values))
        self._keep(key, template, values)

    @property
    def message(self) -> Message:
        return Message(self.key, self.template, **self.values)

    def __reduce__(self) -> tuple[Callable[..., Refusal], tuple]:
        """For copies: an exception's own way would take the filled-in text for a key."""
        return _again, (type(self), self.key, self.template, self.values)


def plural(key: str, count: int, one: str, more: str) -> Message:
    """One of two templates with {count}, by the count; their keys are `<key>.one` and `<key>.more`."""
    return Message(f"{key}.one", one, count=count) if count == 1 else Message(f"{key}.more", more, count=count)


def and_list(items: Sequence[str]) -> str:
    """With commas, and `and` before the last one; at least one item."""
    *some, last = items
    return Message("and_list", "{some} and {last}", some=some, last=last) if some else last


def count_more(count: int) -> Message:
    """The last item of a list that leaves so many out."""
    return Message("count_more", "{count} more", count=count)


def reason(error: Exception) -> str:
    """What an exception says, to be filled in: a Refusal's Message, the text of any other."""
    return error.message if isinstance(error, Refusal) else str(error)


def to_json(value: Value) -> str | int | list | dict:
    """A Message as its parts, a list, or what is the same in every language."""
    if isinstance(value, Translatable):
        return value.to_json()
    return value if isinstance(value, str | int) else [to_json(item) for item in value]


def _filled(template: str, values: Mapping[str, Value]) -> str:
    return template.format(**{name: value if isinstance(value, int) else _text(value)
                              for name, value in values.items()})


def _text(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def _shortened(template: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """The values, as long as the message has room for."""
    for room in ROOMS:
        fitting = {name: _at_most(value, room) for name, value in values.items()}
        if len(_filled(template, fitting)) <= MAX_LENGTH:
            return fitting
    # Messages inside this one that are too long by themselves: they lose their translation before they fill a page.
    return {name: value if isinstance(value, int) else without_middle(_text(value), ROOMS[-1])
            for name, value in fitting.items()}


def _at_most(value: Value, room: int) -> Value:
    """The value in so many characters: the middle of a text is left out, and the rest of a list counted."""
    if isinstance(value, int):  # Python writes out no number of more than 4,300 digits
        return value if abs(value) < 10 ** room else without_middle(hex(value), room)
    return _text_at_most(value, room) if isinstance(value, str) else _first_of(value, room)


def _text_at_most(text: str, room: int) -> str:
    if not isinstance(text, Message):
        return without_middle(text, room)
    values = {name: _at_most(inner, room) for name, inner in text.values.items()}
    return text if values == text.values else Message(text.key, text.template, **values)


def without_middle(text: str, room: int) -> str:
    """Both ends say most: a path's folder and its file, a tensor's block and its part."""
    ends = (room - 3) // 2
    return text if len(text) <= room else f"{text[:ends]}...{text[-ends:]}"


def _first_of(items: Sequence[str], room: int) -> list[str]:
    kept: list[str] = []
    used = 0
    for item in items:
        short = _text_at_most(item, room)
        used += len(short) + 2  # the comma and its space
        if kept and used > room:
            return [*kept, count_more(len(items) - len(kept))]
        kept.append(short)
    return kept


def _again(kind: type[Refusal], key: str, template: str, values: dict[str, Value]) -> Refusal:
    return kind(key, template, **values)
