"""Which fonts are offered: the user's files in ComfyUI's models/fonts, those of the system, and Pillow's own."""
import os
from functools import lru_cache
from pathlib import Path

import folder_paths

from ....pages import glyphs
from ....pages.page_fonts import Face, Fonts, gone

FOLDER = "fonts"  # of ComfyUI's models; extra_model_paths.yaml may name more under this key
# Newer versions of ComfyUI own that key and list .ttf and .otf alone: an entry of our own lists the same folders.
LISTED = "qwen_image_2_fonts"


def choices() -> dict[str, tuple[Path, int] | None]:
    """Name in the menu -> file and number of its face; None is the built-in font. The user's own come first."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    folder_paths.folder_names_and_paths[LISTED] = (
        folder_paths.folder_names_and_paths[FOLDER][0], set(glyphs.EXTENSIONS))
    found: dict[str, tuple[Path, int] | None] = {}
    for name in folder_paths.get_filename_list(LISTED):
        path = folder_paths.get_full_path(LISTED, name)
        if path is not None:
            found |= glyphs.named_faces(Path(path), name)
    return found | {glyphs.BUILT_IN: None} | {name: face for name, face in _of_the_system().items()
                                              if name not in found}


@lru_cache(maxsize=1)
def _of_the_system() -> dict[str, tuple[Path, int]]:
    """Looked for once: fonts that are installed later are offered after a restart."""
    found = {}
    for folder in glyphs.system_folders():
        for path in glyphs.font_files(folder):
            found |= glyphs.named_faces(path, path.name)
    return dict(sorted(found.items()))


def page_choices() -> list[str]:
    """Names in the menu of a typeset page, beside those of its own fonts."""
    return [name for name, face in choices().items() if face is not None]


def page_fonts(chosen: str) -> Fonts:
    """All fonts that a typeset page may draw letters from, the chosen one first."""
    return Fonts(tuple(Face(name, *face) for name, face in choices().items() if face is not None), chosen)


def resolve(name: str) -> tuple[Path, int] | None:
    """The face behind a name from `choices`. Raises ValueError for one that is no longer there."""
    there = choices()
    if name not in there:
        raise gone(name)
    return there[name]
