"""The `.svm` text format of Andrews et al. (2002): FOX, TIGER and ELEPHANT.

First line `<instances> <features>`, then `<instance>:<bag>:<label> 1:v 2:v …` per instance. Values are placed by their
index, so sparse lines work; the count line is verified and never mistaken for an instance, nor an instance for it.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from asmil.data.schema import FeatureDtype
from asmil.data.sources.base import ReadOptions, Source, UnitKind
from asmil.data.sources.classic import InstanceTable, check_numbering, open_classic
from asmil.data.sources.text import first_lines, numbered_lines, parse_pairs, place_by_index
from asmil.errors import DataError

__all__ = ["AndrewsSvm"]

MAX_FEATURES = 1 << 20
_COUNT_LINE = re.compile(r"(\d{1,12}) +(\d{1,12})")
_INSTANCE_LINE = re.compile(r"(\d{1,12}):(\d{1,12}):(-?1)((?: +\d{1,12}:[^ :]+)*)")


class AndrewsSvm:
    """Reader of Andrews `.svm` files, plain or gzipped."""

    name = "andrews-svm"
    layout = "Andrews .svm text: '<instances> <features>', then '<instance>:<bag>:<label> <index>:<value> …' per line"
    dtype: FeatureDtype = "float32"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset({"drop_last_column"})

    def detect(self, path: Path) -> str | None:
        """A line of two counts, or none, before lines that begin with three integers joined by colons."""
        lines = first_lines(path)
        counts = _COUNT_LINE.fullmatch(lines[0].strip()) if lines else None
        instances = lines[1:] if counts else lines
        if not instances or not re.match(r"\d+:\d+:-?1(?: |$)", instances[0]):
            return None
        declared = f"count line '{lines[0].strip()}'" if counts else "no count line"
        return f"{declared}, then lines '{instances[0].split()[0]} <index>:<value> …' (instance:bag:label)"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """One bag per bag number; its id is the number as text."""
        lines = list(numbered_lines(path))
        counts = _COUNT_LINE.fullmatch(lines[0][1])
        body = lines[1:] if counts else lines
        parsed = [_parse_line(path, position, number, line) for position, (number, line) in enumerate(body)]
        if counts:
            num_features = _check_counts(path, int(counts[1]), int(counts[2]), len(body))
            notes: tuple[str, ...] = ()
        else:
            num_features = max(max(values, default=0) for _, _, values in parsed)
            notes = (f"no count line: the width {num_features} is the largest index that occurs",)
        check_numbering(path, [bag for bag, _, _ in parsed], first=0)
        table = InstanceTable(
            bag_ids=[str(bag) for bag, _, _ in parsed],
            labels_N=np.array([int(label == 1) for _, label, _ in parsed]),
            features_ND=place_by_index(
                path, [(number, values) for (number, _), (_, _, values) in zip(body, parsed, strict=True)], num_features
            ),
        )
        return open_classic(path, table, options, notes)


def _parse_line(path: Path, position: int, number: int, line: str) -> tuple[int, int, dict[int, float]]:
    match = _INSTANCE_LINE.fullmatch(line)
    if match is None:
        raise DataError(
            f"{path}, line {number}: {line[:60]!r} is not '<instance>:<bag>:<label> <index>:<value> …' with label 1 or "
            "-1; get an undamaged copy"
        )
    if int(match[1]) != position:
        raise DataError(
            f"{path}, line {number}: instance {match[1]}, expected {position}: instances are numbered from 0 without "
            "gaps, so a line is lost or repeated; get an undamaged copy"
        )
    return int(match[2]), int(match[3]), parse_pairs(path, number, match[4].split())


def _check_counts(path: Path, num_instances: int, num_features: int, found: int) -> int:
    if num_instances != found:
        raise DataError(
            f"{path}: its first line declares {num_instances} instances, {found} follow; the copy is cut or has rows "
            "added: get an undamaged one"
        )
    if num_features > MAX_FEATURES:
        raise DataError(f"{path}: its first line declares {num_features} features; at most {MAX_FEATURES} are read")
    return num_features
