"""One Arrow shard while it is being written: batches in, byte offsets and checksums out."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from asmil.data.index import IndexRow
from asmil.data.schema import ShardInfo
from asmil.errors import IntegrityError
from asmil.storage import disk_problems, sync_directory, sync_file

__all__ = ["ShardFile"]

_PIECE_BYTES = 1 << 20
_BLOCK_OF_COLUMN = {"features": "feat", "coords": "coord", "instance_label": "label"}


class ShardFile:
    """An Arrow IPC file under a temporary name; `publish` gives it its own.

    Offsets are not computed but read back from the finished file, where the checksum of every block is compared with
    that of the array it was written from.

    Args:
        store: The store's directory.
        name: Final name below the store.
        position: Position in the store's shard list.
        schema: Columns of every batch.
    """

    def __init__(self, store: Path, name: str, position: int, schema: pa.Schema) -> None:
        self.path = store / name
        self.temporary = self.path.with_name(f".{self.path.name}.tmp")
        self._name = name
        self._position = position
        self._schema = schema
        self._checksums: dict[str, dict[str, int]] = {}
        with disk_problems(self.temporary, "be written"):
            self._sink = pa.OSFile(str(self.temporary), "wb")
            self._writer = pa.ipc.new_file(self._sink, schema, options=pa.ipc.IpcWriteOptions(allow_64bit=True))

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Slides written so far."""
        return tuple(self._checksums)

    @property
    def num_bytes(self) -> int:
        """Bytes written so far."""
        return int(self._sink.tell())

    def append(self, slide_id: str, columns: Mapping[str, np.ndarray]) -> None:
        """Write the arrays of one slide, keyed by column, as one record batch."""
        arrays = [_arrow_array(columns[field.name], field.type) for field in self._schema]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        with disk_problems(self.temporary, f"take {batch.nbytes} more bytes"):
            self._writer.write_batch(batch, custom_metadata={"slide_id": slide_id, "n": str(batch.num_rows)})
        self._checksums[slide_id] = {name: xxhash.xxh3_64_intdigest(array.data) for name, array in columns.items()}

    def publish(self) -> tuple[ShardInfo, dict[str, IndexRow]]:
        """Finish, flush, check, hash and rename the file.

        Returns:
            Its entry of `dataset.json` and the index rows of its slides, in file order.

        Raises:
            EnvironmentProblem: The disk is full or fails.
            IntegrityError: What lies in the file is not what was written.
        """
        with disk_problems(self.temporary, "be written"):
            self._close()
            sync_file(self.temporary)
            rows = self._locate()
            num_bytes = self.temporary.stat().st_size
            info = ShardInfo(name=self._name, bytes=num_bytes, sha256=self._read_back(rows, num_bytes))
            self.temporary.replace(self.path)
            sync_directory(self.path.parent)
        return info, rows

    def discard(self) -> None:
        """Remove the file, published or not."""
        with contextlib.suppress(OSError):
            self._sink.close()
        self.temporary.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        self._writer.close()
        self._sink.close()

    def _locate(self) -> dict[str, IndexRow]:
        """Where the blocks lie; the map touches the metadata of the file only, so it costs no memory."""
        rows = {}
        with pa.memory_map(str(self.temporary)) as file:
            start = file.read_buffer(file.size()).address
            file.seek(0)
            reader = pa.ipc.open_file(file)
            for position, slide_id in enumerate(self._checksums):
                rows[slide_id] = self._row(slide_id, reader.get_batch(position), start)
        return rows

    def _row(self, slide_id: str, batch: pa.RecordBatch, start: int) -> IndexRow:
        values = dict.fromkeys(IndexRow._fields, 0) | {"shard": self._position, "n": batch.num_rows}
        for column, checksum in self._checksums[slide_id].items():
            array = batch.column(column)
            data = (array.values if pa.types.is_fixed_size_list(array.type) else array).buffers()[1]
            block = _BLOCK_OF_COLUMN[column]
            values |= {f"{block}_offset": data.address - start, f"{block}_nbytes": data.size, f"xxh3_{block}": checksum}
        return IndexRow(**values)

    def _read_back(self, rows: Mapping[str, IndexRow], num_bytes: int) -> str:
        """Compare every block with its checksum and hash the file, in one pass over it.

        Returns:
            Hex sha256 of the file.
        """
        whole = hashlib.sha256()
        blocks = sorted(
            (getattr(row, f"{block}_offset"), getattr(row, f"{block}_nbytes"), slide_id, column)
            for slide_id, row in rows.items()
            for column, block in _BLOCK_OF_COLUMN.items()
            if column in self._checksums[slide_id]
        )
        with self.temporary.open("rb", buffering=0) as file:
            position = 0
            for offset, nbytes, slide_id, column in blocks:
                _hash_range(file, offset - position, whole)
                if _hash_range(file, nbytes, whole) != self._checksums[slide_id][column]:
                    raise IntegrityError(
                        f"{self.temporary}: {column} of slide {slide_id!r} read back differ from what was written; "
                        "check disk and memory of this machine, then convert again"
                    )
                position = offset + nbytes
            _hash_range(file, num_bytes - position, whole)
        return whole.hexdigest()


def _hash_range(file: io.FileIO, num_bytes: int, whole: hashlib._Hash) -> int:
    """Feed the next bytes of a file to its hash; the xxh3-64 of these bytes alone."""
    part = xxhash.xxh3_64()
    buffer = memoryview(bytearray(min(num_bytes, _PIECE_BYTES)))
    while num_bytes > 0:
        num_read = file.readinto(buffer[: min(num_bytes, len(buffer))])
        if not num_read:
            break
        whole.update(buffer[:num_read])
        part.update(buffer[:num_read])
        num_bytes -= num_read
    return int(part.intdigest())


def _arrow_array(array: np.ndarray, kind: pa.DataType) -> pa.Array:
    item = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    flat = pa.Array.from_buffers(item, array.size, [None, pa.py_buffer(array)])
    return pa.FixedSizeListArray.from_arrays(flat, type=kind) if pa.types.is_fixed_size_list(kind) else flat
