"""DSMIL's feature tables: one CSV per slide with a header of column numbers and values of four decimals.

The other CSV files that DSMIL writes (`<set>.csv`, `<class>.csv`: path and label) are lists of these, without features.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from asmil.data.schema import FeatureDtype
from asmil.data.sources.base import ReadOptions, SlideHeader, Source, SourceBag, UnitKind
from asmil.data.sources.matrices import slide_id_of
from asmil.errors import DataError

__all__ = ["DsmilCsv"]

_MAX_HEADER_BYTES = 1 << 20
_MAX_BYTES = 64 << 30


class DsmilCsv:
    """Reader of DSMIL's CSV files."""

    name = "dsmil-csv"
    layout = "DSMIL .csv per slide: header 0,1,…,D-1, then one row of numbers per tile"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()

    def detect(self, path: Path) -> str | None:
        """A header that counts the columns from 0, and as many numbers in the next line."""
        width = _header_width(path)
        return None if width is None else f"CSV with the header 0,1,…,{width - 1}"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide of the file name; its rows are counted, not parsed."""
        width = _header_width(path)
        assert width is not None, "detect() has seen it"
        slide_id = slide_id_of(path, ".csv")
        num_instances = _num_lines(path) - 1
        read = partial(_read, path, width)
        if num_instances == 0:
            return Source((), read, no_tissue=(slide_id,))
        return Source((SlideHeader(slide_id, num_instances, width),), read)


def _header_width(path: Path) -> int | None:
    """Number of columns, if the first line counts them from 0; at least 3, so that no label table is taken for one."""
    with path.open("rb") as stream:
        header, first = (stream.readline(_MAX_HEADER_BYTES).strip().split(b",") for _ in range(2))
    if len(header) < 3 or header != [str(position).encode() for position in range(len(header))]:
        return None
    return len(header) if first == [b""] or (len(first) == len(header) and all(map(_is_number, first))) else None


def _num_lines(path: Path) -> int:
    """Lines of a file.

    Raises:
        DataError: The file is too large, or its last line has no end: nothing else tells a number that lost its last
            digits.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes of text; at most {_MAX_BYTES} are read")
    num_lines, last = 0, b""
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            num_lines, last = num_lines + block.count(b"\n"), block[-1:]
    if last != b"\n":
        raise DataError(f"{path}: its last line has no end, so the table is cut: make or copy it again")
    return num_lines


def _is_number(text: bytes) -> bool:
    """Whether pandas may have written it: a number, or nothing for NaN."""
    try:
        float(text or b"nan")
    except ValueError:
        return False
    return True


def _read(path: Path, width: int, slide_id: str) -> SourceBag:
    """The values as float32, which DSMIL printed them from."""
    names = [str(position) for position in range(width)]
    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(use_threads=False, block_size=max(1 << 22, 64 * width)),
            convert_options=csv.ConvertOptions(
                column_types={name: pa.float32() for name in names}, null_values=[""]
            ),  # how pandas writes NaN
        )
        columns = [table.column(name).to_numpy() for name in names]
    except (pa.ArrowException, KeyError) as error:
        raise DataError(
            f"{path}: not a table of {width} numbers a row ({str(error)[:200]}); it is cut or damaged: make or copy it "
            "again"
        ) from None
    features_ND = np.empty((table.num_rows, width), dtype=np.float32)
    for position, column_N in enumerate(columns):
        features_ND[:, position] = column_N
    return SourceBag(features_ND)
