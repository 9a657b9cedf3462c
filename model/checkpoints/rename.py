"""Names of the same tensors in two conventions, as tables that work in both directions; which tables, families know."""
import re
from collections.abc import Iterable

Pairs = Iterable[tuple[str, str]]


class KeyMap:
    """Names of the same tensors in two conventions: ours, and that of other files.

    starts: pairs (our start of a name, theirs), of which the first that matches is applied; a {field} is a number and
    comes over unchanged. leaves: pairs (ours, theirs) that are exchanged in those names of ours that contain `inside`.
    """

    def __init__(self, starts: Pairs, leaves: Pairs = (), inside: str = ""):
        starts = list(starts)
        self._to = [(_pattern(ours), _replacement(theirs)) for ours, theirs in starts]
        self._back = [(_pattern(theirs), _replacement(ours)) for ours, theirs in starts]
        # At once, because a file may hold 100,000 names that no rule knows.
        self._ours, self._theirs = (_any_of(names) for names in zip(*starts, strict=True))
        self._leaves, self._inside = list(leaves), inside

    def to(self, name: str) -> str:
        """Our name of a tensor -> its name in their files."""
        moved = _moved(name, self._to) if self._ours.match(name) else name
        if self._inside in name:
            for ours, theirs in self._leaves:
                moved = moved.replace(ours, theirs)
        return moved

    def back(self, name: str) -> str:
        """The inverse of `to`. A name that is ours already comes back unchanged."""
        if self._ours.match(name):
            return name
        moved = _moved(name, self._back) if self._theirs.match(name) else name
        if self._inside in moved:
            for ours, theirs in self._leaves:
                moved = moved.replace(theirs, ours)
        return moved


def _pattern(start: str) -> re.Pattern:
    return re.compile("^" + re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(start)))


def _any_of(starts: Iterable[str]) -> re.Pattern:
    return re.compile("|".join(re.sub(r"\\{\w\\}", r"\\d+", re.escape(start)) for start in starts))


def _replacement(start: str) -> str:
    return re.sub(r"\{(\w)\}", r"\\g<\1>", start)


def _moved(name: str, rules: list[tuple[re.Pattern, str]]) -> str:
    """By the first rule whose pattern matches."""
    for pattern, replacement in rules:
        moved, count = pattern.subn(replacement, name)
        if count:
            return moved
    return name
