"""What a bag store consists of: names, types and rules shared by its writer, its readers and `verify`.

- `dataset.json`: facts, shard list with sizes and sha256; written last: without it there is no store
- `index.arrow`: one row per stored slide: where its bytes lie and their xxh3-64
- `labels.arrow`: the label table, if there is one
- `splits.json`: the imported splits, if there are any
- `shards/*.arrow`: Arrow IPC files, uncompressed, one record batch per stored slide
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from asmil.config import StrictModel
from asmil.errors import DataError

__all__ = [
    "COORD_DTYPES",
    "DATASET_FILE",
    "FEATURE_DTYPES",
    "INDEX_FILE",
    "LABELS_FILE",
    "LOCK_FILE",
    "PACK_FOLDER",
    "SHARD_FOLDER",
    "SPLITS_FILE",
    "CoordDtype",
    "DatasetFacts",
    "DatasetInfo",
    "FeatureDtype",
    "ShardInfo",
    "StoredDtype",
    "check_slide_id",
    "leftover_names",
    "shard_schema",
]

DATASET_FILE = "dataset.json"
INDEX_FILE = "index.arrow"
LABELS_FILE = "labels.arrow"
LOCK_FILE = ".writer.lock"
PACK_FOLDER = ".pack"  # state of an unfinished conversion
SHARD_FOLDER = "shards"
SPLITS_FILE = "splits.json"

FeatureDtype = Literal["float16", "float32", "bfloat16"]
CoordDtype = Literal["int32", "float32"]

_SLIDE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_SHARD_NAME = r"^shards/[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.arrow$"
_SHA256 = r"^[0-9a-f]{64}$"


@dataclass(frozen=True)
class StoredDtype:
    """How one declared dtype looks to Arrow and numpy; bfloat16 lies in the shards as its bit pattern.

    Torch's counterparts are in `asmil.data.store`: the processes that convert foreign files do without torch.
    """

    arrow: pa.DataType
    numpy: np.dtype[Any]
    largest: float  # greatest finite value


FEATURE_DTYPES: dict[str, StoredDtype] = {
    "float16": StoredDtype(pa.float16(), np.dtype("<f2"), 65504.0),
    "float32": StoredDtype(pa.float32(), np.dtype("<f4"), float(np.finfo(np.float32).max)),
    "bfloat16": StoredDtype(pa.uint16(), np.dtype("<u2"), 255 * 2.0**120),
}
COORD_DTYPES: dict[str, StoredDtype] = {
    "int32": StoredDtype(pa.int32(), np.dtype("<i4"), 2.0**31 - 1),
    "float32": FEATURE_DTYPES["float32"],
}


class DatasetFacts(StrictModel):
    """What the producer of a store knows about its features.

    Attributes:
        encoder: Name of the network that made the features.
        magnification: Objective magnification of the tiles.
        mpp: Micrometres per pixel of the tiles.
        tile_size: Edge of a tile in pixels at that resolution.
        coord_unit: Unit of the coordinates, such as `level0_px` or `um`.
        coord_origin: Which point of a tile they give: `top_left` or `center`.
        provenance: Where the features come from: source format, folder, tool versions.
        simulated: The features or labels were made up; every log and report says so.
        facts: Anything else that is known, such as the C-index of the true risk of a simulated cohort.
    """

    encoder: str | None = None
    magnification: float | None = None
    mpp: float | None = None
    tile_size: int | None = None
    coord_unit: str | None = None
    coord_origin: str | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    simulated: bool = False
    facts: dict[str, Any] = Field(default_factory=dict)


class ShardInfo(StrictModel):
    """One shard file: name below the store, size in bytes, hex sha256."""

    name: str = Field(pattern=_SHARD_NAME)
    bytes: int = Field(ge=0, lt=1 << 63)
    sha256: str = Field(pattern=_SHA256)


class DatasetInfo(DatasetFacts):
    """The content of `dataset.json`.

    Attributes:
        format: Name and version of the layout.
        num_features: Width D of every bag.
        dtype: Dtype of the features.
        coord_dtype: Dtype of the coordinates; None if the store has none.
        has_instance_labels: Whether every bag carries a truth per instance.
        num_bags: Stored slides.
        num_instances: Instances of all stored slides together.
        shards: The shard files, in the order `index.arrow` counts them.
        index_sha256: Hash of `index.arrow`.
        labels_sha256: Hash of `labels.arrow`; None if the store has no label table.
        splits_sha256: Hash of `splits.json`; None if the store has no imported splits.
        dataset_id: Hash of ids, lengths and checksums of all bags; independent of the cut into shards.
    """

    format: Literal["asmil-store/1"] = "asmil-store/1"
    num_features: int = Field(ge=1, le=1 << 24)
    dtype: FeatureDtype
    coord_dtype: CoordDtype | None
    has_instance_labels: bool
    num_bags: int = Field(ge=1, lt=1 << 32)
    num_instances: int = Field(ge=1, lt=1 << 63)
    shards: tuple[ShardInfo, ...] = Field(min_length=1)
    index_sha256: str = Field(pattern=_SHA256)
    labels_sha256: str | None = Field(pattern=_SHA256)
    splits_sha256: str | None = Field(default=None, pattern=_SHA256)
    dataset_id: str = Field(pattern=_SHA256)


def check_slide_id(slide_id: str) -> None:
    """Refuse an id that could be mistaken for a path, a control sequence or another id.

    Raises:
        DataError: The id breaks the rule; the message states it.

    Example:
        >>> check_slide_id("TCGA-2F-A9KO-01Z-00-DX1.195576CF")
        >>> check_slide_id("../x")
        Traceback (most recent call last):
        asmil.errors.DataError: slide id '../x': allowed are 1 to 128 ASCII letters, digits and . _ + -, ...
    """
    if not (isinstance(slide_id, str) and _SLIDE_ID.fullmatch(slide_id)):
        raise DataError(
            f"slide id {str(slide_id)[:160]!r}: allowed are 1 to 128 ASCII letters, digits and . _ + -, the first a "
            "letter or digit; rename the slide in the source and in the label table"
        )


def leftover_names(directory: Path, limit: int = 8) -> list[str]:
    """The first names in a directory that should hold a store or nothing, those of its shard folder included."""
    names = (path for path in directory.iterdir() if path.name != LOCK_FILE)
    shards = (directory / SHARD_FOLDER).glob("*")
    return sorted(str(path.relative_to(directory)) for path in islice(chain(names, shards), limit))


def shard_schema(
    num_features: int, dtype: FeatureDtype, coord_dtype: CoordDtype | None, has_instance_labels: bool
) -> pa.Schema:
    """The Arrow schema of every shard of a store: storage types only, nothing nullable."""
    fields = [("features", _fixed_list(FEATURE_DTYPES[dtype].arrow, num_features))]
    if coord_dtype is not None:
        fields.append(("coords", _fixed_list(COORD_DTYPES[coord_dtype].arrow, 2)))
    if has_instance_labels:
        fields.append(("instance_label", pa.int8()))
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


def _fixed_list(item: pa.DataType, length: int) -> pa.DataType:
    return pa.list_(pa.field("item", item, nullable=False), length)
