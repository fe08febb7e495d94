"""Opening text sources, plain or gzipped: decided by their first bytes."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from asmil.errors import DataError

__all__ = ["first_lines", "numbered_lines"]

MAX_TEXT_BYTES = 1 << 30
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
    lines = text.splitlines()
    if len(head) == _SNIFFED_BYTES and len(lines) > 1:
        lines.pop()
    return [line for line in lines if line.strip()]


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """All lines that are not blank, stripped of line ends (LF or CRLF), with their numbers from 1.

    Raises:
        DataError: The file is not ASCII text, is a damaged gzip file, or is larger than 1 GiB when unpacked.
    """
    try:
        content = _read(path, MAX_TEXT_BYTES + 1)
        text = content.decode("ascii")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as ASCII text ({error}); get an undamaged copy") from None
    if len(content) > MAX_TEXT_BYTES:
        raise DataError(f"{path}: more than {MAX_TEXT_BYTES} bytes of text; the known text formats hold a few MB")
    for number, line in enumerate(io.StringIO(text), start=1):
        if line.strip():
            yield number, line.strip()


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as stream:
        magic = stream.read(len(_GZIP_MAGIC))
        stream.seek(0)
        if magic != _GZIP_MAGIC:
            return stream.read(limit)
        with gzip.GzipFile(fileobj=stream) as unpacked:
            return unpacked.read(limit)
