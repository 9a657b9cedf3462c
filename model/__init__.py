"""Qwen-Image in plain PyTorch: nothing in this package knows ComfyUI. Its rooms; each imports only earlier ones:

runtime, checkpoints, images   what a network runs on; files; pixels. They know no family
language, qwen_image_2         language models, described; a family of networks, which knows no other family
"""
