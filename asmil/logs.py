"""What commands show of the library's log: facts about the data, and warnings."""

from __future__ import annotations

import logging

__all__ = ["show_log"]


def show_log() -> None:
    """Print the library's messages to standard error; other libraries' from warnings upwards."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("asmil", "tasks"):
        logging.getLogger(name).setLevel(logging.INFO)
