"""Table files whose ids stay text: comma, semicolon or tab separated text, zipped or not, and Parquet."""

from __future__ import annotations

import base64
import csv
import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from asmil.errors import DataError

__all__ = ["SUFFIXES", "TableFile"]

MAX_TABLE_BYTES = 1 << 30
MAX_RATIO = 1000
_RATIO_FREE_BYTES = 1 << 20  # a small table may be packed as tightly as it can
SUFFIXES = (".csv", ".tsv", ".csv.zip", ".parquet")
_EXCEL = (".xls", ".xlsx", ".xlsm", ".ods")
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError)
_DECIMAL_COMMA = r"-?\d+,\d+"
_WHOLE_NUMBER = r"-?\d+"
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{32,}")  # Parquet keeps the Arrow schema like that in its footer
_EXTENSION_TYPE = b"ARROW:extension:name"


@dataclass(frozen=True)
class TableFile:
    """A table whose header is known and whose rows are not parsed yet, so that columns can be chosen first.

    Attributes:
        path: The file.
        columns: Names of its columns; an index column without a name is not among them.
        content: Its text; None for Parquet.
        separator: What separates its columns.
    """

    path: Path
    columns: tuple[str, ...]
    content: bytes | None = None
    separator: str = ","

    @classmethod
    def open(cls, path: Path) -> TableFile:
        """Read a file's bytes and header.

        Raises:
            DataError: The file is missing, too large, of another kind, or has no usable header.
        """
        name = path.name.lower()
        if name.endswith(_EXCEL):
            raise DataError(f"{path}: spreadsheets are not read; save the sheet as CSV (UTF-8)")
        if not name.endswith(SUFFIXES):
            found = repr(path.suffix or "no suffix")
            raise DataError(f"{path}: tables are read from {', '.join(SUFFIXES)}; got {found}: save it as CSV")
        try:
            size = path.stat().st_size
            if size > MAX_TABLE_BYTES:
                raise DataError(f"{path}: {size} bytes; a table may have at most {MAX_TABLE_BYTES}")
            if name.endswith(".parquet"):
                return cls(path, _parquet_columns(path))
            return _of_text(path, _text_of(path, path.read_bytes()))
        except FileNotFoundError:
            raise DataError(f"{path}: no such label table; correct the path") from None
        except (OSError, ValueError, RuntimeError, csv.Error, pa.ArrowException, *_ZIP_ERRORS) as error:
            raise DataError(f"{path}: cannot be read as a table ({_reason(error)})") from None

    def frame(self, keep: Sequence[str] | None = None, *, text: Collection[str] = ()) -> pd.DataFrame:
        """Parse the rows.

        Args:
            keep: Columns to read; None reads all.
            text: Columns whose values are kept letter by letter (`007`, `NA` and `1e5` are names).

        Raises:
            DataError: The rows cannot be parsed.
        """
        wanted = [name for name in self.columns if keep is None or name in keep]
        _refuse_repeated(self.path, wanted)
        try:
            if self.content is None:
                frame: pd.DataFrame = pq.read_table(self.path, columns=wanted).replace_schema_metadata(None).to_pandas()
                return frame
            frame = self._parse(wanted, as_text=False)
            if texts := [name for name in wanted if name in text]:
                for name, values in self._parse(texts, as_text=True).items():
                    frame[name] = values.astype(object)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: cannot be read as a table ({_reason(error)})") from None
        return frame

    def texts(self) -> dict[str, list[str]]:
        """All columns of a text table letter by letter, in their order; an index column is called `""`.

        Pandas calls an index `Unnamed: 0` when it reads and saves a table again.

        Raises:
            DataError: It is Parquet, or its rows cannot be parsed.
        """
        if self.content is None:
            raise DataError(f"{self.path}: splits are not read from Parquet; save the table as CSV")
        try:
            rows = list(csv.reader(io.StringIO(self.content.decode("utf-8-sig")), delimiter=self.separator))
        except (ValueError, csv.Error) as error:
            raise DataError(f"{self.path}: cannot be read as a table ({_reason(error)})") from None
        header = [re.sub(r"^Unnamed: \d+$", "", name.strip()) for name in rows[0]]
        _refuse_repeated(self.path, [name for name in header if name])
        return {
            name: [row[position].strip() if position < len(row) else "" for row in rows[1:] if row]
            for position, name in enumerate(header)
        }

    def _parse(self, wanted: Sequence[str], *, as_text: bool) -> pd.DataFrame:
        assert self.content is not None
        header = _header(self.content, self.separator)
        positions = [position for position, name in enumerate(header) if name in wanted]
        options: dict[str, Any] = {"dtype": str, "keep_default_na": False} if as_text else {}
        frame: pd.DataFrame = pd.read_csv(
            io.BytesIO(self.content),
            sep=self.separator,
            encoding="utf-8-sig",
            usecols=positions,
            low_memory=False,
            index_col=False,
            **options,
        )
        frame.columns = pd.Index([header[position] for position in positions], dtype=object)
        if self.separator == ";" and not as_text:
            frame = pd.DataFrame({name: _with_decimal_comma(values) for name, values in frame.items()})
        return frame


