"""Quantized weights in ComfyUI's layers: formats, conversion while loading, saving, GGUF."""
