"""Writing a bag store, so that readers see all of it or none."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import get_args

import numpy as np
import pandas as pd

from asmil.data.arrays import coord_dtype_of, stored_coords, stored_features, stored_instance_labels
from asmil.data.directory import DirectoryLock
from asmil.data.index import IndexRow
from asmil.data.publish import StoreContent, labels_to_bytes, publish_store
from asmil.data.schema import (
    DATASET_FILE,
    INDEX_FILE,
    LABELS_FILE,
    SHARD_FOLDER,
    SPLITS_FILE,
    CoordDtype,
    DatasetFacts,
    FeatureDtype,
    ShardInfo,
    check_slide_id,
    shard_schema,
)
from asmil.data.shards import ShardFile
from asmil.errors import DataError
from asmil.storage import disk_problems

__all__ = ["BagWriter"]


class BagWriter:
    """Writes bags into Arrow shards that readers see completely or not at all.

    Use as a context manager. Shards are written under temporary names, flushed, checked, hashed and renamed;
    `dataset.json` is written last and is the only completion mark. On an exception nothing is published and our files
    are removed; after a hard kill they stay, and readers and the next writer refuse the directory naming them.

    Concurrency: one writer per directory, held by a lock file; one thread per writer.

    Args:
        directory: Target. Must be empty or absent; existing data is never deleted.
        num_features: Width D that every bag must have.
        dtype: Dtype the features are stored in.
        target_shard_bytes: Soft limit; a shard closes after the bag that crosses it. A bag is never split.
        facts: What is known about the features.

    Raises:
        DataError: The directory is not empty, or another writer holds it.
        EnvironmentProblem: It cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        num_features: int,
        dtype: FeatureDtype = "float16",
        target_shard_bytes: int = 512 << 20,
        facts: DatasetFacts | None = None,
    ) -> None:
        allowed = get_args(FeatureDtype)
        if num_features < 1 or dtype not in allowed:
            raise DataError(
                f"{directory}: a store needs num_features >= 1 and a dtype of {', '.join(allowed)}; "
                f"got {num_features} and {dtype!r}"
            )
        self.directory = Path(directory)
        self._num_features = num_features
        self._dtype: FeatureDtype = dtype
        self._target_shard_bytes = target_shard_bytes
        self._facts = facts or DatasetFacts()
        self._lock: DirectoryLock | None = None
        self._coord_dtype: CoordDtype | None = None
        self._has_instance_labels = False
        self._rows: dict[str, IndexRow] = {}
        self._slide_ids: set[str] = set()
        self._shards: list[ShardInfo] = []
        self._shard: ShardFile | None = None
        self._labels: bytes | None = None
        self._splits: bytes | None = None

    def __enter__(self) -> BagWriter:
        self._lock = DirectoryLock(self.directory)
        try:
            self._lock.require_empty()
            with disk_problems(self.directory, "hold a store"):
                (self.directory / SHARD_FOLDER).mkdir()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._lock is not None
        try:
            if kind is None:
                self._publish()
        except BaseException:
            kind = BaseException
            raise
        finally:
            if kind is not None:
                self._remove_everything()
            self._lock.release()

    def add(
        self,
        slide_id: str,
        features_ND: np.ndarray,
        *,
        coords_N2: np.ndarray | None = None,
        instance_labels_N: np.ndarray | None = None,
    ) -> None:
        """Write one slide.

        All slides of a store have coordinates or none has, and likewise instance labels; the first slide decides.

        Args:
            slide_id: Unique id.
            features_ND: Features [N, D]; rounded to the store's dtype. Uint16 bit patterns are taken as bfloat16.
            coords_N2: Coordinates [N, 2]; whole numbers are stored as int32, others as float32.
            instance_labels_N: Truth per instance [N], -128 to 127.

        Raises:
            DataError: A bad or duplicate id, wrong shape, no instances, or values that are not finite (slide, count
                and first row named).
            EnvironmentProblem: The disk is full.
        """
        assert self._lock is not None, "use BagWriter as a context manager"
        check_slide_id(slide_id)
        if slide_id in self._slide_ids:
            raise DataError(f"{self.directory}: slide {slide_id!r} is given twice; slide ids must be unique in a store")
        if not self._slide_ids:
            self._coord_dtype = None if coords_N2 is None else coord_dtype_of(coords_N2)
            self._has_instance_labels = instance_labels_N is not None
        self._check_same_columns(slide_id, coords_N2, instance_labels_N)
        columns = {"features": stored_features(slide_id, features_ND, self._num_features, self._dtype)}
        num_instances = len(features_ND)
        if coords_N2 is not None and self._coord_dtype is not None:
            columns["coords"] = stored_coords(slide_id, coords_N2, num_instances, self._coord_dtype)
        if instance_labels_N is not None:
            columns["instance_label"] = stored_instance_labels(slide_id, instance_labels_N, num_instances)
        self._open_shard().append(slide_id, columns)
        self._slide_ids.add(slide_id)
        if self._open_shard().num_bytes >= self._target_shard_bytes:
            self._close_shard()

    def set_labels(self, labels: pd.DataFrame) -> None:
        """Set the label table kept beside the bags; columns of ids must hold text.

        Raises:
            DataError: No rows, repeated or non-text column names, or a column that mixes types.
        """
        self._labels = labels_to_bytes(labels, self.directory)

    def set_splits(self, splits: bytes) -> None:
        """Set the content of the file of imported splits."""
        self._splits = splits

    def _check_same_columns(
        self, slide_id: str, coords_N2: np.ndarray | None, instance_labels_N: np.ndarray | None
    ) -> None:
        given = {
            "coordinates": (coords_N2 is not None, self._coord_dtype is not None),
            "instance labels": (instance_labels_N is not None, self._has_instance_labels),
        }
        for what, (has, expected) in given.items():
            if has != expected:
                words = ("has no", "have") if expected else ("has", "have no")
                raise DataError(
                    f"slide {slide_id!r} {words[0]} {what} but the slides before it {words[1]} {what}; "
                    "give them for all slides or for none"
                )

    def _open_shard(self) -> ShardFile:
        if self._shard is None:
            position = len(self._shards)
            schema = shard_schema(self._num_features, self._dtype, self._coord_dtype, self._has_instance_labels)
            self._shard = ShardFile(self.directory, f"{SHARD_FOLDER}/part-{position:05d}.arrow", position, schema)
        return self._shard

    def _close_shard(self) -> None:
        if self._shard is not None:
            info, rows = self._shard.publish()
            self._shards.append(info)
            self._rows |= rows
            self._shard = None

    def _publish(self) -> None:
        self._close_shard()
        publish_store(
            self.directory,
            StoreContent(
                facts=self._facts,
                num_features=self._num_features,
                dtype=self._dtype,
                coord_dtype=self._coord_dtype,
                has_instance_labels=self._has_instance_labels,
                shards=tuple(self._shards),
                rows=self._rows,
                labels=self._labels,
                splits=self._splits,
            ),
        )

    def _remove_everything(self) -> None:
        """Remove what this writer made; it held an empty directory under lock, so nothing else is there."""
        with contextlib.suppress(OSError):
            if self._shard is not None:
                self._shard.discard()
            for name in (DATASET_FILE, INDEX_FILE, LABELS_FILE, SPLITS_FILE, *(shard.name for shard in self._shards)):
                (self.directory / name).unlink(missing_ok=True)
            (self.directory / SHARD_FOLDER).rmdir()
