"""Pixels: sizes, references, regions. No network."""