def _of_text(path: Path, content: bytes) -> TableFile:
    lines = content.split(b"\n", 2)
    separator = _separator_of(lines[0], "\t" if path.name.lower().endswith(".tsv") else ",")
    header = _header(content, separator)
    for number, num_fields in _wide_rows(content, separator, len(header)):
        raise DataError(
            f"{path}: line {number} has {num_fields} fields, but the header names {len(header)} columns; complete the "
            "header, or put quotes around values that contain the separator"
        )
    columns = tuple(name for name in header if name)
    if not columns:
        raise DataError(f"{path}: the first line names no columns; expected a header such as slide_id,label")
    return TableFile(path, columns, content, separator)


def _refuse_repeated(path: Path, names: Sequence[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"{path}: columns appear more than once: {', '.join(twice)}; rename or remove them")


def _wide_rows(content: bytes, separator: str, num_columns: int) -> Iterator[tuple[int, int]]:
    """Number of the last line and of the fields of each row that has more fields than there are columns.

    Pandas would drop what is too much without a word, and everything after a stray separator would be one column off.
    """
    if b'"' not in content:
        mark = separator.encode()
        for number, line in enumerate(io.BytesIO(content), start=1):
            if (num_fields := line.count(mark) + 1) > num_columns:
                yield number, num_fields
        return
    rows = csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline=""), delimiter=separator)
    for row in rows:
        if len(row) > num_columns:
            yield rows.line_num, len(row)


def _text_of(path: Path, content: bytes) -> bytes:
    """The text of a file, unpacked if it is a zip archive of one table."""
    if not content.startswith(b"PK\x03\x04"):
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if any(member.filename == "[Content_Types].xml" for member in members):
            raise DataError(f"{path}: it is a spreadsheet under another name; save the sheet as CSV (UTF-8)")
        members = [member for member in members if not member.filename.startswith("__MACOSX/")]
        if len(members) != 1:
            raise DataError(f"{path}: expected a zip archive of one table, it has {len(members)} files; unpack it")
        declared, allowed = members[0].file_size, max(MAX_RATIO * members[0].compress_size, _RATIO_FREE_BYTES)
        if declared > min(MAX_TABLE_BYTES, allowed):
            raise DataError(
                f"{path}: {members[0].filename} declares {declared} bytes, packed into {members[0].compress_size}; a "
                f"table may have at most {MAX_TABLE_BYTES}, and at most {MAX_RATIO} times its packed size: look at it"
            )
        return archive.read(members[0])  # reads no more than the declared size


def _header(content: bytes, separator: str) -> list[str]:
    line = _decoded(content.split(b"\n", 1)[0])
    return [name.strip() for name in next(csv.reader([line], delimiter=separator), [])]


def _separator_of(line: bytes, default: str) -> str:
    """What cuts the header into most columns; the default if that is as good."""
    text = re.sub(r'"[^"]*"', "", _decoded(line))
    return max((default, ",", ";", "\t"), key=text.count)


def _decoded(line: bytes) -> str:
    return line.decode("utf-8-sig").rstrip("\r\n")


def _with_decimal_comma(values: pd.Series) -> pd.Series:
    """Numbers such as `12,5`, which semicolon-separated tables hold, as floats; other columns as they are."""
    if values.dtype != object:
        return values
    texts = values.dropna().astype(str).str.strip()
    if texts.empty or not texts.str.fullmatch(f"{_DECIMAL_COMMA}|{_WHOLE_NUMBER}").all():
        return values
    return pd.to_numeric(values.astype("string").str.strip().str.replace(",", ".")).astype(np.float64)


def _parquet_columns(path: Path) -> tuple[str, ...]:
    """The columns; extension types are seen before Arrow would run the code that is registered for them."""
    with path.open("rb") as file:
        footer = _last(file, int.from_bytes(_last(file, 8)[:4], "little") + 8)
    if any(_EXTENSION_TYPE in decoded for text in _BASE64.findall(footer) for decoded in _readings(text)):
        raise DataError(f"{path}: columns of Arrow extension types are not read; write plain columns")
    return tuple(pq.read_schema(path).names)


def _readings(text: bytes) -> Iterator[bytes]:
    """What base64 text stands for, wherever in it the first group of four begins."""
    for start in range(4):
        whole = (len(text) - start) // 4 * 4
        yield base64.b64decode(text[start : start + whole])


def _last(file: BinaryIO, count: int) -> bytes:
    """The last bytes of a file, all of it if it has fewer."""
    file.seek(max(0, file.seek(0, io.SEEK_END) - count))
    return file.read(count)


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text; save it as CSV (UTF-8)"
    return " ".join(str(error).split())[:240]
