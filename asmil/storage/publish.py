"""Local files that appear completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asmil.errors import EnvironmentProblem

__all__ = [
    "disk_problems",
    "ensure_directory",
    "file_sha256",
    "publish_bytes",
    "publish_json",
    "publish_text",
    "sync_directory",
    "sync_file",
]


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
