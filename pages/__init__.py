"""Words and boxes on a page: briefs in, prompts and decks out, and what was read of a picture. No network, no torch."""
