"""The networks of Qwen-Image 1.x."""
