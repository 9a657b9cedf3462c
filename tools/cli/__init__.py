"""The command line: dev.py, its commands and the environment that they run in."""
