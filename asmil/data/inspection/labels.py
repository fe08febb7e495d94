"""Figures of a label table: what its columns hold, which slides they are about, and the outcome if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd

from asmil.data.tables.names import find_id_column
from asmil.data.tables.outcomes import EVENT, TimeUnit, medians
from asmil.errors import ConfigError

__all__ = [
    "ColumnFigures",
    "GroupFigures",
    "LabelFigures",
    "OutcomeFigures",
    "summarise_labels",
]

MAX_CLASSES = 12
_GROUP_NAMES = ("patient", "patient_id", "case", "case_id", "group", "submitter_id")


@dataclass(frozen=True)
class ColumnFigures:
    """One column.

    Attributes:
        name: Its name.
        kind: `classes` with a few values, `numbers`, `dates`, or `names`.
        missing: Rows without a value.
        distinct: Different values.
        counts: Rows per value, for classes.
        low: Smallest number.
        median: Median number.
        high: Largest number.
    """

    name: str
    kind: str
    missing: int
    distinct: int
    counts: dict[str, int] | None = None
    low: float | None = None
    median: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class GroupFigures:
    """Patients, or whatever else must not be split.

    Attributes:
        column: The column.
        groups: How many there are among the stored slides.
        slides_per_group: How many groups have 1, 2, … stored slides.
        slides_without: Stored slides without a group.
    """

    column: str
    groups: int
    slides_per_group: dict[int, int]
    slides_without: int


@dataclass(frozen=True)
class OutcomeFigures:
    """A survival outcome over the units that are followed: groups if there are some, slides otherwise.

    Attributes:
        units: How many are followed.
        events: How many of them have an event.
        event_rate: Their share.
        time_column: The column of times.
        time_unit: Unit of the times; None if the name of the column does not say.
        median_follow_up: Reverse Kaplan-Meier; None where it is not reached.
        median_survival: Kaplan-Meier; None where it is not reached.
    """

    units: int
    events: int
    event_rate: float
    time_column: str
    time_unit: str | None
    median_follow_up: float | None
    median_survival: float | None


@dataclass(frozen=True)
class LabelFigures:
    """The label table of a store.

    Attributes:
        rows: Its rows.
        id_column: The column that holds slide ids; None if none does.
        labels_without_bag: Ids of the table that are not stored.
        bags_without_label: Stored slides that are not in the table.
        columns: Every column, over the rows of stored slides.
        groups: Patients, if their column is known.
        outcome: The survival outcome, if there is one.
    """

    rows: int
    id_column: str | None
    labels_without_bag: tuple[str, ...]
    bags_without_label: tuple[str, ...]
    columns: tuple[ColumnFigures, ...]
    groups: GroupFigures | None
    outcome: OutcomeFigures | None


def summarise_labels(table: pd.DataFrame, slide_ids: Sequence[str], *, group_column: str | None = None) -> LabelFigures:
    """Figures of a label table.

    Conversion stores an outcome as `event` and `time_days`, `time_months` or `time_years`; the outcome is looked for
    under these names. Groups are looked for under the usual names of a patient column, unless one is given.

    Args:
        table: The table.
        slide_ids: The stored slides.
        group_column: The column of patients.

    Raises:
        ConfigError: There is no such column.
    """
    if group_column is not None and group_column not in table.columns:
        known = ", ".join(map(str, table.columns))
        raise ConfigError(f"--group-column {group_column}: the label table has no such column; it has: {known}")
    id_column = find_id_column(table, slide_ids)
    stored = table
    without_bag: tuple[str, ...] = ()
    without_label = tuple(slide_ids)
    if id_column is not None:
        ids = table[id_column].astype(str)
        is_stored = ids.isin(set(slide_ids))
        stored = table[is_stored]
        without_bag = tuple(ids[~is_stored])
        labelled = set(ids)
        without_label = tuple(slide_id for slide_id in slide_ids if slide_id not in labelled)
    column = group_column or next((name for name in table.columns if str(name).lower() in _GROUP_NAMES), None)
    return LabelFigures(
        rows=len(table),
        id_column=id_column,
        labels_without_bag=without_bag,
        bags_without_label=without_label,
        columns=tuple(_column(str(name), stored[name], str(name) in (id_column, column)) for name in table.columns),
        groups=None if column is None else _groups(column, stored[column]),
        outcome=_outcome(stored, column),
    )


def _column(name: str, values: pd.Series, is_name: bool) -> ColumnFigures:
    present = values.dropna()
    distinct = int(present.astype(str).nunique())
    missing = len(values) - len(present)
    is_number = pd.api.types.is_numeric_dtype(present.dtype) and not pd.api.types.is_bool_dtype(present.dtype)
    is_whole = not is_number or bool((present.to_numpy(np.float64) % 1 == 0).all())
    if not is_name and is_whole and 0 < distinct <= min(MAX_CLASSES, max(2, len(present) // 2)):
        counts = present.value_counts().sort_index(key=lambda index: index if is_number else index.astype(str))
        return ColumnFigures(name, "classes", missing, distinct, {_shown(k): int(n) for k, n in counts.items()})
    if not is_name and is_number and len(present):
        low, median, high = (float(value) for value in np.quantile(present.to_numpy(np.float64), [0, 0.5, 1]))
        return ColumnFigures(name, "numbers", missing, distinct, None, low, median, high)
    is_date = pd.api.types.is_datetime64_any_dtype(present.dtype)
    return ColumnFigures(name, "dates" if is_date else "names", missing, distinct)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _groups(column: str, values: pd.Series) -> GroupFigures:
    present = values.dropna().astype(str)
    per_group = present.value_counts().value_counts().sort_index()
    return GroupFigures(
        column=column,
        groups=int(present.nunique()),
        slides_per_group=dict(zip(per_group.index.astype(int).tolist(), per_group.tolist(), strict=True)),
        slides_without=len(values) - len(present),
    )


def _outcome(stored: pd.DataFrame, group: str | None) -> OutcomeFigures | None:
    times = {f"time_{unit}": unit for unit in get_args(TimeUnit)}
    time = next((name for name in stored.columns if name in times), None)
    if time is None or EVENT not in stored.columns:
        return None
    units = stored if group is None else stored[stored[group].isna() | ~stored[group].duplicated()]
    both = units[[EVENT, time]].apply(pd.to_numeric, errors="coerce").dropna()
    event_B, time_B = both[EVENT].to_numpy(np.float64), both[time].to_numpy(np.float64)
    if not len(both) or not np.isin(event_B, (0, 1)).all():
        return None
    follow_up, survival = medians(time_B, event_B)
    return OutcomeFigures(
        units=len(both),
        events=int(event_B.sum()),
        event_rate=float(event_B.mean()),
        time_column=time,
        time_unit=times[time],
        median_follow_up=follow_up,
        median_survival=survival,
    )
