"""From instance rows to bags for the classic sets, with the checks that catch damaged and leaking copies.

In every format of these sets the bag's label is repeated on each instance. Copies circulate with a line lost, with the
label appended as a feature column, or under another set's name; each of these is refused or named here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asmil.data.sources.base import ReadOptions, SlideHeader, Source, SourceBag
from asmil.errors import DataError

__all__ = ["InstanceTable", "check_numbering", "open_classic"]


class _Shape(NamedTuple):
    bags: int
    positive: int
    instances: int
    features: int


_KNOWN_SETS = {
    "MUSK1": _Shape(92, 47, 476, 166),
    "MUSK2": _Shape(102, 39, 6598, 166),
    "FOX": _Shape(200, 100, 1320, 230),
    "TIGER": _Shape(200, 100, 1220, 230),
    "ELEPHANT": _Shape(200, 100, 1391, 230),
}
_WIDTHS_WITH_LABEL_COLUMN = {shape.features + 1 for shape in _KNOWN_SETS.values()}


@dataclass(frozen=True)
class InstanceTable:
    """All instances of a set in file order.

    Attributes:
        bag_ids: Bag of each of the N instances.
        labels_N: Bag label 0 or 1, repeated on each instance.
        features_ND: Float64 features.
    """

    bag_ids: Sequence[str]
    labels_N: np.ndarray
    features_ND: np.ndarray


def open_classic(path: Path, table: InstanceTable, options: ReadOptions, notes: Sequence[str] = ()) -> Source:
    """Check a table of instances and cut it into bags, in file order.

    Args:
        path: The file, to be named in errors.
        table: Its instances.
        options: Whether the last column is to be dropped.
        notes: Findings of the reader, put before those of the checks.

    Returns:
        One bag per id, with the label column `label`.

    Raises:
        DataError: No rows, rows of a bag apart, labels that differ inside a bag, a feature column that is the label,
            or the counts of a known set with instances lost.
    """
    if len(table.bag_ids) == 0:
        raise DataError(f"{path}: no instances; get an undamaged copy")
    starts = _bag_starts(path, table)
    _check_constant_labels(path, table, starts)
    table, column_note = _without_label_column(path, table, options)
    shape_note = _recognise(path, table, starts)
    spans = dict(zip((table.bag_ids[row] for row in starts), pairwise([*starts, len(table.bag_ids)]), strict=True))
    width = table.features_ND.shape[1]
    return Source(
        slides=tuple(SlideHeader(bag_id, stop - start, width) for bag_id, (start, stop) in spans.items()),
        read=partial(_read, table, spans),
        labels={bag_id: {"label": int(table.labels_N[start])} for bag_id, (start, _) in spans.items()},
        notes=(*notes, *column_note, shape_note),
    )


def check_numbering(path: Path, bags: Sequence[int], *, first: int) -> None:
    """Refuse bag numbers that do not run from `first` upwards, each bag's rows together.

    Args:
        path: The file, to be named in errors.
        bags: Bag number of each instance.
        first: Number of the first bag.

    Raises:
        DataError: A number is skipped, repeated later, or the first one is wrong.
    """
    previous = first
    for row, bag in enumerate(bags):
        if bag not in (previous, previous + 1) or (row == 0 and bag != first):
            raise DataError(
                f"{path}: bag {bag} at instance {row}; bags must be numbered from {first} without gaps and lie one "
                "after another: get an undamaged copy"
            )
        previous = bag


def _bag_starts(path: Path, table: InstanceTable) -> list[int]:
    ids = table.bag_ids
    starts = [row for row in range(len(ids)) if row == 0 or ids[row] != ids[row - 1]]
    seen: set[str] = set()
    for row in starts:
        if ids[row] in seen:
            raise DataError(
                f"{path}: bag {ids[row]!r} appears again at instance {row} after another bag; the rows of a bag must "
                "be contiguous: sort the file by bag, or get an undamaged copy"
            )
        seen.add(ids[row])
    return starts


def _check_constant_labels(path: Path, table: InstanceTable, starts: list[int]) -> None:
    for start, stop in zip(starts, [*starts[1:], len(table.bag_ids)], strict=True):
        labels = table.labels_N[start:stop]
        if (labels != labels[0]).any():
            row = start + int(np.argmax(labels != labels[0]))
            raise DataError(
                f"{path}: bag {table.bag_ids[start]!r} has label {labels[0]} at instance {start} and "
                f"{table.labels_N[row]} at instance {row}; it must be the same on all of them: get an undamaged copy"
            )


def _without_label_column(
    path: Path, table: InstanceTable, options: ReadOptions
) -> tuple[InstanceTable, tuple[str, ...]]:
    width = table.features_ND.shape[1]
    leaking = _label_columns(table)
    suspicious = width in _WIDTHS_WITH_LABEL_COLUMN or width - 1 in leaking
    if options.drop_last_column:
        if not suspicious:
            raise DataError(
                f"{path}: --drop-last-column was given, but the last of {width} feature columns is not the label; "
                "leave the option out"
            )
        table = replace(table, features_ND=table.features_ND[:, :-1])
        leaking = [column for column in leaking if column != width - 1]
    elif width in _WIDTHS_WITH_LABEL_COLUMN:
        raise DataError(
            f"{path}: {width} feature columns, one more than the {width - 1} of the published sets; copies of this "
            "width carry the label as their last column: give --drop-last-column to drop it"
        )
    if leaking:
        advice = "give --drop-last-column to drop it" if leaking == [width - 1] else "remove it from the file"
        raise DataError(f"{path}: feature column {leaking[0] + 1} of {width} equals the label on every row; {advice}")
    return table, (f"dropped feature column {width}: it is the label",) if options.drop_last_column else ()


def _label_columns(table: InstanceTable) -> list[int]:
    """Columns that take one value on all positive rows and another one on all negative rows."""
    positive_PD = table.features_ND[table.labels_N == 1]
    negative_ND = table.features_ND[table.labels_N == 0]
    if min(len(positive_PD), len(negative_ND)) < 2:
        return []
    constant_D = (positive_PD == positive_PD[0]).all(axis=0) & (negative_ND == negative_ND[0]).all(axis=0)
    return np.flatnonzero(constant_D & (positive_PD[0] != negative_ND[0])).tolist()


def _recognise(path: Path, table: InstanceTable, starts: list[int]) -> str:
    found = _Shape(len(starts), int(table.labels_N[starts].sum()), *table.features_ND.shape)
    counts = f"{found.bags} bags ({found.positive} positive), {found.instances} instances, {found.features} features"
    for name, known in _KNOWN_SETS.items():
        if found == known:
            return f"content is {name}: {counts}"
    near = [name for name, known in _KNOWN_SETS.items() if (known.bags, known.features) == (found.bags, found.features)]
    if near:
        expected = ", ".join(f"{name} {_KNOWN_SETS[name].positive}/{_KNOWN_SETS[name].instances}" for name in near)
        raise DataError(
            f"{path}: {counts}: bags and features of a known set, but positive bags/instances are {found.positive}/"
            f"{found.instances}, expected {expected}; the copy lost or changed rows: get an undamaged one"
        )
    return f"content is none of {', '.join(_KNOWN_SETS)}: {counts}"


def _read(table: InstanceTable, spans: Mapping[str, tuple[int, int]], bag_id: str) -> SourceBag:
    return SourceBag(table.features_ND[slice(*spans[bag_id])])
