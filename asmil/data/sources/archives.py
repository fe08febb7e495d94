"""Looking into zip archives (`.npz`, and `.pt` since torch 1.6) without trusting them.

Everything is checked in the archive's directory, before a byte is unpacked: names, doubles, links, encryption, and how
much the members claim to hold against what the file can hold.
"""

from __future__ import annotations

import contextlib
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from asmil.errors import DataError

__all__ = ["MAX_ARRAY_BYTES", "is_zip", "open_archive"]

MAX_ARRAY_BYTES = 64 << 30
MAX_RATIO = 1000
_RATIO_FREE_BYTES = 1 << 20  # small members may compress as well as they can
_MAX_MEMBERS = 1 << 20
_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_READ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)


def is_zip(path: Path) -> bool:
    """Whether the file begins like a zip archive; a cut one does too."""
    with path.open("rb") as stream:
        return stream.read(4) in _MAGIC


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, Mapping[str, zipfile.ZipInfo]]]:
    """Open a zip archive whose directory passes every check.

    Args:
        path: A file for which `is_zip` holds.

    Yields:
        The archive and its members by name.

    Raises:
        DataError: The archive is cut or damaged, has members that could leave it, or claims more than it can hold.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive, _checked_members(path, archive.infolist())
    except _READ_ERRORS as error:
        raise DataError(
            f"{path}: cannot be read as a zip archive, which .npz and .pt files are ({str(error)[:200]}); it is cut or "
            "damaged: make or copy it again"
        ) from None


def _checked_members(path: Path, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    if len(infos) > _MAX_MEMBERS:
        raise DataError(f"{path}: {len(infos)} members in the archive; at most {_MAX_MEMBERS} are read")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        problem = _name_problem(info) or _content_problem(info)
        if info.filename in members:
            problem = "is there twice, so it depends on the reader which one counts"
        if problem:
            raise DataError(
                f"{path}: archive member {info.filename[:100]!r} {problem}; nothing was unpacked: make the file again"
            )
        members[info.filename] = info
    stored, declared = (sum(sizes) for sizes in ([i.compress_size for i in infos], [i.file_size for i in infos]))
    if stored > path.stat().st_size or declared > MAX_ARRAY_BYTES:
        raise DataError(
            f"{path}: its members declare {stored} bytes, {declared} unpacked, but the file has {path.stat().st_size} "
            f"bytes and at most {MAX_ARRAY_BYTES} are unpacked; nothing was unpacked: make the file again"
        )
    return members


def _name_problem(info: zipfile.ZipInfo) -> str | None:
    name = info.orig_filename
    if "\0" in name or "\\" in name or name.startswith("/") or ":" in name.split("/")[0][1:2]:
        return "has an absolute or malformed name"
    if ".." in PurePosixPath(name).parts:
        return "leads out of the archive"
    return None


def _content_problem(info: zipfile.ZipInfo) -> str | None:
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {info.compress_type}, expected none or deflate"
    if info.file_size > max(MAX_RATIO * info.compress_size, _RATIO_FREE_BYTES):
        return (
            f"declares {info.file_size} bytes unpacked from {info.compress_size}, more than {MAX_RATIO}:1, which is "
            "what archives that fill a disk look like"
        )
    return None
