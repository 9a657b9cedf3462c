"""The pack's own folder in the user's cache. Nothing but the standard library, so that the tools can ask too."""
import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Where files lie that can be made again; XDG_CACHE_HOME moves it on every system."""
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base.absolute() / "qwen-image-2"
