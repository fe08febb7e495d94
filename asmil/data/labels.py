"""Label tables: read so that ids stay text, and checked against the declared columns."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from asmil.data.config import LabelColumns
from asmil.data.tables.reading import TableFile
from asmil.errors import ConfigError, DataError

__all__ = ["first_of", "id_columns", "normalise_labels", "read_label_table"]

_ROLES = ("id", "group", "target", "time", "event", "censor", "split")


def first_of(names: Sequence[str], limit: int = 10) -> str:
    """The first names of a list, and how many there are more.

    Example:
        >>> first_of(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def id_columns(columns: LabelColumns) -> list[str]:
    """The columns whose values name something: slide and group."""
    return [columns.id] if columns.group is None else list(dict.fromkeys((columns.id, columns.group)))


def read_label_table(path: Path, columns: LabelColumns) -> pd.DataFrame:
    """Read a label file; slide and group ids are kept letter by letter (`007`, `NA` and `1e5` are names).

    Args:
        path: `.csv` (also zipped), `.tsv` or `.parquet`.
        columns: Which columns hold ids.

    Raises:
        DataError: The file is missing, of another kind, or cannot be parsed.
    """
    if not path.exists():
        raise DataError(f"{path}: no such label table; correct data.labels.table")
    return TableFile.open(path).frame(text=id_columns(columns))


def normalise_labels(
    frame: pd.DataFrame, columns: LabelColumns, source: str, *, options: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Check the declared columns and give ids as `str`, other values as plain numpy columns.

    Plain columns matter for restricted views: a categorical or Arrow-backed column drags the values of dropped rows
    along when it is pickled.

    Args:
        frame: The table as read.
        columns: Meaning of its columns.
        source: File or store, as named in errors.
        options: What the columns are called in errors, by field; None takes the keys under `data.labels`.

    Returns:
        A new frame with the same rows.

    Raises:
        ConfigError: A declared column is missing.
        DataError: Ids that are missing or are not text or whole numbers.
    """
    _check_columns(frame, columns, source, options)
    plain = {}
    for name in frame.columns:
        values = frame[name]
        if name in id_columns(columns):
            values = _as_ids(values, f"{source}: column {name!r}", may_be_missing=name != columns.id)
        plain[name] = _plain_values(values)
    return pd.DataFrame(plain, index=pd.RangeIndex(len(frame)))


def _plain_values(values: pd.Series) -> np.ndarray:
    if not pd.api.types.is_extension_array_dtype(values.dtype):
        return values.to_numpy()
    if pd.api.types.is_numeric_dtype(values.dtype) and values.isna().any():
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    inferred = values.astype(object).infer_objects()
    if not pd.api.types.is_extension_array_dtype(inferred.dtype):
        return inferred.to_numpy()
    return np.array([None if pd.isna(value) else value for value in inferred], dtype=object)


def _check_columns(frame: pd.DataFrame, columns: LabelColumns, source: str, options: Mapping[str, str] | None) -> None:
    called = {field: f"data.labels.{field}" for field in LabelColumns.model_fields} | dict(options or {})
    declared = [(field, getattr(columns, field)) for field in _ROLES] + [("covariates", x) for x in columns.covariates]
    known = [str(column) for column in frame.columns]
    missing = [(field, name) for field, name in declared if name is not None and name not in known]
    if missing:
        hints = []
        for field, name in missing:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {first_of(known, limit=30)}"
            hints.append(f"{called[field]}: {source} has no column {name!r}; {hint}")
        raise ConfigError(" ".join(f"{hint}." if hint[-1] != "?" else hint for hint in hints).removesuffix("."))
    if "group" in frame.columns and columns.group != "group":
        how = "group: group" if options is None else f"{called['group']} group"
        raise ConfigError(
            f"{called['group']}: {source} has a column 'group' that is not declared as the group; declare it ({how}) "
            "or rename it"
        )


def _as_ids(values: pd.Series, where: str, *, may_be_missing: bool) -> pd.Series:
    missing = values.isna() | (values.astype(object) == "")
    if missing.any() and not may_be_missing:
        rows = [str(row) for row in np.flatnonzero(missing.to_numpy())]
        raise DataError(f"{where}: {len(rows)} rows have no id: row {first_of(rows)}; complete the table")
    kinds = {type(value) for value in values[~missing].tolist()}
    if not kinds <= {str, int}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(f"{where}: ids must be text or whole numbers, got {names}; write them as text")
    texts = [None if is_missing else str(value) for value, is_missing in zip(values, missing, strict=True)]
    return pd.Series(texts, dtype=object)
