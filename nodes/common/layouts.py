"""Layouts between nodes: their type, and how what is connected, written or drawn becomes one."""
from collections.abc import Sequence

from comfy_api.latest import io

from ...messages import Message, Refusal
from ...pages import layout as layouts
from ...pages.layout import Layout

LayoutType = io.Custom("QWEN_IMAGE_2_LAYOUT")


def layout_output(**options) -> io.Output:
    return LayoutType.Output(display_name="layout", tooltip="Boxes with texts, places and letters: for Layout.",
                             **options)


def layout_input(tooltip: str) -> io.Input:
    return io.MultiType.Input("layout", [LayoutType, io.Array], optional=True, tooltip=tooltip)


def as_layout(connected: Layout | Sequence, width: int, height: int) -> Layout:
    """What is connected: a layout, or core's elements on width x height. Raises Refusal."""
    return connected if isinstance(connected, Layout) else layouts.from_list(_listed(connected), width, height)


def layout_from(connected: Layout | Sequence | None, boxes: str, width: int, height: int
                ) -> tuple[Layout, list[Message]]:
    """The layout that is connected (or core's elements, on width x height) with the changes in `boxes`, or the one that
    `boxes` is by itself. Also what is to be said of it. Raises Refusal."""
    if connected is None:
        if not boxes.strip():
            raise _empty()
        found, lost = layouts.read(boxes, width, height), []
    else:
        found, lost = layouts.edited(as_layout(connected, width, height), boxes)
    if not found.boxes:
        raise _empty()
    return found, lost


def _listed(connected) -> Sequence:
    """ComfyUI's ARRAY may come from any node."""
    if not isinstance(connected, list | tuple):
        raise Refusal("layout_kind", "Layout is connected to something that is no layout. Connect a brief's layout, or "
                      "Elements of Create Bounding Boxes.")
    return connected


def _empty() -> Refusal:
    return Refusal("layout_empty", "The layout has no boxes. Connect a brief's layout, or write boxes as JSON.")
