"""Sentences for the user that the page can say in other languages.

As a string a Sentence is English: logs, programs and other nodes need nothing else. It keeps what it was made of, so
that the page can look up its template in locales/<language>/main.json.
"""
from __future__ import annotations

from collections.abc import Sequence

Value = str | int | Sequence[str]  # the strings may be Sentences themselves


class Sentence(str):
    """A template such as "{count} of {most} pages", filled in. Lists are separated by commas.

    The template is written out where the Sentence is made: a test finds it there and asks for its translation.
    """

    template: str
    values: dict[str, Value]

    def __new__(cls, template: str, **values: Value):
        sentence = super().__new__(cls, template.format(**{name: _english(value) for name, value in values.items()}))
        sentence.template, sentence.values = template, values
        return sentence

    def __getnewargs_ex__(self):
        """For copies: a string's own way would take the filled-in text for a template."""
        return (self.template,), self.values


def counted(count: int, one: str, more: str) -> Sentence:
    """One of two templates with {count}, by the count."""
    return Sentence(one if count == 1 else more, count=count)


def joined(items: Sequence[str]) -> str:
    """With commas, and `and` before the last one; at least one item."""
    *some, last = items
    return Sentence("{some} and {last}", some=some, last=last) if some else last


def parts(said: Value):
    """As JSON: {"template", "values"}, a list, or what is the same in every language."""
    if isinstance(said, Sentence):
        return {"template": said.template, "values": {name: parts(value) for name, value in said.values.items()}}
    return said if isinstance(said, str | int) else [parts(one) for one in said]


def _english(value: Value) -> str | int:
    return value if isinstance(value, str | int) else ", ".join(value)
