"""The headerless CSV format of the `mil` package: bag label, bag number from 1, features.

A tile CSV with a header row of column numbers (`0,1,2,...`) looks alike in its first line and is told apart by it.
"""

from __future__ import annotations

from pathlib import Path

from asmil.data.schema import FeatureDtype
from asmil.data.sources.base import ReadOptions, Source, UnitKind
from asmil.data.sources.classic import InstanceTable, class_labels, ids_from_zero, open_classic
from asmil.data.sources.text import first_lines, is_number, number_rows, numbered_lines

__all__ = ["ClassicCsv"]

_LABELS = ((0, 1),)


class ClassicCsv:
    """Reader of CSV files without a header, plain or gzipped."""

    name = "classic-csv"
    layout = "CSV without header: label 0/1, bag number from 1, features per line"
    dtype: FeatureDtype = "float32"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset({"drop_last_column"})

    def detect(self, path: Path) -> str | None:
        """Comma-separated numbers that begin with a label 0 or 1 and, on the first line, bag number 1."""
        rows = [line.strip().split(",") for line in first_lines(path)]
        if not rows or len(rows[0]) < 3 or rows[0][1] != "1" or rows[0] == [str(i) for i in range(len(rows[0]))]:
            return None
        if any(row[0] not in ("0", "1") or len(row) < 3 or not row[1].isdecimal() for row in rows):
            return None
        if not all(map(is_number, rows[0])):
            return None
        return f"comma-separated numbers without header, {len(rows[0])} fields a line: label, bag from 1, features"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """One bag per bag number; ids run from 0, as in the `.svm` copies of the same sets."""
        rows_ND = number_rows(path, list(numbered_lines(path)))
        labels_N = class_labels(path, "column 1", rows_ND[:, 0], _LABELS)
        bag_ids, notes = ids_from_zero(path, rows_ND[:, 1])
        return open_classic(path, InstanceTable(bag_ids, labels_N, rows_ND[:, 2:]), options, notes)
