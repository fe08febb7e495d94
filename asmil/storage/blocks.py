"""How a reader asks for bytes of files: some blocks of one file at a time, each with the checksum it should have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from asmil.storage.local import RangeReader
from asmil.storage.location import Location

__all__ = ["Block", "BlockReader", "FoundBlock", "LocalBlocks", "RangedBlocks", "direct_blocks"]


class Block(NamedTuple):
    """A range of a file and where its bytes go.

    Attributes:
        offset: First byte in the file.
        buffer: Writable, contiguous, one dimension of bytes; its length is that of the range.
        xxh3: The checksum the bytes should have, for readers that can fetch them again.
    """

    offset: int
    buffer: memoryview
    xxh3: int


class FoundBlock(NamedTuple):
    """What was read for a block.

    Attributes:
        num_read: Bytes read, fewer than asked for where the file ends before.
        xxh3: The xxh3-64 of these bytes.
    """

    num_read: int
    xxh3: int


class BlockReader(Protocol):
    """Where the bytes of a store's shards come from: read from disk, fetched by range, from a cache or a map.

    The caller compares lengths and checksums and words the errors. Implementations are safe to use from several
    threads, pickle small and without open files, and work in forked and spawned processes.
    """

    @property
    def is_mapped(self) -> bool:
        """Whether `view` may give anything."""
        ...

    def read_blocks(self, name: str, blocks: Sequence[Block]) -> list[FoundBlock]:
        """Fill the buffers of some blocks, none of them empty, that lie close together in one file.

        Raises:
            OSError: There is no such file, or it cannot be read.
            EnvironmentProblem: The place it comes from does not answer, or not to this user.
        """
        ...

    def view(self, name: str, offset: int, nbytes: int) -> np.ndarray | None:
        """Bytes of a file without a copy: uint8, writable, shorter where the file ends; None if there are only copies.

        Raises:
            OSError: There is no such file, or it cannot be mapped.
        """
        ...


class LocalBlocks:
    """Blocks of local files, read straight into their buffers.

    Args:
        root: The folder.
        is_mapped: Whether `view` gives private maps; what they risk stands in `RangeReader.view`.
    """

    def __init__(self, root: Path, *, is_mapped: bool = False) -> None:
        self._files = RangeReader(root)
        self.is_mapped = is_mapped

    def read_blocks(self, name: str, blocks: Sequence[Block]) -> list[FoundBlock]:
        """As `BlockReader.read_blocks`."""
        return [FoundBlock(*self._files.read_into(name, block.offset, block.buffer)) for block in blocks]

    def view(self, name: str, offset: int, nbytes: int) -> np.ndarray | None:
        """As `BlockReader.view`."""
        return self._files.view(name, offset, nbytes) if self.is_mapped else None


class RangedBlocks:
    """Blocks of remote files: one request spans all blocks asked for together.

    What arrives with wrong checksums is fetched once more, since the way may have damaged it.

    Args:
        location: The folder.
    """

    is_mapped = False

    def __init__(self, location: Location) -> None:
        self._location = location

    def read_blocks(self, name: str, blocks: Sequence[Block]) -> list[FoundBlock]:
        """As `BlockReader.read_blocks`."""
        found = self._fetch(name, blocks)
        pairs = list(zip(blocks, found, strict=True))
        is_whole = all(block.num_read == len(asked.buffer) for asked, block in pairs)
        if is_whole and any(block.xxh3 != asked.xxh3 for asked, block in pairs):
            return self._fetch(name, blocks)
        return found

    def view(self, name: str, offset: int, nbytes: int) -> np.ndarray | None:
        """As `BlockReader.view`: None."""
        return None

    def _fetch(self, name: str, blocks: Sequence[Block]) -> list[FoundBlock]:
        start = min(block.offset for block in blocks)
        end = max(block.offset + len(block.buffer) for block in blocks)
        span = memoryview(bytearray(end - start))
        received = span[: self._location.read_into(name, start, span)]
        found = []
        for block in blocks:
            part = received[block.offset - start :][: len(block.buffer)]
            block.buffer[: len(part)] = part
            found.append(FoundBlock(len(part), xxhash.xxh3_64_intdigest(part)))
        return found


def direct_blocks(location: Location) -> BlockReader:
    """Reads without a cache: from the disk where the files are local, else by range."""
    return RangedBlocks(location) if location.local_root is None else LocalBlocks(location.local_root)
