"""The only place that builds ComfyUI objects: MODEL, CLIP and VAE out of checkpoints."""
