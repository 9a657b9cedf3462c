"""Presets: values of a node's inputs under a name, one JSON file each in the user's folder. Nothing is overwritten."""
import json
import os
import re
import unicodedata
from itertools import islice
from pathlib import Path

from ... import atomic
from ...messages import Message, Refusal

FOLDER = "qwen_image_2/presets"  # below a user's own; in it one folder for each class of nodes
SUFFIX = ".json"
MAX_NAME = 50  # characters: at four bytes each they still make a file name, of 255 bytes at most
MAX_PRESETS = 500
MAX_FILE = 512 * 1024  # bytes: more than what the route takes comes to, written with a line for each value
NAMED = 4
DASHES = " -"
# File names that Windows keeps for devices, whatever their ending.
DEVICES = re.compile(r"con|prn|aux|nul|(com|lpt)\d", re.IGNORECASE)


def checked_name(name: str) -> str:
    """The name as it is kept. Raises Refusal for what is none: with a dot or a slash it would be a path."""
    name = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(name) <= MAX_NAME or not all(_is_letter(letter) or letter in DASHES for letter in name):
        raise Refusal("preset_name", "A preset's name has 1 to {max} letters, digits, spaces and dashes. Choose such a "
                      "name.", max=MAX_NAME)
    if DEVICES.fullmatch(name):
        raise Refusal("preset_device", "Windows keeps the name {name} for a device. Choose another name for the "
                      "preset.", name=name)
    return name


def _is_letter(letter: str) -> bool:
    """A letter, a digit or a mark above or below one, in any script."""
    return unicodedata.category(letter)[0] in "LNM"


def names(folder: Path) -> list[str]:
    """The presets there are, in the order of the alphabet."""
    try:
        with os.scandir(folder) as entries:
            files = [Path(entry.name) for entry in islice(entries, 4 * MAX_PRESETS) if entry.is_file()]
    except OSError:  # nobody has saved one yet
        return []
    return sorted((path.stem for path in files if path.suffix == SUFFIX and _is_name(path.stem)),
                  key=str.casefold)[:MAX_PRESETS]


def _is_name(name: str) -> bool:
    try:
        return checked_name(name) == name
    except Refusal:
        return False


def read(folder: Path, name: str) -> dict:
    """The values of a preset. Raises Refusal."""
    name = checked_name(name)
    try:
        with (folder / f"{name}{SUFFIX}").open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise Refusal("preset_missing", "There is no preset {name} any more, or it cannot be opened. Choose another "
                      "one.", name=repr(name)) from error
    try:
        values = json.loads(content) if len(content) <= MAX_FILE else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise Refusal("preset_unreadable", "The file of the preset {name} is not one that this node has saved. Choose "
                      "another one.", name=repr(name))
    return values


def left_out(inputs: list[str]) -> Message:
    more = [f"+{len(inputs) - NAMED}"] if len(inputs) > NAMED else []
    return Message("preset_left_out", "Values that this node does not take were left out: {inputs}.",
                   inputs=[*(name[:40] for name in inputs[:NAMED]), *more])


def write(folder: Path, name: str, values: dict) -> str:
    """The name under which the values are kept now. Raises Refusal where it is taken, and WriteError."""
    name, there = checked_name(name), names(folder)
    if name.casefold() in map(str.casefold, there):  # many file systems take both for one
        raise Refusal("preset_taken", "There is a preset {name} already, and nothing was written. Choose another name.",
                      name=repr(name))
    if len(there) >= MAX_PRESETS:
        raise Refusal("preset_full", "There are {count} presets of this node, the most there can be. Remove files from "
                      "{folder} in ComfyUI's user folder.", count=len(there), folder=FOLDER)
    content = json.dumps(values, ensure_ascii=False, indent=1).encode()
    atomic.write_bytes(folder / f"{name}{SUFFIX}", content)
    return name
