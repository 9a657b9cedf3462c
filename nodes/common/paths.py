"""Names of files that nodes write below ComfyUI's output folder."""
import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path, PureWindowsPath

import folder_paths
from comfy_api.latest import io

from ... import atomic
from ...messages import Refusal
from . import placeholders

# What a node must ask ComfyUI for, to fill in the placeholders of a name.
HIDDEN = (io.Hidden.prompt, io.Hidden.extra_pnginfo)


def name_of(node, prefix: str) -> str:
    """The name that a user has chosen on the node (a ComfyNode class that asks for HIDDEN), its placeholders filled
    in. Raises Refusal for one that is none, before and after."""
    check_name(prefix)
    hidden = node.hidden  # None where a program calls the node by itself, without a graph
    sent = hidden.extra_pnginfo if hidden else None  # whatever a client has sent
    page = sent.get("workflow") if isinstance(sent, dict) else None
    filled = placeholders.filled_in(prefix, hidden.prompt if hidden else None, page, datetime.now())
    check_name(filled)
    return filled


def check_name(prefix: str | None) -> None:
    """Raises ValueError for a name that is none, or that would leave ComfyUI's output folder on any system."""
    if prefix is None:
        return
    path = PureWindowsPath(prefix)  # knows both kinds of slashes
    if path.anchor or ".." in path.parts:
        raise Refusal("name_outside", "{name} points outside ComfyUI's output folder. Choose a name, or subfolders and "
                      "a name.", name=repr(prefix[:80]))
    if not path.name.strip(". ") or prefix.endswith(("/", "\\")) or not prefix.isprintable():
        raise Refusal("name_invalid", "{name} is not a valid file name. Choose one such as talk, or talks/harbour.",
                      name=repr(prefix[:80]))


@contextlib.contextmanager
def new_paths(prefix: str, suffixes: Sequence[str], width: int = 0, height: int = 0) -> Iterator[list[Path]]:
    """Unused names below the output folder, one for each suffix with the same number, as core's savers choose them;
    no other process gets them before the block ends. width, height: pixels, for %width% and %height%.

    Raises Refusal for a name that would be outside, WriteError where the system refuses.
    """
    check_name(prefix)
    with atomic.write_errors(Path(prefix)):
        place, name, number, _, _ = folder_paths.get_save_image_path(
            prefix, folder_paths.get_output_directory(), width, height)
    with atomic.numbered(Path(place), name, number, suffixes) as paths:
        yield paths


def saved(path: Path) -> dict[str, str]:
    """As core's savers name what they wrote, for programs that fetch it."""
    below = path.parent.relative_to(folder_paths.get_output_directory())
    return {"filename": path.name, "subfolder": "" if below == Path() else below.as_posix(), "type": "output"}
