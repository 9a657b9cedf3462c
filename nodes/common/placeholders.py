"""What a name of files may hold, as in core's Save Image: %date:yyyy-MM-dd% and %Node.widget%.

Core's page fills them in for its own nodes alone, and a program has no page: here the server does it. %width%,
%height%, %year% and so on are core's (folder_paths.get_save_image_path).
"""
import re
from collections.abc import Iterator
from datetime import datetime

PLACEHOLDER = re.compile("%([^%]+)%")
DATE = "date:"
# Case counts: MM is the month, mm the minute. Others than these stand for themselves.
DATE_PART = re.compile("y{2,4}|M{1,2}|d{1,2}|h{1,2}|m{1,2}|s{1,2}")
UNFIT = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')  # in a name, on one system or another
NAME_PROPERTY = "Node name for S&R"


def filled_in(prefix: str, graph: dict | None, page: dict | None, now: datetime) -> str:
    """The prefix with its dates and the values of the graph's nodes; what nobody knows stays as it is.

    graph: in API form, node id -> {"class_type", "inputs"}; page: the workflow as the page saves it, if one has sent
    it, which knows the names that people give to nodes.
    """
    def value(match: re.Match) -> str:
        text = match[1]
        if text.startswith(DATE):
            return DATE_PART.sub(lambda part: _date(part[0], now), text.removeprefix(DATE))
        node, _, widget = text.partition(".")
        found = next(_values(node, widget, graph or {}, page or {}), None)
        return match[0] if found is None else UNFIT.sub("_", found)

    return PLACEHOLDER.sub(value, prefix)


def _date(form: str, now: datetime) -> str:
    """Such as MM: of two digits."""
    if form[0] == "y":
        return {2: f"{now.year % 100:02}", 4: f"{now.year:04}"}.get(len(form), form)
    number = {"M": now.month, "d": now.day, "h": now.hour, "m": now.minute, "s": now.second}[form[0]]
    return str(number).zfill(len(form))


def _values(node: str, widget: str, graph: dict, page: dict) -> Iterator[str]:
    """What the widget holds on the nodes of that name, then on those of that title."""
    names = _names(page)
    named = [entry for id, entry in graph.items() if (names.get(id) or entry["class_type"]) == node]
    titled = [entry for entry in graph.values() if entry.get("_meta", {}).get("title") == node]
    for entry in (*named, *titled):
        value = entry["inputs"].get(widget)
        if isinstance(value, str | int | float):  # no link to another node
            yield _as_the_page_writes(value)


def _names(page: dict) -> dict[str, str]:
    """Node id -> the name that stands in its properties. The page's word is a stranger's: any part may be missing, or
    something else."""
    nodes = page.get("nodes") if isinstance(page, dict) else None
    entries = [entry for entry in (nodes if isinstance(nodes, list) else ()) if isinstance(entry, dict)]
    return {str(entry.get("id")): properties.get(NAME_PROPERTY) for entry in entries
            if isinstance(properties := entry.get("properties"), dict)}


def _as_the_page_writes(value: str | int | float) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
