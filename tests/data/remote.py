"""A store that counts as remote, the files of a directory read by requests that are written down; readers of its cache.

Free of torch, so that the processes of the tests start quickly.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import xxhash

from asmil.data import cache
from asmil.data.cache import CachedBlocks
from asmil.data.config import CacheConfig
from asmil.data.schema import DATASET_FILE, DatasetInfo
from asmil.storage import Block
from asmil.storage.location import LocalLocation

PIECE = 256
"""Bytes that the tests let the cache ask for at a time."""


class RemoteFolder:
    """A location on another machine, as far as its users can tell; it may be sent to other processes.

    Args:
        root: The directory of the store.
        requests: A file that gets a line per request: process, name, offset, bytes.
        damaged: A bit of this many shards' first bytes is flipped on the way, of the first ones asked for.
        stall: Stand still at the first request for this offset, in the process that gets there first, for ever.
    """

    def __init__(self, root: Path, requests: Path, *, damaged: int = 0, stall: int | None = None) -> None:
        self.uri = f"remote://{root.name}"
        self.local_root: Path | None = None
        self.root = root
        self._requests = requests
        self._damaged = damaged
        self._stall = stall

    @property
    def stalled(self) -> Path:
        """A file that is there, and holds the id of the process, once one stands still."""
        return self._requests.with_suffix(".stalled")

    def info(self) -> DatasetInfo:
        """What the store says about itself."""
        return DatasetInfo.model_validate_json((self.root / DATASET_FILE).read_bytes())

    def read_file(self, name: str, *, max_bytes: int) -> bytes:
        """As `Location.read_file`."""
        return LocalLocation(self.root).read_file(name, max_bytes=max_bytes)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> int:
        """As `Location.read_into`."""
        with self._requests.open("a") as file:
            file.write(f"{os.getpid()} {name} {offset} {len(buffer)}\n")
        if offset == self._stall and not self.stalled.exists():
            made = self.stalled.with_suffix(".made")
            made.write_text(str(os.getpid()))
            made.rename(self.stalled)
            while True:
                signal.pause()
        num_read = LocalLocation(self.root).read_into(name, offset, buffer)
        if offset == 0 and self._damaged:
            self._damaged -= 1
            buffer[0] ^= 1
        return num_read

    def sizes(self, folder: str) -> Mapping[str, int] | None:
        """As `Location.sizes`."""
        return LocalLocation(self.root).sizes(folder)

    def asked(self, process: int | None = None) -> list[tuple[str, int, int]]:
        """Name, offset and bytes of the requests so far, of one process or of all, sorted."""
        lines = self._requests.read_text().splitlines() if self._requests.exists() else []
        return sorted(
            (name, int(offset), int(nbytes))
            for pid, name, offset, nbytes in map(str.split, lines)
            if process in (None, int(pid))
        )


def whole(info: DatasetInfo, *positions: int) -> list[tuple[str, int, int]]:
    """The requests that fetch some shards, or all, once."""
    return sorted(
        (shard.name, start, min(PIECE, shard.bytes - start))
        for shard in (info.shards[position] for position in positions or range(len(info.shards)))
        for start in range(0, shard.bytes, PIECE)
    )


def open_cache(config: CacheConfig, location: RemoteFolder) -> CachedBlocks:
    """The store through the cache, in pieces of `PIECE` bytes."""
    cache.RANGE_BYTES = PIECE
    return CachedBlocks(config, location, location.info())


def read_shard(blocks: CachedBlocks, location: RemoteFolder, position: int) -> None:
    """Read all of a shard through the cache and compare it with the store's."""
    shard = location.info().shards[position]
    truth = (location.root / shard.name).read_bytes()
    buffer = memoryview(bytearray(shard.bytes))
    checksum = xxhash.xxh3_64_intdigest(truth)
    (found,) = blocks.read_blocks(shard.name, [Block(0, buffer, checksum)])
    assert found == (shard.bytes, checksum)
    assert buffer == truth


def read_shards(config: CacheConfig, location: RemoteFolder, log: Path | None = None) -> int:
    """Read all shards of a store through the cache, as a process of its own would.

    Args:
        config: The cache.
        location: The store.
        log: A file that gets what the cache logs.

    Returns:
        The id of the process.
    """
    if log is not None:
        logger = logging.getLogger("asmil")
        logger.setLevel(logging.INFO)
        logger.addHandler(logging.FileHandler(log))
    blocks = open_cache(config, location)
    for position in range(len(location.info().shards)):
        read_shard(blocks, location, position)
    return os.getpid()


def wait_until(condition: Callable[[], bool], deadline_s: float) -> None:
    """Return when the condition holds.

    Raises:
        TimeoutError: It does not in time.
    """
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)
