"""Reading label columns: what a task accepts in them, and messages that name the bags it does not."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from asmil.errors import ConfigError, DataError

__all__ = ["class_indices", "class_list", "class_names", "configured", "label_column", "name_some", "numbers"]


def configured(column: str | None, role: str, kind: str) -> str:
    """The name of a label column that the task needs.

    Args:
        column: What the configuration says.
        role: Key under `data.labels`.
        kind: Kind of the task, for the message.

    Returns:
        The column name.

    Raises:
        ConfigError: The configuration does not name the column.
    """
    if column is None:
        raise ConfigError(
            f"data.labels.{role}: required by task.kind {kind}, but missing; name the column of the table"
        )
    return column


def label_column(labels: pd.DataFrame, column: str, role: str) -> pd.Series:
    """One column of a label frame.

    Raises:
        DataError: The frame does not have it; the message names the nearest column.
    """
    if column in labels.columns:
        return labels[column]
    present = [str(name) for name in labels.columns]
    near = difflib.get_close_matches(column, present, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(present)}"
    raise DataError(f"data.labels.{role}: the label table has no column {column!r}; {hint}")


def numbers(labels: pd.DataFrame, column: str, role: str) -> np.ndarray:
    """A column as float64.

    Raises:
        DataError: The column is missing, or holds something that is not a finite number (bags named).
    """
    values = label_column(labels, column, role)
    as_float = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    broken = ~np.isfinite(as_float)
    if broken.any():
        raise DataError(
            f"label column {column!r} holds no finite number for {name_some(labels.index, broken)} "
            f"(first: {values[broken].tolist()[0]!r}); correct or remove these rows"
        )
    return as_float


def class_names(labels: pd.DataFrame, column: str, merge: Mapping[str, str] | None = None) -> list[str]:
    """The class of each row as text; whole numbers lose a decimal point, so that 1, 1.0 and "1" are one class.

    Args:
        labels: Label frame.
        column: Column of the class label.
        merge: Class to use in place of a label.

    Returns:
        One name per row.

    Raises:
        DataError: The column is missing, or some labels are missing or fractional numbers (bags named).
    """
    values = label_column(labels, column, "target")
    names = [_class_name(value) for value in values]
    broken = np.array([name is None for name in names], dtype=bool)
    if broken.any():
        raise DataError(
            f"label column {column!r} holds no class for {name_some(labels.index, broken)} (first: "
            f"{values[broken].tolist()[0]!r}); expected text or whole numbers, so correct or remove these rows"
        )
    return [(merge or {}).get(str(name), str(name)) for name in names]


def class_list(names: Sequence[str]) -> tuple[str, ...]:
    """The distinct classes, numbers in their order and before other text.

    Example:
        >>> class_list(["10", "9", "-1", "tumor"])
        ('-1', '9', '10', 'tumor')
    """
    return tuple(sorted(set(names), key=_class_order))


def class_indices(labels: pd.DataFrame, names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Index of each row's class.

    Args:
        labels: Label frame the names were read from.
        names: What `class_names` gave.
        classes: The known classes in their order.

    Returns:
        Int64, one per row.

    Raises:
        DataError: A class that is not known (bags named).
    """
    known = {name: index for index, name in enumerate(classes)}
    broken = np.array([name not in known for name in names], dtype=bool)
    if broken.any():
        unknown = sorted({name for name in names if name not in known})
        raise DataError(
            f"class {', '.join(map(repr, unknown))} of {name_some(labels.index, broken)} is not one of "
            f"{', '.join(map(repr, classes))}; list it under task.classes, merge it, or remove these bags"
        )
    return np.array([known[name] for name in names], dtype=np.int64)


def name_some(bag_ids: pd.Index, chosen: np.ndarray) -> str:
    """`bag 'a'`, or the number of chosen bags with the first five of them, for a message."""
    named = [repr(str(bag_id)) for bag_id in bag_ids[chosen][:5]]
    count = int(chosen.sum())
    if count == 1:
        return f"bag {named[0]}"
    return f"{count} bags ({', '.join(named)}{', ...' if count > len(named) else ''})"


def _class_name(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool | np.bool_ | int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return None


def _class_order(name: str) -> tuple[bool, int, str]:
    is_number = name.removeprefix("-").isdecimal()
    return (not is_number, int(name) if is_number else 0, name)
