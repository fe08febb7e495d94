"""Reading text sources, plain or gzipped (decided by their first bytes): lines, rows of numbers, index:value pairs."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from asmil.data.sources.classic import check_table_size
from asmil.errors import DataError

__all__ = ["first_lines", "is_number", "number_rows", "numbered_lines", "parse_pairs", "place_by_index"]

MAX_TEXT_BYTES = 1 << 30
MAX_RATIO = 1000
_RATIO_FREE_BYTES = 1 << 20
_SNIFFED_BYTES = 1 << 16
_GZIP_MAGIC = b"\x1f\x8b"


def first_lines(path: Path) -> list[str]:
    """The complete lines in the first 64 KiB, blank ones left out; none if the file is not text.

    A first line longer than that counts as complete.
    """
    try:
        head = _read(path, _SNIFFED_BYTES)
        text = head.decode("ascii")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return []
    lines = [line.removesuffix("\r") for line in text.split("\n")]  # as in `numbered_lines`, no other line ends
    if len(head) == _SNIFFED_BYTES and len(lines) > 1:
        lines.pop()
    return [line for line in lines if line.strip()]


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """All lines that are not blank, stripped of line ends (LF or CRLF), with their numbers from 1.

    Raises:
        DataError: The file is not ASCII text, is a damaged gzip file, unpacks to more than 1 GiB or 1000 times its
            size, or ends inside a line: nothing else tells a number that lost its last digits.
    """
    num_bytes = path.stat().st_size
    allowed = min(MAX_TEXT_BYTES, max(MAX_RATIO * num_bytes, _RATIO_FREE_BYTES))
    try:
        content = _read(path, allowed + 1)
        if len(content) > allowed:
            raise DataError(
                f"{path}: more than {allowed} bytes of text in a file of {num_bytes}; the known text formats hold a "
                "few MB, and no text of numbers is packed so tightly: unpack it and look at it"
            )
        text = content.decode("ascii")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as ASCII text ({error}); get an undamaged copy") from None
    if text and not text.endswith(("\n", "\r")):
        raise DataError(
            f"{path}: its last line has no end, so the copy may be cut: get an undamaged one, or end the line if it is "
            "complete"
        )
    for number, line in enumerate(io.StringIO(text), start=1):
        if line.strip():
            yield number, line.strip()


def is_number(text: str) -> bool:
    """Whether the text is a number; `1_0`, which is one to Python only, is a damaged one."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def number_rows(path: Path, lines: Sequence[tuple[int, str]]) -> np.ndarray:
    """Comma-separated lines of equally many numbers as a float64 table.

    Args:
        path: The file, to be named in errors.
        lines: Line numbers and lines; at least one.

    Raises:
        DataError: A field that is no finite number, or a line with another number of fields than the first.
    """
    num_fields = lines[0][1].count(",") + 1
    rows = []
    for number, line in lines:
        fields = line.split(",")
        if len(fields) != num_fields:
            raise DataError(
                f"{path}, line {number}: {len(fields)} fields, expected {num_fields} as on line {lines[0][0]}; "
                "the line is cut or damaged: get an undamaged copy"
            )
        rows.append(np.array([_finite(path, number, field) for field in fields]))
    return np.stack(rows)


def parse_pairs(path: Path, number: int, pairs: Sequence[str]) -> dict[int, float]:
    """The values of `<index>:<value>` texts by index.

    Args:
        path: The file, to be named in errors.
        number: The line, to be named in errors.
        pairs: Texts of an integer, a colon and a number.

    Raises:
        DataError: An index that occurs twice, or a value that is no finite number.
    """
    values: dict[int, float] = {}
    for pair in pairs:
        index, _, text = pair.partition(":")
        if int(index) in values:
            raise DataError(f"{path}, line {number}: feature index {index} occurs twice; get an undamaged copy")
        values[int(index)] = _finite(path, number, text)
    return values


def place_by_index(path: Path, rows: Sequence[tuple[int, dict[int, float]]], num_features: int) -> np.ndarray:
    """A float64 table from values by index (from 1); what a row does not name is 0.

    Args:
        path: The file, to be named in errors.
        rows: Line number and values of each row.
        num_features: The width.

    Raises:
        DataError: An index outside 1 to `num_features`, or a table that is implausibly large.
    """
    check_table_size(path, len(rows), num_features)
    features_ND = np.zeros((len(rows), num_features))
    for position, (number, values) in enumerate(rows):
        outside = [index for index in values if not 1 <= index <= num_features]
        if outside:
            raise DataError(
                f"{path}, line {number}: feature index {outside[0]}, expected 1 to {num_features}; "
                "get an undamaged copy"
            )
        features_ND[position, [index - 1 for index in values]] = list(values.values())
    return features_ND


def _finite(path: Path, number: int, text: str) -> float:
    value = float(text) if is_number(text) else math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}, line {number}: {text!r} is not a finite number; get an undamaged copy")
    return value


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as stream:
        magic = stream.read(len(_GZIP_MAGIC))
        stream.seek(0)
        if magic != _GZIP_MAGIC:
            return stream.read(limit)
        with gzip.GzipFile(fileobj=stream) as unpacked:
            return unpacked.read(limit)
