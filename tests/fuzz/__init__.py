"""Mutated files against the readers of foreign formats and of the store: `python -m tests.fuzz --help`."""
