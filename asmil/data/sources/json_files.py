"""Reading the small JSON files that some formats keep beside their features."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asmil.data.sources.base import ContentError
from asmil.errors import DataError

__all__ = ["number_in", "read_json"]

MAX_JSON_BYTES = 4 << 20


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is no such file.

    Raises:
        DataError: It is larger than 4 MiB, or no JSON.
    """
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        content = stream.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise DataError(f"{path}: more than {MAX_JSON_BYTES} bytes of JSON; files of this kind hold a few kilobytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({str(error)[:160]}); it is cut or damaged: make or copy it again") from None


def number_in(path: Path, found: Mapping[str, Any], name: str) -> float | None:
    """A positive number of a JSON object; None if it is missing or null.

    Raises:
        ContentError: It is something else.
    """
    value = found.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ContentError(f"{path}: {name} is {value!r}, expected a number above 0")
    return float(value)
