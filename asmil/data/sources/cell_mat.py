"""The cell-array MATLAB format of RGMIL, PSMIL and miFV: `data` is a cell with one row per bag.

First column: the bag's instances. Second: its label, 1 and 0 or 1 and -1. A third one, in miFV's files, holds a label
per instance. In the RGMIL and PSMIL files the last feature column is the label; in their ELEPHANT file it contradicts
the label of two bags, so it is not even a reliable one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asmil.data.schema import FeatureDtype
from asmil.data.sources.base import ContentError, ReadOptions, Source, UnitKind
from asmil.data.sources.classic import InstanceTable, check_table_size, class_labels, open_classic
from asmil.data.sources.matlab import damage_as_data_error, dense, matlab_variables, read_matlab

__all__ = ["CellMat"]

_LABEL_PAIRS = ((0, 1), (-1, 1))


class CellMat:
    """Reader of MATLAB files with one cell row per bag."""

    name = "cell-mat"
    layout = "cell-array .mat: MATLAB v5 cell data, one row per bag: instances, label[, label per instance]"
    dtype: FeatureDtype = "float32"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset({"drop_last_column"})

    def detect(self, path: Path) -> str | None:
        """A MATLAB v5 file whose variable `data` is a cell of two or three columns, without a struct `x`."""
        variables = matlab_variables(path)
        shape, kind = variables.get("data", ((), ""))
        if "x" in variables or {"features", "labels", "bag_ids"} <= set(variables):
            return None
        if kind != "cell" or len(shape) != 2 or shape[0] < 1 or shape[1] not in (2, 3):
            return None
        return f"MATLAB v5 file with a {shape[0]}x{shape[1]} cell data"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """One bag per row of the cell; ids run from 0."""
        with damage_as_data_error(path):
            cell = read_matlab(path, ("data",))["data"]
            bags = [_matrix(path, row, value) for row, value in enumerate(cell[:, 0])]
            _check_widths(path, bags)
            sizes = [len(bag_ND) for bag_ND in bags]
            check_table_size(path, sum(sizes), bags[0].shape[1])
            labels_B = class_labels(path, "column 2 of data", _bag_labels(path, cell[:, 1]), _LABEL_PAIRS)
            truth_N, notes = _instance_labels(path, cell[:, 2:], sizes, labels_B)
            ids = [str(bag) for bag, size in enumerate(sizes) for _ in range(size)]
            table = InstanceTable(ids, np.repeat(labels_B, sizes), np.concatenate(bags), truth_N)
            return open_classic(path, table, options, notes)


def _matrix(path: Path, row: int, value: object) -> np.ndarray:
    bag_ND = dense(path, f"data{{{row + 1},1}}", value)
    if bag_ND.ndim != 2 or len(bag_ND) == 0:
        raise ContentError(
            f"{path}: data{{{row + 1},1}} (bag {row}) has shape {list(bag_ND.shape)}, expected instances x features "
            "with at least one instance; get an undamaged copy"
        )
    return bag_ND


def _check_widths(path: Path, bags: Sequence[np.ndarray]) -> None:
    for row, bag_ND in enumerate(bags):
        if bag_ND.shape[1] != bags[0].shape[1]:
            raise ContentError(
                f"{path}: data{{{row + 1},1}} (bag {row}) has {bag_ND.shape[1]} columns, bag 0 has "
                f"{bags[0].shape[1]}; get an undamaged copy"
            )


def _bag_labels(path: Path, values: Sequence[object]) -> np.ndarray:
    labels = [dense(path, f"data{{{row + 1},2}}", value).ravel() for row, value in enumerate(values)]
    for row, label in enumerate(labels):
        if label.size != 1:
            raise ContentError(
                f"{path}: data{{{row + 1},2}} (label of bag {row}) holds {label.size} values, expected one; "
                "get an undamaged copy"
            )
    return np.concatenate(labels)


def _instance_labels(
    path: Path, third_column: np.ndarray, sizes: Sequence[int], labels_B: np.ndarray
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The third column as truth per instance; None if it is absent or, with a note, only repeats the bag's label."""
    if third_column.size == 0:
        return None, ()
    parts = [dense(path, f"data{{{row + 1},3}}", value).ravel() for row, value in enumerate(third_column[:, 0])]
    for row, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        if len(part) != size:
            raise ContentError(
                f"{path}: data{{{row + 1},3}} has {len(part)} instance labels, bag {row} has {size} instances; "
                "get an undamaged copy"
            )
    truth_N = class_labels(path, "column 3 of data", np.concatenate(parts), _LABEL_PAIRS)
    if np.array_equal(truth_N, np.repeat(labels_B, sizes)):
        return None, ("column 3 repeats the bag's label on every instance; it is no truth per instance and left out",)
    starts = np.cumsum([0, *sizes[:-1]])
    any_positive_B = np.maximum.reduceat(truth_N, starts)
    if not np.array_equal(any_positive_B, labels_B):
        bag = int(np.argmax(any_positive_B != labels_B))
        raise ContentError(
            f"{path}: bag {bag} has label {labels_B[bag]}, but its instance labels (column 3) say "
            f"{any_positive_B[bag]}; a bag is positive if and only if one of its instances is: get an undamaged copy"
        )
    return truth_N, ("labels per instance taken from column 3",)
