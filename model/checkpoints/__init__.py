"""Files: names, shapes, formats, and what is written. Knows no family."""
