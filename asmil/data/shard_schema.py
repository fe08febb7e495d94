"""Whether a shard is, read as the Arrow file it is, what index and `dataset.json` say: other programs read it so.

Our own readers take bytes by offset and never ask Arrow, so nothing here is needed to read a store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa

from asmil.data.index import IndexRow, open_arrow
from asmil.data.schema import COORD_DTYPES, DATASET_FILE, FEATURE_DTYPES, DatasetInfo, shard_schema

__all__ = ["schema_damages"]

_DTYPE_OF_ARROW = {dtype.arrow: name for name, dtype in {**COORD_DTYPES, **FEATURE_DTYPES}.items()}
_BLOCK_OF_COLUMN = {"features": "feat", "coords": "coord", "instance_label": "label"}


def schema_damages(content: pa.Buffer, name: str, info: DatasetInfo, rows: Mapping[str, IndexRow]) -> Iterator[str]:
    """Hold a shard against its store. Only the metadata of a mapped file is touched.

    Args:
        content: The whole file, with the right checksum.
        name: Name of the shard.
        info: Content of `dataset.json`.
        rows: Index rows of the slides in this shard.

    Yields:
        One sentence per contradiction.
    """
    try:
        reader = open_arrow(content)
        wrong = list(_column_damages(reader.schema, info))
        if not wrong:
            wrong = list(_batch_damages(reader, content.address, rows))
    except Exception as error:  # a malformed Arrow file raises more than ArrowInvalid
        wrong = [f": not an Arrow file that can be read ({error})"]
    for problem in wrong:
        yield f"shard {name}{problem}; convert again"


def _column_damages(schema: pa.Schema, info: DatasetInfo) -> Iterator[str]:
    """What is wrong with names and types; whether nulls are allowed is told by the nulls there are."""
    expected = shard_schema(info.num_features, info.dtype, info.coord_dtype, info.has_instance_labels)
    if schema.names != expected.names:
        yield f": columns are {', '.join(schema.names) or 'none'}, {DATASET_FILE} says {', '.join(expected.names)}"
        return
    for found, wanted in zip(schema, expected, strict=True):
        if _shown(found.type) != _shown(wanted.type):
            yield f": {found.name} are {_shown(found.type)}, {DATASET_FILE} says {_shown(wanted.type)}"


def _batch_damages(reader: pa.RecordBatchFileReader, start: int, rows: Mapping[str, IndexRow]) -> Iterator[str]:
    in_order = sorted(rows.items(), key=lambda item: item[1].feat_offset)
    if reader.num_record_batches != len(in_order):
        yield f": {reader.num_record_batches} record batches, the index lists {len(in_order)} bags"
        return
    for position, (slide_id, row) in enumerate(in_order):
        batch, metadata = reader.get_batch_with_custom_metadata(position)
        found = (metadata or {}).get("slide_id", b"").decode(), batch.num_rows
        if found != (slide_id, row.n):
            yield f", bag {slide_id!r}: the index says {row.n} rows, the shard has {found[1]} of {found[0]!r} there"
            continue
        for field, column in zip(batch.schema, batch.columns, strict=True):
            problem = _value_problem(column, start, row, _BLOCK_OF_COLUMN[field.name])
            if problem is not None:
                yield f", bag {slide_id!r}: {field.name} {problem}"


def _value_problem(column: pa.Array, start: int, row: IndexRow, block: str) -> str | None:
    values = column.values if pa.types.is_fixed_size_list(column.type) else column
    for what, nulls in (("rows", column), ("values", values)):
        if nulls.null_count:
            return f"have {nulls.null_count} null {what}, expected none"
    offset, expected = values.buffers()[1].address - start, getattr(row, f"{block}_offset")
    return f"lie at byte {offset}, the index says {expected}" if offset != expected else None


def _shown(kind: pa.DataType) -> str:
    """A column type as dtype and shape, such as `float16 [N, 1024]`."""
    if pa.types.is_fixed_size_list(kind):
        return f"{_DTYPE_OF_ARROW.get(kind.value_type, kind.value_type)} [N, {kind.list_size}]"
    return f"{_DTYPE_OF_ARROW.get(kind, kind)} [N]"
