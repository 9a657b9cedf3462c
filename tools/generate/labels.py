"""What an input or output is called on the node, in English. Its id is the workflow's and never changes.

A label is the id with a capital and spaces for underscores. Here stand the ids of which a designer would not understand
that, and units.
"""
LABELS = {
    "allow_extra": "Allow other text",
    "bottom": "Bottom (px)",
    "bullets": "Bullet points",
    "canvas": "Canvas size",
    "cfg": "CFG",
    "cfg_end": "CFG end",
    "cfg_start": "CFG start",
    "clip": "CLIP",
    "context": "Context around the mask",
    "enabled": "Use the enhancer",
    "feather": "Feather (px)",
    "files": "File types",
    "follow_proposal": "Use the proposed ratio",
    "grid_guard": "Avoid the 1024 grid",
    "height": "Height (px)",
    "kind": "Kind of page",
    "left": "Left (px)",
    "letter_height": "Letter height (px)",
    "letters": "Typeset letters as reference",
    "lora": "LoRA",
    **{f"lora_{row}": f"LoRA {row}" for row in range(2, 9)},
    "max_tokens": "Max tokens (0 = official)",
    "notes": "Speaker notes",
    "page": "Page ratio",
    "part": "Edited crop",
    "part_mask": "Mask of the crop",
    "picture": "Picture description",
    "prefix": "KV cache",
    "quoted": "Text in quotes",
    "rgba": "Image (RGBA)",
    "right": "Right (px)",
    "samples": "Latent",
    "size": "Size class",
    "source": "Source line",
    "texts": "Texts of the pages",
    "top": "Top (px)",
    "transparent": "Transparent background",
    "vae": "VAE",
    "vae_peak": "VRAM for VAE (GiB, 0 = automatic)",
    "variant": "Base or Turbo",
    "vision_projector": "Vision projector (GGUF)",
    "vram_for_weights": "VRAM for weights (GiB, 0 = automatic)",
    "width": "Width (px)",
}


def label(name: str) -> str:
    """Names of types, such as MODEL, stay as they are."""
    return LABELS.get(name) or (name if name.isupper() else name[:1].upper() + name[1:].replace("_", " "))
