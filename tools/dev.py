#!/usr/bin/env python3
"""Command line for people without a browser, and for tests.

    python tools/dev.py demo [--out FILE]          draw a poster, headless, and say what each stage took
    python tools/dev.py run API.json [...]         run any workflow in API format
    python tools/dev.py render API.json [...]      run a workflow for each row of a table, on one worker or many
    python tools/dev.py serve [--port N]           ComfyUI with this pack, for a browser
    python tools/dev.py quantize FILE [...]        make an int8, fp8 or 4-bit file of a checkpoint
    python tools/dev.py test [pytest arguments]    the test-suite
    python tools/dev.py bench [NAME] [...]         a benchmark
    python tools/dev.py make TARGET [...]          workflows, thumbnails, help pages or translations, from the code
    python tools/dev.py clean [--yes]              remove environments that are no longer used

The first command sets up what is needed in the user's cache folder; Python 3.11 with pip and venv is enough to start.
"""

import signal
import sys

if sys.version_info < (3, 11):
    sys.exit(f"Qwen-Image 2's tools need Python 3.11 or newer; this is {sys.version.split()[0]}.")

from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pack import load_pack

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until catch_signals: no traceback of Ctrl-C while modules are imported
load_pack()
from qwen_image_2.tools.cli import command_line  # noqa: E402

if __name__ == "__main__":
    command_line.catch_signals()
    sys.exit(command_line.main())
