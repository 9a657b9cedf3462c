"""ComfyUI's language models, described: sizes, detection, names of tensors. No modules."""
