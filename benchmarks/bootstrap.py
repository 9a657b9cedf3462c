"""Makes the pack importable as `qwen_image_2`: import this before anything of it.

The root folder goes on sys.path here, because no benchmark imports ComfyUI, whose `nodes` ours would hide.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.pack import load_pack  # noqa: E402

load_pack()
