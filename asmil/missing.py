"""Words by which tables say that a value is not known."""

from __future__ import annotations

from typing import Any

__all__ = ["MISSING_WORDS", "is_missing"]

MISSING_WORDS = frozenset(
    {"", "na", "n/a", "nan", "none", "null", "unknown", "not available", "[not available]", "[unknown]", "#n/a"}
)


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing, not a number, or one of the words, in any case and among spaces.

    Example:
        >>> [is_missing(cell) for cell in (None, float("nan"), " [Not Available]", "G3", 0)]
        [True, True, True, False, False]
    """
    return value is None or value != value or str(value).strip().lower() in MISSING_WORDS
