"""The cache directory of a machine: what lies in it, who holds what, and how room is made.

- `<cache>/.asmil-cache`: says that the directory is ours; nothing is ever deleted where it is missing
- `<cache>/.room.lock`: held while files appear or go
- `<cache>/<dataset id>/.in-use.lock`: held in common by every process that reads the store
- `<cache>/<dataset id>/<shard>.<sha256>.arrow`: a checked copy; its modification time is when it was last opened
- `<cache>/<dataset id>/<shard>.<sha256>.lock`: held while the copy is fetched
- `<cache>/<dataset id>/<shard>.<sha256>.part`: a copy being fetched, at its full size from the beginning

Locks are the kernel's (`flock`): they end with the process that holds them, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asmil.data.config import CacheConfig
from asmil.data.schema import ShardInfo
from asmil.errors import ConfigError
from asmil.storage import OpenFile, disk_problems, ensure_directory, sync_directory, sync_file

__all__ = ["CacheDirectory", "CacheEntry", "Lock"]

MARKER_FILE = ".asmil-cache"
MARKER_TEXT = "Copies of shards of remote stores; safe to delete while no process reads them.\n"
ROOM_LOCK = ".room.lock"
IN_USE_LOCK = ".in-use.lock"

_DATASET = re.compile(r"[0-9a-f]{64}")
_COPY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.[0-9a-f]{64}")
_log = logging.getLogger(__name__)


class Lock:
    """A lock between processes, and between threads, that the kernel releases when its holder ends.

    Made by `take` and `wait`. Held until the context it is used for ends, or until it is forgotten.

    Args:
        descriptor: The open, locked file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> Lock | None:
        """The lock, or None if another holds it.

        Args:
            path: The file that is locked; made if absent, never removed.

        Raises:
            EnvironmentProblem: The file cannot be made, or its disk knows no locks.
        """
        return cls._lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @classmethod
    def wait(cls, path: Path, *, shared: bool = False) -> Lock:
        """The lock, as soon as no other holds it; raises what `take` raises.

        Args:
            path: The file that is locked; made if absent, never removed.
            shared: Whether others may hold it in common.
        """
        lock = cls._lock(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        assert lock is not None
        return lock

    @classmethod
    def _lock(cls, path: Path, operation: int) -> Lock | None:
        with disk_problems(path, "be locked"):
            lock = cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock._descriptor, operation)
                return lock
        return None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lock up, also on behalf of a process that was forked meanwhile."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def __del__(self) -> None:
        """Let go of it; a process forked meanwhile still holds it."""
        os.close(self._descriptor)


@dataclass(frozen=True)
class CacheEntry:
    """The copy of one shard.

    Attributes:
        path: The checked copy.
        shard: Which shard it is.
    """

    path: Path
    shard: ShardInfo

    @property
    def part(self) -> Path:
        """The copy while it is fetched."""
        return self.path.with_suffix(".part")

    @property
    def lock(self) -> Path:
        """Held while it is fetched."""
        return self.path.with_suffix(".lock")

    def open(self) -> OpenFile | None:
        """The copy, marked as used now; None if there is none of the right size."""
        with disk_problems(self.path, "be read"):
            try:
                file = OpenFile.open(self.path)
            except FileNotFoundError:
                return None
        if os.fstat(file.descriptor).st_size != self.shard.bytes:
            return None
        with contextlib.suppress(PermissionError):
            os.utime(file.descriptor)
        return file


