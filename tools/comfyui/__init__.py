"""A ComfyUI server of our own, and its client."""
