"""Language models as ComfyUI's CLIP."""
