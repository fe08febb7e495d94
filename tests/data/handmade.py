"""Stores whose shards somebody else wrote: every size, offset and hash agrees, the Arrow schema need not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from asmil.data.index import IndexRow
from asmil.data.publish import StoreContent, publish_store
from asmil.data.schema import DatasetFacts, ShardInfo
from asmil.data.store import BagStore

SHARD = "shards/part-00000.arrow"
WIDTH = 4
FEATURES_ND = np.arange(1, 21, dtype="f2").reshape(5, WIDTH)


def fixed_list(values: np.ndarray, kind: pa.DataType, width: int) -> pa.Array:
    """The bytes of an array as an Arrow column in which nothing can be null."""
    flat = pa.Array.from_buffers(kind, values.nbytes * 8 // kind.bit_width, [None, pa.py_buffer(values)])
    listed = pa.list_(pa.field("item", kind, nullable=False), width)
    return pa.FixedSizeListArray.from_arrays(flat, type=listed)


def write_by_hand(
    directory: Path, bags: Sequence[pa.Array], *, nullable: bool = False, at: Mapping[str, int] | None = None
) -> Path:
    """A store whose index and `dataset.json` say float16 of width 4, and whose shard holds these columns.

    Args:
        directory: Where to write it.
        bags: The column of each of the bags S0, S1, ...
        nullable: Whether the column may be null.
        at: Which batch the index takes a bag from; None is in order.
    """
    (directory / "shards").mkdir(parents=True)
    path = directory / SHARD
    schema = pa.schema([pa.field("features", bags[0].type, nullable=nullable)])
    with pa.ipc.new_file(str(path), schema) as writer:
        for position, column in enumerate(bags):
            batch = pa.RecordBatch.from_arrays([column], schema=schema)
            writer.write_batch(batch, custom_metadata={"slide_id": f"S{position}", "n": str(len(column))})
    with pa.memory_map(str(path)) as file:
        start = file.read_buffer(file.size()).address
        file.seek(0)
        reader = pa.ipc.open_file(file)
        places = at or {f"S{position}": position for position in range(len(bags))}
        rows = {slide_id: index_row(reader.get_batch(position), start) for slide_id, position in places.items()}
    content = path.read_bytes()
    publish_store(
        directory,
        StoreContent(
            facts=DatasetFacts(),
            num_features=WIDTH,
            dtype="float16",
            coord_dtype=None,
            has_instance_labels=False,
            shards=(ShardInfo(name=SHARD, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()),),
            rows=rows,
        ),
    )
    assert len(BagStore.open(str(directory)).read("S0").features_ND) == len(FEATURES_ND), "readers by offset accept it"
    return directory


def index_row(batch: pa.RecordBatch, start: int) -> IndexRow:
    """Where the values of a batch lie, whatever their type."""
    data = batch.column("features").values.buffers()[1]
    nbytes = FEATURES_ND.nbytes  # Arrow may pad
    row = dict.fromkeys(IndexRow._fields, 0) | {"feat_offset": data.address - start, "feat_nbytes": nbytes}
    checksum = xxhash.xxh3_64_intdigest(data.to_pybytes()[:nbytes])
    return IndexRow(**row | {"n": len(FEATURES_ND), "xxh3_feat": checksum})
