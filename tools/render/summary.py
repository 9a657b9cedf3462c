"""What came out of a render: one line while it runs, summary.json, and contact_sheet.html with thumbnails."""

from __future__ import annotations

import html
import io
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from qwen_image_2 import atomic

from .journal import DONE

SUMMARY, SHEET, THUMBNAILS = "summary.json", "contact_sheet.html", "thumbnails"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
SIDE = 256  # pixels of a thumbnail
QUIET = 10.0  # seconds between two lines of progress in a pipe or file
RIGHT = "right"  # status of a line that Text Check has found as it should be
HEAD = """<!doctype html><html><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px sans-serif; margin: 24px; background: #f4f4f4; color: #222 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 16px }}
figure {{ margin: 0; padding: 8px; background: #fff; border: 1px solid #ddd; overflow-wrap: anywhere }}
img {{ max-width: 100%; max-height: 256px; display: block; margin: 0 auto 6px;
background: repeating-conic-gradient(#ddd 0 25%, #fff 0 50%) 0 0 / 16px 16px }}
.failed {{ border-color: #c00 }} .failed b, .wrong {{ color: #c00 }} small {{ color: #666 }}
</style></head><body><h1>{title}</h1><p>{counts}</p><main>
"""


class Line:
    """Rows done, failed and left, rows a minute, and the time left: one line that is rewritten, or one now and then."""

    def __init__(self) -> None:
        self.rewrites, self.shown = sys.stdout.isatty(), 0.0

    def __call__(self, counts) -> None:
        now = time.monotonic()
        if now - self.shown < (0.2 if self.rewrites else QUIET) and counts.left:
            return
        self.shown = now
        width = shutil.get_terminal_size().columns - 1
        text = progress(counts)
        if self.rewrites:
            print(f"\r{text[:width].ljust(width)}", end="", flush=True)
        else:
            print(text, flush=True)

    def end(self) -> None:
        if self.rewrites and self.shown:
            print(flush=True)


def progress(counts) -> str:
    done = counts.before + counts.drawn
    text = f"{done} of {counts.total} rows done, {counts.failed} failed, {counts.left} left"
    speed = counts.per_minute
    if not counts.drawn + counts.failed:
        return text
    left = f", {duration(60 * counts.left / speed)} to go" if counts.left else ""
    return f"{text}, {speed:.1f} rows a minute{left}"


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def thumbnail(folder: Path, name: str) -> None:
    """A small JPEG of a picture, for the contact sheet. Raises WriteError."""
    if Path(name).suffix.lower() not in PICTURES:
        return
    with Image.open(folder / name) as picture:
        small = picture.convert("RGBA")
        small.thumbnail((SIDE, SIDE))
    page = Image.new("RGB", small.size, "white")
    page.paste(small, (0, 0), small)
    content = io.BytesIO()
    page.save(content, "JPEG", quality=85)
    atomic.write_bytes(folder / THUMBNAILS / f"{name}.jpg", content.getvalue())


def write(folder: Path, workflow: str, table: str, entries: Iterable[dict], counts, workers: dict) -> None:
    """Both files, of the rows that have an entry in the journal. Raises WriteError."""
    entries = sorted(entries, key=lambda entry: entry["row"])
    failed = [{"row": entry["row"], "message": entry["message"]} for entry in entries if entry["state"] != DONE]
    summary = {"workflow": workflow, "table": table, "rows": counts.total, "done": counts.before + counts.drawn,
               "drawn_in_this_run": counts.drawn, "failed": failed, "left": counts.left,
               "seconds": round(time.monotonic() - counts.begin, 1),
               "rows_per_minute": round(counts.per_minute, 2), "workers": workers}
    if checked := [line for entry in entries for line in entry.get("lines", ()) if line["expected"]]:
        summary["text_check"] = {"expected_lines": len(checked),
                                 "found_lines": sum(line["status"] == RIGHT for line in checked)}
    atomic.write_bytes(folder / SUMMARY, json.dumps(summary, ensure_ascii=False, indent=1).encode("utf-8", "replace"))
    atomic.write_by(folder / SHEET, lambda file: [file.write(part.encode("utf-8", "replace"))
                                                  for part in _page(folder, f"{workflow}, {table}", entries, counts)])


def _page(folder: Path, title: str, entries: list[dict], counts) -> Iterator[str]:
    yield HEAD.format(title=html.escape(title), counts=html.escape(progress(counts)))
    for entry in entries:
        yield _failed(entry) if entry["state"] != DONE else _done(folder, entry)
    yield "</main></body></html>\n"


def _failed(entry: dict) -> str:
    return f'<figure class="failed"><b>Row {entry["row"]}</b><br>{html.escape(entry["message"])}</figure>\n'


def _done(folder: Path, entry: dict) -> str:
    pictures = "".join(_picture(folder, name) for name in entry["files"])
    lines = [line for line in entry.get("lines", ()) if line["expected"]]
    checked = ""
    if lines:
        right = sum(line["status"] == RIGHT for line in lines)
        wrong = "".join(f'<br><span class="wrong">{html.escape(line["expected"])} &rarr; '
                        f'{html.escape(line["found"] or "nothing")}</span>'
                        for line in lines if line["status"] != RIGHT)
        checked = f"<br>{right} of {len(lines)} lines found{wrong}"
    return f'<figure>{pictures}<small>Row {entry["row"]}, {entry["seconds"]:.1f} s</small>{checked}</figure>\n'


def _picture(folder: Path, name: str) -> str:
    link, small = quote(name), f"{THUMBNAILS}/{name}.jpg"
    shown = f'<img loading="lazy" src="{quote(small)}" alt="">' if (folder / small).is_file() else ""
    return f'<a href="{link}">{shown}{html.escape(name)}</a><br>'
