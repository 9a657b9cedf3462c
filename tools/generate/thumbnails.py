"""Screenshots of the shipped workflows in the real front end: workflows/NAME.jpg, the template browser's pictures, and
for the README assets/screenshots/NAME.jpg.

    python tools/dev.py make thumbnails [--large FOLDER] [NAME ...]

Chromium is the system's (CHROMIUM names another one). --large also writes full-size PNGs, for a person to look at.
"""
import argparse
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .. import tiny
from ..cli.errors import UserError
from ..cli.output import require_writable, write_whole
from ..comfyui import browser
from ..comfyui.server import Server
from ..pack import ROOT
from .make import as_program, comfyui

FOLDER = ROOT / "workflows"
WINDOW = {"width": 2880, "height": 1620}  # smaller, and the front end leaves out text
THUMBNAIL_WIDTH, THUMBNAIL_QUALITY = 720, 85
README_NAMES = ("poster_brief", "edit_multi_reference", "repair_text")
README_FOLDER = ROOT / "assets" / "screenshots"
README_WIDTH, README_QUALITY = 1600, 70  # below 250 KB

# The front end's own object; what a person does with File > Open, without its dialog.
OPEN = "graph => window.app.loadGraphData(graph)"
# Show a box of the canvas in the middle of the window; returns where it then is on the page.
VIEW = """box => {
  const ds = window.app.canvas.ds, scale = Math.min((innerWidth - 140) / box[2], (innerHeight - 140) / box[3]);
  const left = (innerWidth - box[2] * scale) / 2 + 20, top = (innerHeight - box[3] * scale) / 2 + 10;
  const origin = window.app.canvas.canvas.getBoundingClientRect();
  ds.scale = scale;
  ds.offset[0] = (left - origin.left) / scale - box[0];
  ds.offset[1] = (top - origin.top) / scale - box[1];
  window.app.canvas.setDirty(true, true);
  return {x: left, y: top, width: box[2] * scale, height: box[3] * scale};
}"""
TITLE_HEIGHT = 30  # of a node, above its box
MARGIN = 12  # pixels of canvas around the graph


def bounding_box(graph: dict) -> tuple[float, float, float, float]:
    """Left, top, width and height of all groups and nodes."""
    boxes = [group["bounding"] for group in graph["groups"]] + [[*n["pos"], *n["size"]] for n in graph["nodes"]]
    left, top = min(b[0] for b in boxes), min(b[1] for b in boxes) - TITLE_HEIGHT
    return left, top, max(b[0] + b[2] for b in boxes) - left, max(b[1] + b[3] for b in boxes) - top


def screenshots(url: str, graphs: dict[str, dict]) -> dict[str, bytes]:
    """PNG of each graph, fitted into the window."""
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        chromium = browser.launch(playwright)
        if chromium is None:
            raise UserError("There is no Chromium: install your system's package, or name one in CHROMIUM.")
        page = chromium.new_page(viewport=WINDOW)
        page.goto(url)
        page.wait_for_function("window.app && window.app.graph && window.app.canvas", timeout=60_000)
        page.wait_for_timeout(3000)
        out = {name: _screenshot(page, graph) for name, graph in graphs.items()}
        chromium.close()
    return out


def _screenshot(page, graph: dict) -> bytes:
    page.evaluate(OPEN, graph)
    page.wait_for_timeout(1500)
    page.keyboard.press("Escape")
    clip = page.evaluate(VIEW, list(bounding_box(graph)))
    page.wait_for_timeout(1000)
    return page.screenshot(clip={"x": clip["x"] - MARGIN, "y": clip["y"] - MARGIN,
                                 "width": clip["width"] + 2 * MARGIN, "height": clip["height"] + 2 * MARGIN})


def smaller(png: bytes, width: int, quality: int) -> bytes:
    """A JPEG of that width."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()


def main(arguments: Sequence[str] = ()) -> None:
    there = sorted(path.stem for path in FOLDER.glob("*.json"))
    parser = argparse.ArgumentParser(prog="dev.py make thumbnails", description=__doc__.splitlines()[0])
    parser.add_argument("--large", type=Path, metavar="FOLDER", help="also write full-size PNGs there")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a workflow; all if none is given")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(there):
        raise UserError(f"There is no workflow {', '.join(sorted(unknown))}; there are: {', '.join(there)}.")
    if options.large:
        require_writable(options.large)
    names = options.names or there
    graphs = {name: json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    browser.provide()
    # Tiny weights under the official names, so that the page finds nothing missing.
    with tempfile.TemporaryDirectory() as folder:
        tiny.write(Path(folder))
        tiny.write_1(Path(folder))
        _write(Path(folder), graphs, options.large)


def _write(models: Path, graphs: dict[str, dict], large: Path | None) -> None:
    with Server(comfyui(), models=models) as server:
        for name, png in screenshots(server.url, graphs).items():
            write_whole(FOLDER / f"{name}.jpg", smaller(png, THUMBNAIL_WIDTH, THUMBNAIL_QUALITY))
            if name in README_NAMES:
                README_FOLDER.mkdir(exist_ok=True)
                write_whole(README_FOLDER / f"{name}.jpg", smaller(png, README_WIDTH, README_QUALITY))
            if large:
                write_whole(large / f"{name}.png", png)
            print(f"wrote workflows/{name}.jpg")


if __name__ == "__main__":
    as_program(lambda: main(sys.argv[1:]))
