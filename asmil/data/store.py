"""Reading a bag store: by offset from the index, into owned memory, checked against the stored checksum every time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs
import torch
from pydantic import ValidationError
from torch import Tensor

from asmil.bags import Bag
from asmil.data.index import BagIndex, IndexRow
from asmil.data.schema import (
    DATASET_FILE,
    INDEX_FILE,
    LABELS_FILE,
    SPLITS_FILE,
    DatasetInfo,
    leftover_names,
)
from asmil.errors import DataError, IntegrityError
from asmil.storage import RangeReader, open_fs

__all__ = ["BagStore", "PackedSlides"]

_TORCH_DTYPES = {
    "float16": torch.float16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
}

HOW_TO_MAKE = "make one with `python -m asmil.data.pack SOURCE --out STORE`, or try a built-in data set with `--demo`"


class PackedSlides(NamedTuple):
    """Several stored slides read into one allocation, in the order asked for.

    Attributes:
        features_MD: Features in the stored dtype.
        slide_offsets: Int64 [S + 1] row boundaries of the slides.
        coords_M2: Coordinates, if the store has them.
        instance_labels_M: Int8 truth per instance, if the store has it.
    """

    features_MD: Tensor
    slide_offsets: Tensor
    coords_M2: Tensor | None
    instance_labels_M: Tensor | None


class BagStore:
    """An open bag store. Threads may share it; it pickles small and without open files.

    Use `BagStore.open`.

    Attributes:
        root: The directory.
        info: Content of `dataset.json`.
        index: Where the slides lie; of a restricted store, only of its slides.
    """

    def __init__(self, root: Path, info: DatasetInfo, index: BagIndex, *, is_restricted: bool) -> None:
        self.root = root
        self.info = info
        self.index = index
        self._is_restricted = is_restricted
        self._files = RangeReader(root)

    @classmethod
    def open(cls, uri: str) -> BagStore:
        """Open a store and check its small files and the sizes of its shards.

        Args:
            uri: Directory of the store.

        Raises:
            DataError: There is no store; the message says how to make one.
            IntegrityError: Files are missing, cut, or differ from `dataset.json`.
        """
        filesystem, path = open_fs(uri)
        if not isinstance(filesystem, pyarrow.fs.LocalFileSystem):
            raise DataError(f"{uri}: only stores on local disks and mounts can be read; copy it to one")
        root = Path(path)
        info = _read_info(root)
        _check_shard_sizes(root, info)
        index = BagIndex.from_bytes(_read_checked(root, INDEX_FILE, info.index_sha256), str(root))
        index.check(info, str(root))
        return cls(root, info, index, is_restricted=False)

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """The stored slides, in file order."""
        return self.index.slide_ids

    def length(self, slide_id: str) -> int:
        """Number of instances of a slide."""
        return self._row(slide_id).n

    def read(self, slide_id: str) -> Bag:
        """Read one slide.

        Raises:
            DataError: The store does not have it.
            IntegrityError: The bytes are missing or are not those that were written.
        """
        packed = self.read_slides((slide_id,))
        return Bag(
            bag_id=slide_id,
            features_ND=packed.features_MD,
            coords_N2=packed.coords_M2,
            slide_offsets=packed.slide_offsets,
            instance_labels_N=packed.instance_labels_M,
        )

    def read_slides(self, slide_ids: Sequence[str], *, pin_memory: bool = False) -> PackedSlides:
        """Read slides one after another into one allocation, page-locked if asked for; raises what `read` raises."""
        rows = [self._row(slide_id) for slide_id in slide_ids]
        starts = [0]
        for row in rows:
            starts.append(starts[-1] + row.n)
        info, total = self.info, starts[-1]
        empty = partial(torch.empty, pin_memory=pin_memory)
        features_MD = empty((total, info.num_features), dtype=_TORCH_DTYPES[info.dtype])
        coords_M2 = empty((total, 2), dtype=_TORCH_DTYPES[info.coord_dtype]) if info.coord_dtype else None
        labels_M = torch.empty(total, dtype=torch.int8) if info.has_instance_labels else None
        features, coords, labels = _bytes_of(features_MD), _bytes_of(coords_M2), _bytes_of(labels_M)
        done_feat = done_coord = done_label = 0
        for slide_id, row in zip(slide_ids, rows, strict=True):
            part = features[done_feat : (done_feat := done_feat + row.feat_nbytes)]
            self._fill(part, slide_id, row.shard, row.feat_offset, row.xxh3_feat, "features")
            part = coords[done_coord : (done_coord := done_coord + row.coord_nbytes)]
            self._fill(part, slide_id, row.shard, row.coord_offset, row.xxh3_coord, "coords")
            part = labels[done_label : (done_label := done_label + row.label_nbytes)]
            self._fill(part, slide_id, row.shard, row.label_offset, row.xxh3_label, "instance_label")
        return PackedSlides(features_MD, torch.tensor(starts), coords_M2, labels_M)

    def labels(self) -> pd.DataFrame | None:
        """The label table; None if the store has none or is restricted.

        Raises:
            IntegrityError: The file differs from `dataset.json`.
        """
        if self.info.labels_sha256 is None or self._is_restricted:
            return None
        content = _read_checked(self.root, LABELS_FILE, self.info.labels_sha256)
        try:
            frame = pa.ipc.open_file(pa.py_buffer(content)).read_all().to_pandas()
        except Exception as error:  # a damaged Arrow file raises more than ArrowInvalid
            raise IntegrityError(
                f"{self.root / LABELS_FILE}: not a table ({error}); convert the source again"
            ) from None
        assert isinstance(frame, pd.DataFrame)
        return frame

    def given_splits(self) -> bytes | None:
        """The file of imported splits; None if the store has none or is restricted.

        Raises:
            IntegrityError: The file differs from `dataset.json`.
        """
        if self.info.splits_sha256 is None or self._is_restricted:
            return None
        return _read_checked(self.root, SPLITS_FILE, self.info.splits_sha256)

    def restrict(self, slide_ids: Sequence[str]) -> BagStore:
        """A store that knows these slides only, and no labels.

        Raises:
            DataError: A slide is not in this store.
        """
        for slide_id in slide_ids:
            self._row(slide_id)
        return BagStore(self.root, self.info, self.index.select(slide_ids), is_restricted=True)

    def _row(self, slide_id: str) -> IndexRow:
        try:
            return self.index.row(slide_id)
        except KeyError:
            which = "this restricted view of the store" if self._is_restricted else "the store"
            raise DataError(
                f"{self.root}: no slide {slide_id!r} in {which}, which has {len(self.slide_ids)} slides"
            ) from None

    def _fill(self, part: memoryview, slide_id: str, shard: int, offset: int, checksum: int, column: str) -> None:
        if len(part) == 0:
            return
        name = self.info.shards[shard].name
        where = f"{self.root}: shard {name}, bag {slide_id!r}, {column}"
        try:
            num_read, found = self._files.read_into(name, offset, part)
        except OSError as error:
            raise IntegrityError(f"{where}: cannot be read ({error}); restore the shard or convert again") from error
        if num_read != len(part):
            raise IntegrityError(
                f"{where}: the file ends early: expected {len(part)} bytes at offset {offset}, got {num_read}; "
                "restore the shard from a copy or convert again"
            )
        if found != checksum:
            raise IntegrityError(
                f"{where}: checksum mismatch: expected xxh3 {checksum:016x}, got {found:016x}; "
                "restore the shard from a copy or convert again"
            )


def _bytes_of(tensor: Tensor | None) -> memoryview:
    """The tensor's memory as writable bytes; of None, no bytes."""
    if tensor is None or tensor.numel() == 0:
        return memoryview(b"")
    array: np.ndarray = tensor.view(torch.uint8).numpy()
    return array.data.cast("B")


