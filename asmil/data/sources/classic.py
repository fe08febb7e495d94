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

from asmil.data.sources.base import ContentError, ReadOptions, SlideHeader, Source, SourceBag
from asmil.errors import DataError

__all__ = ["InstanceTable", "check_numbering", "check_table_size", "class_labels", "ids_from_zero", "open_classic"]

MAX_TABLE_BYTES = 4 << 30
_MAX_DISAGREEING_BAGS = 0.05
_SHOWN_BAGS = 10
_SCALING_TOLERANCE = 1e-3


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
        instance_labels_N: Truth 0 or 1 of each instance, where the file has it.
    """

    bag_ids: Sequence[str]
    labels_N: np.ndarray
    features_ND: np.ndarray
    instance_labels_N: np.ndarray | None = None


def open_classic(path: Path, table: InstanceTable, options: ReadOptions, notes: Sequence[str] = ()) -> Source:
    """Check a table of instances and cut it into bags, in file order.

    Args:
        path: The file, to be named in errors.
        table: Its instances.
        options: Whether the last column is to be dropped.
        notes: Findings of the reader, put before those of the checks.

    Returns:
        One bag per id, with the label column `label`; notes say which known set it is, and whether statistics of the
        whole set are baked into the features.

    Raises:
        DataError: No rows, rows of a bag apart, labels that differ inside a bag, a feature column that is the label,
            or the counts of a known set with instances lost.
    """
    if len(table.bag_ids) == 0:
        raise DataError(f"{path}: no instances; get an undamaged copy")
    if table.features_ND.shape[1] == 0:
        raise ContentError(f"{path}: instances without features; get an undamaged copy")
    starts = _bag_starts(path, table)
    _check_constant_labels(path, table, starts)
    table, column_note = _without_label_column(path, table, starts, options)
    shape_note = _recognise(path, table, starts)
    spans = dict(zip((table.bag_ids[row] for row in starts), pairwise([*starts, len(table.bag_ids)]), strict=True))
    width = table.features_ND.shape[1]
    truth = table.instance_labels_N is not None
    return Source(
        slides=tuple(
            SlideHeader(bag_id, stop - start, width, has_instance_labels=truth)
            for bag_id, (start, stop) in spans.items()
        ),
        read=partial(_read, table, spans),
        labels={bag_id: {"label": int(table.labels_N[start])} for bag_id, (start, _) in spans.items()},
        notes=(*notes, *column_note, shape_note, *_baked_in(table.features_ND)),
    )


def class_labels(path: Path, name: str, values_N: np.ndarray, allowed: Sequence[tuple[int, int]]) -> np.ndarray:
    """Labels 0 or 1 from those of a file.

    Args:
        path: The file, to be named in errors.
        name: The labels' name in the file.
        values_N: The labels as numbers.
        allowed: The pairs (negative, positive) that this format uses; one pair must cover all values.

    Raises:
        DataError: Other values, or values of two pairs.
    """
    for negative, positive in allowed:
        if np.isin(values_N, (negative, positive)).all():
            return np.array(values_N == positive, dtype=np.int64)
    found = ", ".join(f"{value:g}" for value in np.unique(values_N)[:_SHOWN_BAGS])
    expected = " or ".join(f"{positive} and {negative}" for negative, positive in allowed)
    lost = "; a 0 is a label that was never stored" if 0 in values_N and (0, 1) not in allowed else ""
    raise ContentError(f"{path}: {name} holds {found}, expected {expected}{lost}: get an undamaged copy")


def ids_from_zero(path: Path, numbers_N: np.ndarray) -> tuple[list[str], tuple[str, ...]]:
    """Bag ids as in the `.svm` copies of the same sets, from bag numbers that start at 1.

    Returns:
        The id of each instance, and a note that says so.

    Raises:
        DataError: Numbers that are not whole, or do not run from 1 without gaps.
    """
    if not ((np.abs(numbers_N) < 2.0**53) & (np.floor(numbers_N) == numbers_N)).all():  # false for NaN, too
        raise ContentError(f"{path}: the bag numbers are not whole numbers; get an undamaged copy")
    whole_N = numbers_N.astype(np.int64)
    check_numbering(path, whole_N.tolist(), first=1)
    return [str(number - 1) for number in whole_N.tolist()], ("bag numbers from 1 became ids from 0",)


def check_table_size(path: Path, num_instances: int, num_features: int) -> None:
    """Refuse to build a table of features that would not fit.

    Raises:
        DataError: More than 4 GiB as float64.
    """
    num_bytes = num_instances * num_features * 8
    if num_bytes > MAX_TABLE_BYTES:
        raise DataError(
            f"{path}: {num_instances} instances of {num_features} features are {num_bytes} bytes, the cap is "
            f"{MAX_TABLE_BYTES}; this is no classic set, or a damaged one"
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
            raise ContentError(
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
            raise ContentError(
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
            raise ContentError(
                f"{path}: bag {table.bag_ids[start]!r} has label {labels[0]} at instance {start} and "
                f"{table.labels_N[row]} at instance {row}; it must be the same on all of them: get an undamaged copy"
            )


def _without_label_column(
    path: Path, table: InstanceTable, starts: list[int], options: ReadOptions
) -> tuple[InstanceTable, tuple[str, ...]]:
    width = table.features_ND.shape[1]
    leaking = _label_columns(table)
    known_width = width in _WIDTHS_WITH_LABEL_COLUMN
    differing = [] if width - 1 in leaking else _bags_where_last_column_differs(table, starts)
    nearly = differing is not None and len(differing) <= _MAX_DISAGREEING_BAGS * len(starts)
    if options.drop_last_column:
        if not (known_width or nearly):
            raise ContentError(
                f"{path}: --drop-last-column was given, but the last of {width} feature columns is not the label; "
                "leave the option out"
            )
        table = replace(table, features_ND=table.features_ND[:, :-1])
        leaking = [column for column in leaking if column != width - 1]
    elif known_width:
        raise ContentError(
            f"{path}: {width} feature columns, one more than the {width - 1} of the published sets; "
            f"{_what_last_column_is(differing, len(starts))}: give --drop-last-column to drop it"
        )
    elif nearly and differing:
        raise ContentError(
            f"{path}: {width} feature columns, and {_what_last_column_is(differing, len(starts))}: "
            "give --drop-last-column to drop it"
        )
    if leaking:
        advice = "give --drop-last-column to drop it" if leaking == [width - 1] else "remove it from the file"
        raise ContentError(
            f"{path}: feature column {leaking[0] + 1} of {width} equals the label on every row; {advice}"
        )
    return table, (_dropped_note(width, differing),) if options.drop_last_column else ()


def _bags_where_last_column_differs(table: InstanceTable, starts: list[int]) -> list[str] | None:
    """Bags in which the last column is not the label; None if it has not two values or differs in most bags."""
    values_N = table.features_ND[:, -1]
    low, high = float(values_N.min()), float(values_N.max())
    if low == high or not np.isin(values_N, (low, high)).all():
        return None
    differs_N = (values_N == high) != (table.labels_N == 1)
    bags = [
        table.bag_ids[start] for start, stop in pairwise([*starts, len(table.bag_ids)]) if differs_N[start:stop].any()
    ]
    return bags if 2 * len(bags) < len(starts) else None


def _what_last_column_is(differing: list[str] | None, num_bags: int) -> str:
    if differing is None:
        return "copies of this width carry the label as their last column"
    if not differing:
        return "the last column is the bag's label on every row"
    same = num_bags - len(differing)
    return f"the last column is the bag's label in {same} of {num_bags} bags (not in {_some(differing)})"


def _dropped_note(width: int, differing: list[str] | None) -> str:
    if differing is None:
        return f"dropped feature column {width}: copies of this width carry the label there"
    exception = f", except in bags {_some(differing)}, whose own label counts" if differing else ""
    return f"dropped feature column {width}: it is the label{exception}"


def _some(bags: list[str]) -> str:
    return ", ".join(bags[:_SHOWN_BAGS]) + (", …" if len(bags) > _SHOWN_BAGS else "")


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
        raise ContentError(
            f"{path}: {counts}: bags and features of a known set, but positive bags/instances are {found.positive}/"
            f"{found.instances}, expected {expected}; the copy lost or changed rows: get an undamaged one"
        )
    return f"content is none of {', '.join(_KNOWN_SETS)}: {counts}"


def _baked_in(features_ND: np.ndarray) -> tuple[str, ...]:
    """A note if the copy was scaled with statistics of all its bags."""
    with np.errstate(all="ignore"):  # infinite values are refused later, by their row
        means_D, deviations_D = features_ND.mean(axis=0), features_ND.std(axis=0)
    varying_D = deviations_D > 0
    divisor = np.sqrt(len(features_ND) / max(len(features_ND) - 1, 1))
    scores = any(np.allclose(deviations_D[varying_D] * by, 1, atol=_SCALING_TOLERANCE) for by in (1.0, divisor))
    if varying_D.sum() > 1 and scores and np.allclose(means_D[varying_D], 0, atol=_SCALING_TOLERANCE):
        found = "every column has mean 0 and standard deviation 1 over all instances"
    elif (features_ND.min(), features_ND.max()) == (0, 1) and np.isin(features_ND, (0, 1)).mean() < 0.5:
        found = "the smallest and largest of all values are exactly 0 and 1"
    else:
        return ()
    return (
        f"{found}: this copy was scaled with statistics of the whole set, so every test fold has leaked into every "
        "training part; prefer a raw copy",
    )


def _read(table: InstanceTable, spans: Mapping[str, tuple[int, int]], bag_id: str) -> SourceBag:
    rows = slice(*spans[bag_id])
    truth_N = table.instance_labels_N
    return SourceBag(table.features_ND[rows], instance_labels_N=None if truth_N is None else truth_N[rows])
