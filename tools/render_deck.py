"""What another program shows of a deck: LibreOffice draws its pages, Poppler makes pictures of them.

    python -m tools.render_deck FILE.pptx [--out FOLDER]    # FOLDER/page-01.png, ...; FILE's name if not given

Both programs are the system's; without them the test that draws a deck is left out, and says what to install.
"""
import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from .cli.errors import UserError
from .cli.output import require_writable
from .generate.make import as_program

PROGRAMS = {"soffice": "LibreOffice", "pdftoppm": "Poppler"}
INSTALL = "apt install libreoffice-impress poppler-utils"
TIME_LIMIT = 300  # seconds for each program
DOTS_PER_INCH = 96  # a 16:9 page is 1280 pixels wide then


def missing() -> str | None:
    """What has to be installed first, as a sentence; None where nothing has."""
    lacking = [f"{name} ({program})" for program, name in PROGRAMS.items() if shutil.which(program) is None]
    return f"Not on this machine: {', '.join(lacking)}; on Debian and Ubuntu run {INSTALL}." if lacking else None


def render(deck: Path, folder: Path) -> list[Path]:
    """PNG files of all pages of a .pptx (or .pdf) file, in their order. Raises UserError."""
    if lacking := missing():
        raise UserError(lacking)
    if not deck.is_file():
        raise UserError(f"There is no file {deck}.")
    if any(folder.glob("page-*.png")):
        raise UserError(f"{folder} holds pages already: choose another folder.")
    require_writable(folder)
    with tempfile.TemporaryDirectory() as scratch:
        page_file = deck
        if deck.suffix.lower() != ".pdf":
            # Its own settings folder: LibreOffice runs once for each, and may be open on this machine.
            _run(["soffice", f"-env:UserInstallation={(Path(scratch) / 'settings').as_uri()}", "--headless",
                  "--convert-to", "pdf", "--outdir", scratch, deck])
            page_file = Path(scratch) / f"{deck.stem}.pdf"
            if not page_file.exists():
                raise UserError(f"LibreOffice could not open {deck.name}.")
        _run(["pdftoppm", "-png", "-r", DOTS_PER_INCH, page_file, folder / "page"])
    return sorted(folder.glob("page-*.png"))


def _run(command: list) -> None:
    try:
        subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} did not end within {TIME_LIMIT} s.") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"{command[0]} failed with exit code {error.returncode}.", error.stderr) from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    chosen = parser.parse_args()
    pages = render(chosen.file, chosen.out or Path(chosen.file.stem))
    print(f"{len(pages)} pages in {pages[0].parent}" if pages else "The deck has no pages.")


if __name__ == "__main__":
    as_program(main)
