"""Reads by byte range from local files, into memory the caller owns or as a private map."""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from asmil.storage.locks import ForkSafe

__all__ = ["OpenFile", "RangeReader"]

MAX_OPEN_FILES = 128


class OpenFile:
    """A descriptor that is closed when its last user lets go, so that eviction cannot close it under a reader.

    Args:
        descriptor: An open file; closed by this object.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None

    @classmethod
    def open(cls, path: Path) -> OpenFile:
        """Open a file for reading."""
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode."""
        status = os.fstat(self.descriptor)
        return status.st_dev, status.st_ino

    def map(self) -> mmap.mmap:
        """All of the file, mapped privately: what is written there stays in this process."""
        if self._map is None:
            if os.fstat(self.descriptor).st_size == 0:
                raise OSError("the file is empty")
            self._map = mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_COPY)
        return self._map

    def __del__(self) -> None:
        os.close(self.descriptor)


class RangeReader(ForkSafe):
    """Reads byte ranges of the files below a directory.

    Safe to use from several threads. Pickles without its open files, which are opened again where they are needed.

    Args:
        root: The directory.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self._files: OrderedDict[str, OpenFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"])  # type: ignore[misc]

    def read_into(self, name: str, offset: int, buffer: memoryview) -> tuple[int, int]:
        """Fill a buffer from a position of a file and hash what was read.

        All of the range is read before it is hashed in one call: hashing pieces while they lie in the processor's cache
        costs more in calls than it saves. Nothing is mapped: a file cut short while mapped kills the process, a short
        `preadv` is an ordinary result.

        Args:
            name: File below the root.
            offset: First byte.
            buffer: Writable, contiguous, one dimension of bytes.

        Returns:
            Bytes read, fewer than the buffer holds where the file ends before, and their xxh3-64.

        Raises:
            OSError: The file cannot be opened or read.
        """
        file = self.open(name)
        done = 0
        while done < len(buffer):
            num_read = os.preadv(file.descriptor, [buffer[done:]], offset + done)
            if num_read == 0:
                break
            done += num_read
        return done, xxhash.xxh3_64_intdigest(buffer[:done])

    def view(self, name: str, offset: int, nbytes: int) -> np.ndarray:
        """Bytes of a file without a copy, from a private (copy-on-write) map of all of it.

        Processes that map the same file share one copy of it, the page cache. Writing to the array changes nothing
        but the array. A file that is truncated in place while it is mapped kills the process that touches the lost
        part (SIGBUS); replacing a file by renaming is harmless.

        Args:
            name: File below the root.
            offset: First byte.
            nbytes: Length.

        Returns:
            Uint8 [nbytes], or fewer where the file ends before.

        Raises:
            OSError: The file cannot be opened or mapped.
        """
        mapped = self.open(name).map()
        count = max(0, min(nbytes, len(mapped) - offset))
        return np.frombuffer(mapped, dtype=np.uint8, count=count, offset=offset if count else 0)

    def open(self, name: str) -> OpenFile:
        """The file, opened now or earlier."""
        with self._lock:
            file = self._files.get(name)
            if file is not None:
                self._files.move_to_end(name)
                return file
        return self._keep(name, self._open_file(name))

    def forget(self, name: str) -> None:
        """Let go of an open file."""
        with self._lock:
            self._files.pop(name, None)

    def _open_file(self, name: str) -> OpenFile:
        return OpenFile.open(self.root / name)

    def _keep(self, name: str, file: OpenFile) -> OpenFile:
        with self._lock:
            kept = self._files.setdefault(name, file)
            if len(self._files) > MAX_OPEN_FILES:
                self._files.popitem(last=False)
            return kept
