"""The sparse comma text of the fuzzy k-NN MIL toolbox: instance, bag, label, then `index:value` pairs.

Its dense sister has the same first three fields and plain numbers; `uci` reads that.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from asmil.data.schema import FeatureDtype
from asmil.data.sources.base import ReadOptions, Source, UnitKind
from asmil.data.sources.classic import InstanceTable, open_classic
from asmil.data.sources.text import first_lines, numbered_lines, parse_pairs, place_by_index
from asmil.errors import DataError

__all__ = ["CommaSparse"]

_LINE = re.compile(r"([^,]*\+\d+),([^,]+),([01])((?:,\d{1,12}:[^,:]+)*)")


class CommaSparse:
    """Reader of sparse comma text, plain or gzipped."""

    name = "comma-sparse"
    layout = "sparse comma text: instance,bag,label,index:value,… per line"
    dtype: FeatureDtype = "float32"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset({"drop_last_column"})

    def detect(self, path: Path) -> str | None:
        """Lines of two names, a label 0 or 1 and at least one index:value pair."""
        lines = [line.strip() for line in first_lines(path)]
        if not any((match := _LINE.fullmatch(line)) and match[4] for line in lines):
            return None
        if _LINE.fullmatch(lines[0]) is None:
            return None
        return f"lines '{','.join(lines[0].split(',')[:3])},<index>:<value>,…' (instance, bag, label)"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """One bag per bag name; the width is the largest index that occurs."""
        bag_ids, labels, rows = [], [], []
        for number, line in numbered_lines(path):
            match = _LINE.fullmatch(line)
            if match is None:
                raise DataError(
                    f"{path}, line {number}: {line[:60]!r} is not 'instance,bag,label,<index>:<value>,…' with label 0 "
                    "or 1; get an undamaged copy"
                )
            bag_ids.append(match[2].strip())
            labels.append(int(match[3]))
            rows.append((number, parse_pairs(path, number, match[4].split(",")[1:])))
        width = max((index for _, values in rows for index in values), default=0)
        note = f"the file does not state its width: {width} is the largest index that occurs"
        table = InstanceTable(bag_ids, np.array(labels), place_by_index(path, rows, width))
        return open_classic(path, table, options, (note,))
