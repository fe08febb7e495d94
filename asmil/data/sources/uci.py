"""The UCI C4.5 text format of the MUSK sets (`clean1.data`, `clean2.data`) and its variants.

One instance per line: molecule, conformation, 166 integers, class `1.` or `0.`. A bag is a molecule. Copies exist with
an empty first line, without the final dot, with a first line `classLast,168,2,comma` and the names coded as integers,
and with conformation, molecule, label in front and no class at the end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asmil.data.schema import FeatureDtype
from asmil.data.sources.base import ReadOptions, Source, UnitKind
from asmil.data.sources.classic import InstanceTable, open_classic
from asmil.data.sources.text import first_lines, is_number, numbered_lines
from asmil.errors import DataError

__all__ = ["UciC45"]

_HEADER = re.compile(r"classLast,(\d+),(\d+),comma")
_CLASS = re.compile(r"[01]\.?")
_CONFORMATION = re.compile(r".*\+\d+")
_NAMED_LABEL = {"MUSK-": 1, "NON-MUSK-": 0}


@dataclass(frozen=True)
class _Columns:
    """Where the fields of a line are: `bag` and `label` by position, features as a slice."""

    description: str
    bag: int
    label: int
    features: slice


_CLASS_LAST = _Columns("molecule, conformation, features, class", 0, -1, slice(2, -1))
_CODED = _Columns("classLast header, integer-coded names, features, class", 0, -1, slice(2, -1))
_LABEL_THIRD = _Columns("conformation, molecule, label, features", 1, 2, slice(3, None))


class UciC45:
    """Reader of UCI C4.5 `.data` files, plain or gzipped."""

    name = "uci-c45"
    layout = "UCI C4.5 text: molecule,conformation,f1..fn,class per line"
    dtype: FeatureDtype = "float32"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset({"drop_last_column"})

    def detect(self, path: Path) -> str | None:
        """Comma-separated lines of two names, numbers and a class."""
        lines = first_lines(path)
        columns = _columns(lines)
        if columns is None:
            return None
        return f"comma-separated text with {lines[-1].count(',') + 1} fields a line: {columns.description}"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """One bag per molecule, named as in the file."""
        lines = list(numbered_lines(path))
        columns = _columns([line for _, line in lines[:2]])
        assert columns is not None, "open() is called on files that detect() accepted"
        if columns is _CODED:
            _check_header(path, lines[0][1], lines[1][1])
            lines = lines[1:]
        return open_classic(path, _parse(path, lines, columns), options)


def _columns(lines: list[str]) -> _Columns | None:
    if len(lines) > 1 and _HEADER.fullmatch(lines[0].strip()):
        return _CODED
    fields = lines[0].strip().split(",") if lines else []
    if len(fields) < 4 or any(is_number(name) for name in fields[:2]) or not all(map(is_number, fields[2:])):
        return None
    if _CONFORMATION.fullmatch(fields[0]) and not _CONFORMATION.fullmatch(fields[1]) and fields[2] in ("0", "1"):
        return _LABEL_THIRD
    return _CLASS_LAST if _CLASS.fullmatch(fields[-1]) else None


def _check_header(path: Path, header: str, line: str) -> None:
    declared = int(header.split(",")[1])
    if line.count(",") != declared:
        raise DataError(
            f"{path}: header {header!r} declares {declared} attributes and a class, the next line has "
            f"{line.count(',') + 1} fields; get an undamaged copy"
        )


def _parse(path: Path, lines: list[tuple[int, str]], columns: _Columns) -> InstanceTable:
    bag_ids, labels, rows = [], [], []
    num_fields = lines[0][1].count(",") + 1
    for number, line in lines:
        fields = line.split(",")
        if len(fields) != num_fields:
            raise DataError(
                f"{path}, line {number}: {len(fields)} fields, expected {num_fields} as on line {lines[0][0]}; "
                "the line is cut or damaged: get an undamaged copy"
            )
        label = fields[columns.label]
        if not _CLASS.fullmatch(label):
            raise DataError(f"{path}, line {number}: class {label!r}, expected 1. or 0.; get an undamaged copy")
        bag_ids.append(fields[columns.bag].strip())
        labels.append(int(label.rstrip(".")))
        rows.append(_numbers(path, number, fields[columns.features]))
        _check_name(path, number, bag_ids[-1], labels[-1])
    return InstanceTable(bag_ids, np.array(labels), np.array(rows))


def _numbers(path: Path, number: int, fields: list[str]) -> np.ndarray:
    wrong = next((field for field in fields if not is_number(field)), None)
    if wrong is not None:
        raise DataError(f"{path}, line {number}: {wrong[:60]!r}; expected numbers between names and class")
    return np.array(fields, dtype=np.float64)


def _check_name(path: Path, number: int, bag_id: str, label: int) -> None:
    for prefix, named in _NAMED_LABEL.items():
        if bag_id.startswith(prefix) and label != named:
            raise DataError(
                f"{path}, line {number}: molecule {bag_id!r} has class {label}, but its name says {named}; "
                "get an undamaged copy"
            )
