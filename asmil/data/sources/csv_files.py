"""Reading the small CSV tables that some formats keep beside their features."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from asmil.errors import DataError

__all__ = ["csv_header", "csv_rows"]

MAX_CSV_BYTES = 256 << 20
_MAX_HEADER_BYTES = 64 << 10


def csv_header(path: Path) -> tuple[str, ...]:
    """Column names of a CSV file; none if there is no such file, or its first line is no text."""
    if not path.is_file():
        return ()
    with path.open("rb") as stream:
        line = stream.readline(_MAX_HEADER_BYTES)
    try:
        return tuple(next(csv.reader([line.decode("utf-8-sig").rstrip("\r\n")]), ()))
    except (csv.Error, UnicodeDecodeError):
        return ()


def csv_rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file; every one of them has the named columns, as text.

    Raises:
        DataError: It is too large, no CSV, lacks a column, has a row that is cut, or ends inside a line.
    """
    if path.stat().st_size > MAX_CSV_BYTES:
        raise DataError(f"{path}: more than {MAX_CSV_BYTES} bytes; a table of this kind has one short line per file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        found = list(reader.fieldnames or ())
        rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error}); make or copy it again") from None
    if text and not text.endswith(("\n", "\r")):
        raise DataError(f"{path}: its last line has no end, so the table may be cut: copy it again, or end the line")
    missing = [name for name in columns if name not in found]
    if missing:
        raise DataError(f"{path}: no column {' and '.join(missing)}; it has {', '.join(found[:20])}")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataError(f"{path}, row {number}: not the {len(found)} fields of its header; make or copy it again")
    return rows
