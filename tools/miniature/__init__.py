"""How the miniature in assets/miniature was made: its pictures, its prompts, its training."""
