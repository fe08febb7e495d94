"""The last act of making a store: index, label table and, as the only completion mark, `dataset.json`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from asmil.data.index import BagIndex, IndexRow, table_to_bytes
from asmil.data.schema import (
    DATASET_FILE,
    INDEX_FILE,
    LABELS_FILE,
    SPLITS_FILE,
    CoordDtype,
    DatasetFacts,
    DatasetInfo,
    FeatureDtype,
    ShardInfo,
)
from asmil.errors import DataError
from asmil.storage import publish_bytes, publish_json

__all__ = ["StoreContent", "labels_to_bytes", "publish_store"]


@dataclass(frozen=True)
class StoreContent:
    """Everything `dataset.json` and the files beside it say about finished shards.

    Attributes:
        facts: What is known about the features.
        num_features: Width D.
        dtype: Dtype of the features.
        coord_dtype: Dtype of the coordinates; None if there are none.
        has_instance_labels: Whether every bag carries a truth per instance.
        shards: The shard files, already in place.
        rows: Index row of every slide, in store order.
        labels: Content of the label table file.
        splits: Content of the file of imported splits.
    """

    facts: DatasetFacts
    num_features: int
    dtype: FeatureDtype
    coord_dtype: CoordDtype | None
    has_instance_labels: bool
    shards: tuple[ShardInfo, ...]
    rows: Mapping[str, IndexRow]
    labels: bytes | None = None
    splits: bytes | None = None


def publish_store(directory: Path, content: StoreContent) -> DatasetInfo:
    """Write the small files of a store whose shards are in place; `dataset.json` comes last.

    Raises:
        DataError: There are no bags.
        EnvironmentProblem: The disk is full or cannot be written.
    """
    if not content.rows:
        raise DataError(f"{directory}: no bags were written; a store needs at least one")
    index = BagIndex(content.rows, list(content.rows.values()))
    index_bytes = index.to_bytes()
    info = DatasetInfo(
        **dict(content.facts),
        num_features=content.num_features,
        dtype=content.dtype,
        coord_dtype=content.coord_dtype,
        has_instance_labels=content.has_instance_labels,
        num_bags=len(content.rows),
        num_instances=sum(row.n for row in content.rows.values()),
        shards=content.shards,
        index_sha256=hashlib.sha256(index_bytes).hexdigest(),
        labels_sha256=None if content.labels is None else hashlib.sha256(content.labels).hexdigest(),
        splits_sha256=None if content.splits is None else hashlib.sha256(content.splits).hexdigest(),
        dataset_id=index.dataset_id(),
    )
    if content.labels is not None:
        publish_bytes(directory / LABELS_FILE, content.labels)
    if content.splits is not None:
        publish_bytes(directory / SPLITS_FILE, content.splits)
    publish_bytes(directory / INDEX_FILE, index_bytes)
    publish_json(directory / DATASET_FILE, info.model_dump(mode="json"))
    return info


def labels_to_bytes(labels: pd.DataFrame, directory: Path) -> bytes:
    """A label table as the content of its file; columns of ids must hold text.

    Args:
        labels: The table.
        directory: The store, as named in errors.

    Raises:
        DataError: No rows, repeated or non-text column names, or a column that mixes types.
    """
    names = list(labels.columns)
    if labels.empty or len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{directory}: a label table needs rows and distinct column names; got {names}")
    try:
        table = pa.Table.from_pandas(labels, preserve_index=False).replace_schema_metadata(None)
    except (pa.ArrowException, TypeError) as error:
        raise DataError(f"{directory}: the label table has a column of mixed types ({error})") from None
    return table_to_bytes(table)
