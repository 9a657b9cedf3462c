"""Inputs from outside with any content, one kind after the other: each is taken, or refused in the pack's own words."""
