"""Messages and refusals that the page can say in other languages.

In English each is plain text: logs, programs and other nodes need nothing else. It keeps its key and what it was filled
in with, so that the page can look the key up in locales/<language>/main.json.

Key and template are written out where a message is made, each key in one place only: tools/translations.py finds them
there. A number that needs a format is given as formatted text.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

Value = str | int | Sequence[str]  # the strings may be Messages themselves


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
    """A template, filled in. Raises KeyError for a name without a value."""

    def __new__(cls, key: str, template: str, /, **values: Value):
        message = super().__new__(cls, _filled(template, values))
        message._keep(key, template, values)
        return message

    def __getnewargs_ex__(self):
        """For copies: a string's own way would take the filled-in text for a key."""
        return (self.key, self.template), self.values


class Refusal(Translatable, ValueError):
    """What the user asked for cannot be done: why, and what to do instead. As text it is English."""

    def __init__(self, key: str, template: str, /, **values: Value):
        super().__init__(_filled(template, values))
        self._keep(key, template, values)

    @property
    def message(self) -> Message:
        return Message(self.key, self.template, **self.values)

    def __reduce__(self):
        """For copies: an exception's own way would take the filled-in text for a key."""
        return _again, (type(self), self.key, self.template, self.values)


def plural(key: str, count: int, one: str, more: str) -> Message:
    """One of two templates with {count}, by the count; their keys are `<key>.one` and `<key>.more`."""
    return Message(f"{key}.one", one, count=count) if count == 1 else Message(f"{key}.more", more, count=count)


def and_list(items: Sequence[str]) -> str:
    """With commas, and `and` before the last one; at least one item."""
    *some, last = items
    return Message("and_list", "{some} and {last}", some=some, last=last) if some else last


def reason(error: Exception) -> str:
    """What an exception says, to be filled in: a Refusal's Message, the text of any other."""
    return error.message if isinstance(error, Refusal) else str(error)


def to_json(value: Value):
    """A Message as its parts, a list, or what is the same in every language."""
    if isinstance(value, Translatable):
        return value.to_json()
    return value if isinstance(value, str | int) else [to_json(item) for item in value]


def _filled(template: str, values: Mapping[str, Value]) -> str:
    return template.format(**{name: value if isinstance(value, str | int) else ", ".join(value)
                              for name, value in values.items()})


def _again(kind: type[Refusal], key: str, template: str, values: dict[str, Value]) -> Refusal:
    return kind(key, template, **values)
