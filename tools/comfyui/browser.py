"""A real Chromium, for the tests of the page and for screenshots of it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ..cli.console import say

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# A server on loopback is all that it talks to; --no-sandbox because containers have no user namespaces.
ARGUMENTS = ("--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update")
INSTALL_SECONDS = 300


def find(playwright) -> Path | None:
    """The browser that the variable CHROMIUM names, the system's, or the one that Playwright has installed."""
    named = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    path = Path(named or playwright.chromium.executable_path)
    return path if path.exists() else None


def launch(playwright):
    """A headless browser, or None where there is no Chromium."""
    path = find(playwright)
    return path and playwright.chromium.launch(executable_path=path, args=ARGUMENTS)


def provide() -> None:
    """Where there is no Chromium, get one, once: Debian's package for root, else Playwright's own (170 MB).

    The tests of the page say it if that could not be done.
    """
    if importlib.util.find_spec("playwright") is None:
        return
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        if find(playwright):
            return
    say("Fetching Chromium, once: the tests and the pictures of the page need it.")
    if not any(_run(*command) for command in _ways()):
        say("Chromium could not be fetched: install your system's package (Debian: chromium), or name one in CHROMIUM.")


def _ways() -> Iterator[tuple[str, ...]]:
    if shutil.which("apt-get") and os.geteuid() == 0:
        yield "sh", "-c", "apt-get update -q && apt-get install -q -y --no-install-recommends chromium"
    yield sys.executable, "-m", "playwright", "install", "--no-shell", "chromium"


def _run(*command: str) -> bool:
    settings = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(command, check=True, timeout=INSTALL_SECONDS, capture_output=True, env=settings)
    except (subprocess.SubprocessError, OSError):
        return False
    return True