def _read_info(root: Path) -> DatasetInfo:
    path = root / DATASET_FILE
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{root}: {_why_no_store(root)}; {HOW_TO_MAKE}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); check path and permissions") from error
    try:
        tree = json.loads(content)
        version = tree.get("format")
    except (ValueError, AttributeError) as error:
        raise IntegrityError(f"{path}: not a JSON object ({error}); restore it or convert again") from None
    if version != DatasetInfo.model_fields["format"].default:
        raise DataError(
            f"{path}: store format {version!r}, this version reads "
            f"{DatasetInfo.model_fields['format'].default!r}; convert the source again or use a matching version"
        )
    try:
        return DatasetInfo.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise IntegrityError(f"{path}: {field}: {problem['msg']}; restore it or convert again") from None


def _why_no_store(root: Path) -> str:
    if not root.exists():
        return "no such directory, so no store"
    if not root.is_dir():
        return "a file, but a store is a directory"
    names = leftover_names(root)
    if not names:
        return "an empty directory, not a store"
    return (
        f"not a store: {DATASET_FILE} is missing beside {', '.join(names)} (other data, or left by an interrupted "
        "conversion: then delete the directory)"
    )


def _check_shard_sizes(root: Path, info: DatasetInfo) -> None:
    for shard in info.shards:
        path = root / shard.name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise IntegrityError(
                f"{root}: shard {shard.name} is missing, {DATASET_FILE} says {shard.bytes} bytes; "
                "restore it from a copy or convert again"
            ) from None
        if size != shard.bytes:
            raise IntegrityError(
                f"{root}: shard {shard.name} has {size} bytes, {DATASET_FILE} says {shard.bytes}; "
                "restore it from a copy or convert again"
            )


def _read_checked(root: Path, name: str, sha256: str) -> bytes:
    try:
        content = (root / name).read_bytes()
    except OSError as error:
        raise IntegrityError(f"{root}: {name} cannot be read ({error}); restore it or convert again") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise IntegrityError(
            f"{root}: {name} has sha256 {found[:16]}…, {DATASET_FILE} says {sha256[:16]}…; restore it or convert again"
        )
    return content
