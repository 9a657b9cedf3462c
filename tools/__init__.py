"""What people and tests use around the pack; nothing in here is imported by the pack itself.

`python -m tools.NAME` knows this folder as `tools`, everything else as `qwen_image_2.tools`: what a program takes from
the pack it imports as `qwen_image_2`, which is there in both cases.
"""
from .pack import load_pack

load_pack()
