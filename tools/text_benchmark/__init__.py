"""Does a checkpoint write what it is asked to write? See benchmarks/text.py."""
