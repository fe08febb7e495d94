"""Reading a remote store through copies of its shards on this machine, each fetched once for all processes.

What lies where, and how room is made, is in `asmil.data.cache_files`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from asmil.data.cache_files import CacheDirectory, CacheEntry, Lock
from asmil.data.config import CacheConfig, DataConfig
from asmil.data.schema import DatasetInfo, ShardInfo
from asmil.errors import ConfigError, IntegrityError
from asmil.storage import (
    Block,
    BlockReader,
    FoundBlock,
    LocalBlocks,
    Location,
    OpenFile,
    RangedBlocks,
    RangeReader,
    disk_problems,
    file_sha256,
)

__all__ = ["CachedBlocks", "blocks_for"]

RANGE_BYTES = 16 << 20
FETCH_THREADS = 4

_log = logging.getLogger(__name__)


def blocks_for(data: DataConfig, location: Location, info: DatasetInfo) -> BlockReader:
    """What reads the shards of a store: from its disk, from copies on this machine, or by range.

    Args:
        data: The settings `cache` and `read`.
        location: The store.
        info: Content of its `dataset.json`.

    Raises:
        ConfigError: A map is asked for where there are no files to map, or the cache cannot serve this store.
        EnvironmentProblem: The cache directory cannot be made or written.
    """
    is_mapped = data.read == "map"
    if location.local_root is not None:
        if data.cache is not None:
            _log.warning("data.cache is not used: the store %s is on a disk or mount of this machine", location.uri)
        return LocalBlocks(location.local_root, is_mapped=is_mapped)
    if data.cache is not None:
        return CachedBlocks(data.cache, location, info, is_mapped=is_mapped)
    if is_mapped:
        raise ConfigError(
            f"data.read: 'map' needs shards on this machine, but the store is {location.uri}; set data.cache to keep "
            "copies of them here, or data.read: pread"
        )
    return RangedBlocks(location)


class CachedBlocks:
    """Blocks of a remote store's shards, read from copies in a cache directory.

    Bytes that prove wrong have their shard's copy fetched anew, once. A shard that has no room within the limits of the
    cache is read by range from the store.

    Args:
        config: Place and limits of the cache.
        location: The store.
        info: Content of its `dataset.json`.
        is_mapped: Whether `view` gives private maps of the copies; what they risk stands in `RangeReader.view`.

    Raises:
        ConfigError: The directory holds other data, or a shard is larger than the cache may be.
        EnvironmentProblem: The directory cannot be made or written.
    """

    def __init__(self, config: CacheConfig, location: Location, info: DatasetInfo, *, is_mapped: bool = False) -> None:
        self._copies = _CachedShards(config, location, info.dataset_id, info.shards)
        self._copies.keep()
        self._ranged = RangedBlocks(location)
        self.is_mapped = is_mapped

    def read_blocks(self, name: str, blocks: Sequence[Block]) -> list[FoundBlock]:
        """As `BlockReader.read_blocks`.

        Raises:
            IntegrityError: The store's shard is not the one that was written.
            EnvironmentProblem: The store does not answer, or the disk of the cache is full in spite of the limits.
        """
        try:
            file = self._copies.open(name)
            found = self._read_copy(name, blocks)
            if all(block == (len(asked.buffer), asked.xxh3) for asked, block in zip(blocks, found, strict=True)):
                return found
            self._copies.discard(name, file)
            return self._read_copy(name, blocks)
        except _NoRoomError:
            return self._ranged.read_blocks(name, blocks)

    def view(self, name: str, offset: int, nbytes: int) -> np.ndarray | None:
        """As `BlockReader.view`; None also for a shard that has no room in the cache."""
        if not self.is_mapped:
            return None
        try:
            return self._copies.view(name, offset, nbytes)
        except _NoRoomError:
            return None

    def _read_copy(self, name: str, blocks: Sequence[Block]) -> list[FoundBlock]:
        return [FoundBlock(*self._copies.read_into(name, block.offset, block.buffer)) for block in blocks]


class _CachedShards(RangeReader):
    """The shards of a remote store as files in a cache directory, which is filled as they are opened.

    The first reader of a shard on a machine fetches all of it, a few ranges at a time; every other one, in whichever
    process, waits for it. A copy is put in place when its sha256 is right. While this object exists no copy of its
    store is evicted.

    Safe to use from several threads. Pickles without open files and locks: a process that gets it, maybe on another
    machine, touches no disk before it reads.
    """

    def __init__(self, config: CacheConfig, location: Location, dataset_id: str, shards: Sequence[ShardInfo]) -> None:
        self._config = config
        self._location = location
        self._shards = {shard.name: shard for shard in shards}
        self._check_limit()
        self._directory = CacheDirectory(config)
        super().__init__(self._directory.path / dataset_id)
        self._in_use: Lock | None = None
        self._without_room: set[str] = set()
        self._process: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        config = self._config.model_copy(update={"directory": str(self._directory.path)})
        return {"arguments": (config, self._location, self.root.name, tuple(self._shards.values()))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["arguments"])  # type: ignore[misc]

    def keep(self) -> None:
        """Keep the store's copies from being evicted; reading does so too."""
        if self._in_use is None:
            self._in_use = self._directory.use(self.root.name)

    def discard(self, name: str, bad: OpenFile) -> None:
        """Remove a copy that proved wrong, unless another reader has replaced it."""
        entry = self._directory.entry(self.root.name, self._shards[name])
        with self._lock_of(entry):
            file = entry.open()
            if file is not None and file.identity == bad.identity:
                _log.warning("%s: bytes have changed since they were fetched from %s", entry.path, self._location.uri)
                self._directory.discard(entry.path)
        self.forget(name)

    def _open_file(self, name: str) -> OpenFile:
        """The copy of a shard, fetched if there is none."""
        self.keep()
        entry = self._directory.entry(self.root.name, self._shards[name])
        file = entry.open()
        if file is not None:
            return file
        if name in self._without_room:
            raise _NoRoomError
        with self._lock_of(entry):
            file = entry.open()  # another may have been faster
            return self._fetch(entry) if file is None else file

    @contextlib.contextmanager
    def _lock_of(self, entry: CacheEntry) -> Iterator[None]:
        """Be the only one, in this process and others, to fetch or remove the copy of a shard."""
        lock = Lock.take(entry.lock)
        if lock is None:
            _log.info("%s: waiting for another reader to fetch it", entry.path)
            lock = Lock.wait(entry.lock)
        with lock:
            yield

    def _fetch(self, entry: CacheEntry) -> OpenFile:
        """Fetch a shard; the caller holds its lock."""
        self._directory.discard(entry.path)  # of another size, if there is one
        try:
            if not self._directory.reserve(entry):
                raise self._no_room(entry)
            self._fill(entry)
            self._directory.publish(entry)
        finally:
            self._directory.discard(entry.part)
        file = entry.open()
        assert file is not None, "nothing is evicted from a store in use"
        return file

    def _fill(self, entry: CacheEntry) -> None:
        """Download a shard; a second time if the first has another sha256."""
        shard = entry.shard
        for _ in range(2):
            _log.info("%s: fetching %d bytes from %s", entry.path, shard.bytes, self._location.uri)
            with self._one_download():
                self._download(entry)
            with disk_problems(entry.part, "be read"):
                found = file_sha256(entry.part)
            if found == shard.sha256:
                return
            _log.warning("%s/%s: fetched with sha256 %s…", self._location.uri, shard.name, found[:16])
        raise IntegrityError(
            f"{self._location.uri}: shard {shard.name}: sha256 mismatch: expected {shard.sha256}, got {found} in two "
            "downloads; copy the store there again or convert again"
        )

    def _download(self, entry: CacheEntry) -> None:
        shard = entry.shard
        with disk_problems(entry.part, "be opened"):
            file = OpenFile(os.open(entry.part, os.O_WRONLY | os.O_CLOEXEC))

        def fetch(start: int) -> None:
            content = memoryview(bytearray(min(RANGE_BYTES, shard.bytes - start)))
            num_read = self._location.read_into(shard.name, start, content)
            if num_read != len(content):
                raise IntegrityError(
                    f"{self._location.uri}: shard {shard.name} ends early: expected {shard.bytes} bytes, got "
                    f"{start + num_read}; copy the store there again"
                )
            with disk_problems(entry.part, f"take {shard.bytes} bytes of shard {shard.name}"):
                while content:
                    written = os.pwrite(file.descriptor, content, start)
                    content, start = content[written:], start + written

        with ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="asmil-fetch") as pool:
            for _ in pool.map(fetch, range(0, shard.bytes, RANGE_BYTES)):
                pass

    def _one_download(self) -> threading.Lock:
        """Bounds the memory that downloads take in this process; a forked one must not inherit a lock that is held."""
        if self._process != os.getpid():
            self._downloading = threading.Lock()
            self._process = os.getpid()
        return self._downloading

    def _no_room(self, entry: CacheEntry) -> _NoRoomError:
        if not self._without_room:
            config = self._config
            _log.warning(
                "%s: no room for shard %s (%d bytes) within max_gib %g and min_free_gib %g beside what is in use; "
                "shards without a copy are read by range from %s",
                self._directory.path,
                entry.shard.name,
                entry.shard.bytes,
                config.max_gib,
                config.min_free_gib,
                self._location.uri,
            )
        self._without_room.add(entry.shard.name)
        return _NoRoomError()

    def _check_limit(self) -> None:
        largest = max(self._shards.values(), key=lambda shard: shard.bytes)
        limit = self._config.max_gib * 2**30
        if largest.bytes > limit:
            raise ConfigError(
                f"data.cache.max_gib: got {self._config.max_gib:g} ({limit:.0f} bytes), but shard {largest.name} of "
                f"{self._location.uri} has {largest.bytes} bytes; allow that much at least, better the size of the "
                "store, or leave data.cache out to read by range"
            )


class _NoRoomError(Exception):
    """The limits of the cache leave no room for a shard."""
