"""Files that appear completely or not at all, and reads by byte range into memory the caller owns.

Nothing here knows what the bytes mean. Paths are local; `open_fs` is the one place that decides which file system an
address belongs to.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import xxhash

from asmil.errors import DataError, EnvironmentProblem

__all__ = [
    "RangeReader",
    "disk_problems",
    "ensure_directory",
    "file_sha256",
    "open_fs",
    "publish_bytes",
    "publish_json",
    "publish_text",
    "sync_directory",
    "sync_file",
]

MAX_OPEN_FILES = 128
PIECE_BYTES = 256 << 10


@contextlib.contextmanager
def disk_problems(path: Path, purpose: str) -> Iterator[None]:
    """Turn an `OSError` of the body into an `EnvironmentProblem` that names the path and the free space.

    Args:
        path: What is being written.
        purpose: What for, to complete "cannot …".
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason += f", {_free_bytes(path)} bytes free"
        raise EnvironmentProblem(f"{path}: cannot {purpose} ({reason}); free space or choose another place") from error


def _free_bytes(path: Path) -> int:
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def sync_file(path: Path) -> None:
    """Wait until the file's bytes are on disk."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Wait until the directory's entries (names made by `os.replace`) are on disk."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish_bytes(path: Path, content: bytes) -> None:
    """Write a file so that readers and crashes see the old content or the new one, never a part.

    Args:
        path: The file; its directory must exist.
        content: All of its bytes.

    Raises:
        EnvironmentProblem: The directory cannot be written or the disk is full; an old file is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with disk_problems(path, "be written"):
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_directory(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def publish_text(path: Path, text: str) -> None:
    """`publish_bytes` of UTF-8 text."""
    publish_bytes(path, text.encode("utf-8"))


def publish_json(path: Path, value: Any) -> None:
    """`publish_bytes` of JSON in the order of the keys; NaN and infinity are a `ValueError`."""
    publish_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def ensure_directory(path: Path, purpose: str) -> Path:
    """Make a directory, if need be, and prove that files can be made in it.

    Args:
        path: The directory.
        purpose: What it is for, as named in the error: "run directory".

    Returns:
        The same path.

    Raises:
        EnvironmentProblem: It cannot be made or written.
    """
    with disk_problems(path, f"serve as {purpose}"):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"probe")
    return path


def open_fs(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system an address belongs to, and the path in it.

    Args:
        uri: A local path, `file://` or `s3://…` address.

    Returns:
        File system and path; a local path is made absolute.

    Raises:
        DataError: The scheme is unknown to pyarrow.
    """
    if "://" not in uri:
        return pyarrow.fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        found: tuple[pyarrow.fs.FileSystem, str] = pyarrow.fs.FileSystem.from_uri(uri)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{uri}: not an address that can be opened ({error}); give a local path") from None
    return found


class RangeReader:
    """Reads byte ranges of the files below a directory into memory the caller owns.

    Memory is never mapped: a file cut short while mapped kills the process, a short `preadv` is an ordinary result.
    Safe to use from several threads. Pickles without its open files, which are opened again where they are needed.

    Args:
        root: The directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"])  # type: ignore[misc]

    def read_into(self, name: str, offset: int, buffer: memoryview) -> tuple[int, int]:
        """Fill a buffer from a position of a file and hash what was read.

        The range is read in pieces small enough to be hashed while they lie in the processor's cache, which makes the
        checksum a quarter cheaper than a second pass.

        Args:
            name: File below the root.
            offset: First byte.
            buffer: Writable, contiguous, one dimension of bytes.

        Returns:
            Bytes read, fewer than the buffer holds where the file ends before, and their xxh3-64.

        Raises:
            OSError: The file cannot be opened or read.
        """
        file = self._open(name)
        checksum = xxhash.xxh3_64()
        done = 0
        while done < len(buffer):
            piece = buffer[done : done + PIECE_BYTES]
            num_read = os.preadv(file.descriptor, [piece], offset + done)
            if num_read == 0:
                break
            checksum.update(piece[:num_read])
            done += num_read
        return done, checksum.intdigest()

    def _open(self, name: str) -> _OpenFile:
        with self._lock:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = _OpenFile(self.root / name)
                if len(self._files) > MAX_OPEN_FILES:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(name)
            return file


class _OpenFile:
    """A descriptor that is closed when its last user lets go, so that eviction cannot close it under a reader."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
