"""The event log: one JSON line per event in the run directory, the source of every table and plot."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from asmil.storage import disk_problems

__all__ = ["EventLog", "read_events", "to_plain"]


class EventLog:
    """Appends events to a JSON-lines file. One writer per file; a line is written in one piece.

    A last line that a kill cut short is removed before the first event is added to it.

    Args:
        path: The file; its directory must exist.

    Raises:
        EnvironmentProblem: The file cannot be written; `write` raises it as well.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_problems(path, "be written"):
            _remove_torn_line(path)

    def write(self, event: str, /, **fields: Any) -> None:
        """Append one event with the current time."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **to_plain(fields)}, allow_nan=False)
        with disk_problems(self.path, "be written"), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _remove_torn_line(path: Path) -> None:
    content = path.read_bytes() if path.exists() else b""
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a log; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def to_plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as what JSON has."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain({name: item for name, item in asdict(value).items() if item is not None or name == "value"})
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
