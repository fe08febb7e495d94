"""The directory of a store while it is written: held by one writer, and told apart from other people's data."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from asmil.data.schema import DATASET_FILE, LOCK_FILE, PACK_FOLDER, leftover_names
from asmil.errors import DataError
from asmil.storage import disk_problems, ensure_directory

__all__ = ["DirectoryLock"]


class DirectoryLock:
    """A directory, made if absent, that no other writer holds.

    The lock is the kernel's: it ends with this process, however that ends, and processes started by it do not share it.

    Args:
        directory: The directory of a store.

    Raises:
        DataError: Another writer holds it.
        EnvironmentProblem: It cannot be made or written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / LOCK_FILE
        self._made = not directory.exists()
        ensure_directory(directory, "the directory of a store")
        with disk_problems(self._path, "be locked"):
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            is_ours = self._acquire()
        if not is_ours:
            os.close(self._descriptor)
            raise DataError(f"{directory}: another process is writing this store; wait for it or choose another")

    def _acquire(self) -> bool:
        """Whether the lock is ours; the file may have been locked, or removed by its holder, since it was opened."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except (BlockingIOError, FileNotFoundError):
            return False

    def require_empty(self) -> None:
        """Refuse a directory that holds anything but the lock.

        Raises:
            DataError: It holds a store, an unfinished conversion or other data.
        """
        names = leftover_names(self._directory)
        if not names:
            return
        what, advice = "other data, or what an interrupted conversion left", "delete it or choose another directory"
        if DATASET_FILE in names or (self._directory / DATASET_FILE).exists():
            what = "a store"
        elif (self._directory / PACK_FOLDER).exists():
            what = "an unfinished conversion"
            advice = "give --resume with the same command to finish it, or delete the directory"
        raise DataError(f"{self._directory}: expected an empty directory, found {what}: {', '.join(names)}; {advice}")

    def release(self) -> None:
        """Remove the lock, and the directory if we made it and it is empty."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)
        if self._made:
            with contextlib.suppress(OSError):
                self._directory.rmdir()