class CacheDirectory:
    """The cache of this machine: what lies in it, and how room is made.

    Several stores and any number of processes share it. A store that a living process reads is never evicted from, so
    a store larger than the cache does not push itself out over and over: what has no room is not cached.

    Args:
        config: Place and limits.
    """

    def __init__(self, config: CacheConfig) -> None:
        self.path = Path(config.directory).expanduser().absolute()
        self.max_bytes = int(config.max_gib * 2**30)
        self.min_free_bytes = int(config.min_free_gib * 2**30)

    def entry(self, dataset_id: str, shard: ShardInfo) -> CacheEntry:
        """Where the copy of a shard is, or would be."""
        name = f"{Path(shard.name).stem}.{shard.sha256}.arrow"
        return CacheEntry(self.path / dataset_id / name, shard)

    def use(self, dataset_id: str) -> Lock:
        """Make the directory if need be, and keep all copies of a store from being evicted while the lock is held.

        Raises:
            ConfigError: The directory holds other data.
            EnvironmentProblem: It cannot be made or written.
        """
        _claim(self.path)
        folder = self.path / dataset_id
        with disk_problems(folder, "be made"):
            folder.mkdir(exist_ok=True)
        in_use = Lock.wait(folder / IN_USE_LOCK, shared=True)
        with self._changing("be tidied"):
            self._remove_dead_parts()
        return in_use

    def reserve(self, entry: CacheEntry) -> bool:
        """Make the file a shard is fetched into, at its full size, evicting the copies that were not used for longest.

        The caller holds the entry's lock.

        Returns:
            False if the limits leave no room, even without everything that may be evicted; then nothing is.

        Raises:
            EnvironmentProblem: The disk is full in spite of the limits, or cannot be written.
        """
        with self._changing("give room"), contextlib.ExitStack() as held:
            entry.part.unlink(missing_ok=True)
            self._remove_dead_parts()
            missing = self._missing_bytes(entry.shard.bytes)
            evicted = self._oldest(missing, held) if missing > 0 else []
            if evicted is None:
                return False
            for path in evicted:
                _log.info("%s: removed from the cache to make room for %s", path, entry.path.name)
                path.unlink()
            self._allocate(entry)
        return True

    def _missing_bytes(self, wanted: int) -> int:
        """How many bytes have to go before so many more fit; parts count, and take, their full size from the start."""
        used = sum(path.stat().st_size for suffix in (".arrow", ".part") for path in self._files(suffix))
        free = shutil.disk_usage(self.path).free
        return wanted + max(used - self.max_bytes, self.min_free_bytes - free)

    def _oldest(self, num_bytes: int, held: contextlib.ExitStack) -> list[Path] | None:
        """The copies that were not used for longest and take that many bytes together; None if there are not enough."""
        unused = self._unused(held)
        copies = [(path, path.stat()) for path in self._files(".arrow") if path.parent in unused]
        oldest = []
        for path, status in sorted(copies, key=lambda copy: copy[1].st_mtime_ns):
            if num_bytes <= 0:
                break
            oldest.append(path)
            num_bytes -= status.st_size
        return oldest if num_bytes <= 0 else None

    def publish(self, entry: CacheEntry) -> None:
        """Put a fetched and checked shard in its place."""
        with disk_problems(entry.part, "be written"):
            sync_file(entry.part)
        with self._changing("take a shard"):
            entry.part.replace(entry.path)
            sync_directory(entry.path.parent)

    def discard(self, path: Path) -> None:
        """Remove a copy, finished or not. Processes that have it open read on."""
        with self._changing("be tidied"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _changing(self, purpose: str) -> Iterator[None]:
        """Files appear, grow and go only here, so what they take together is known."""
        with Lock.wait(self.path / ROOM_LOCK), disk_problems(self.path, purpose):
            yield

    def _allocate(self, entry: CacheEntry) -> None:
        size = entry.shard.bytes
        with disk_problems(entry.part, f"take {size} bytes of shard {entry.shard.name}"):
            descriptor = os.open(entry.part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                os.truncate(descriptor, size)
            finally:
                os.close(descriptor)

    def _files(self, suffix: str) -> list[Path]:
        """Our own files: those in folders and under names that only a cache has."""
        return [
            path
            for folder in self._folders()
            for path in folder.iterdir()
            if path.suffix == suffix and _COPY.fullmatch(path.stem) and not path.is_symlink()
        ]

    def _folders(self) -> list[Path]:
        """One per store."""
        return [path for path in self.path.iterdir() if _DATASET.fullmatch(path.name) and not path.is_symlink()]

    def _remove_dead_parts(self) -> None:
        """Remove what processes that were killed while they fetched have left."""
        for path in self._files(".part"):
            lock = Lock.take(path.with_suffix(".lock"))
            if lock is not None:
                with lock:
                    path.unlink(missing_ok=True)

    def _unused(self, held: contextlib.ExitStack) -> set[Path]:
        """Folders of the stores that no process reads; none can begin to while `held` is open."""
        unused = set()
        for folder in self._folders():
            lock = Lock.take(folder / IN_USE_LOCK)
            if lock is not None:
                held.enter_context(lock)
                unused.add(folder)
        return unused


def _claim(path: Path) -> None:
    """Mark an absent or empty directory as a cache; refuse any other that is not marked."""
    if (path / MARKER_FILE).exists():
        return
    ensure_directory(path, "cache directory (data.cache.directory)")
    names = sorted(entry.name for entry in path.iterdir())
    if names and not (path / MARKER_FILE).exists():
        raise ConfigError(
            f"data.cache.directory: {path} holds other data ({', '.join(names[:5])}) and no {MARKER_FILE}, so it is "
            "not a cache; name an empty directory or one that does not exist"
        )
    with disk_problems(path, "be marked as cache directory"):
        (path / MARKER_FILE).write_text(MARKER_TEXT)
