"""Reading a bag store: by offset from the index, into owned memory, checked against the stored checksum every time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import xxhash
from pydantic import ValidationError
from torch import Tensor

from asmil.bags import Bag
from asmil.data.buffers import BufferPool
from asmil.data.index import BagIndex, IndexRow, open_arrow
from asmil.data.schema import (
    DATASET_FILE,
    INDEX_FILE,
    LABELS_FILE,
    SHARD_FOLDER,
    SPLITS_FILE,
    DatasetInfo,
    leftover_names,
)
from asmil.errors import DataError, IntegrityError
from asmil.storage import Block, BlockReader, FoundBlock, Location, direct_blocks, open_location

__all__ = ["BagStore", "PackedSlides"]

_TORCH_DTYPES = {
    "float16": torch.float16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
}
_MAX_TABLE_BYTES = 1 << 30
_MAX_INFO_BYTES = 64 << 20
_MAX_ROW_BYTES = 1 << 10  # of the index, far above what a row takes
_MAP_ALIGNMENT = 8  # bytes; Arrow aligns its buffers so

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
        location: The folder or prefix it lies in.
        info: Content of `dataset.json`.
        index: Where the slides lie; of a restricted store, only of its slides.
    """

    def __init__(
        self, location: Location, info: DatasetInfo, index: BagIndex, blocks: BlockReader, *, is_restricted: bool
    ) -> None:
        self.info = info
        self.index = index
        self.location = location
        self._blocks = blocks
        self._is_restricted = is_restricted
        self._memory = BufferPool()

    @classmethod
    def open(cls, uri: str, *, blocks: Callable[[Location, DatasetInfo], BlockReader] | None = None) -> BagStore:
        """Open a store and check its small files and the sizes of its shards.

        Nothing of the shards is read. Where a remote place does not list its files, wrong sizes come to light when a
        slide is read.

        Args:
            uri: Directory or address of the store: a path, `s3://…`, `gs://…` or any address that fsspec knows.
            blocks: Makes what reads the shards; None reads them where they are.

        Raises:
            ConfigError: The address holds credentials or options.
            DataError: There is no store; the message says how to make one.
            IntegrityError: Files are missing, cut, or differ from `dataset.json`.
            EnvironmentProblem: The place cannot be read now, or not by this user.
        """
        location = open_location(uri)
        info = _read_info(location)
        _check_shard_sizes(location, info)
        max_bytes = (1 << 20) + _MAX_ROW_BYTES * info.num_bags
        content = _read_checked(location, INDEX_FILE, info.index_sha256, max_bytes=max_bytes)
        index = BagIndex.from_bytes(content, location.uri)
        index.check(info, location.uri)
        reader = blocks(location, info) if blocks else direct_blocks(location)
        return cls(location, info, index, reader, is_restricted=False)

    @property
    def uri(self) -> str:
        """The store, as named in messages."""
        return self.location.uri

    @property
    def local_root(self) -> Path | None:
        """Its directory; None if it is on another machine."""
        return self.location.local_root

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
        """Read slides one after another into one allocation, page-locked if asked for; raises what `read` raises.

        A single slide of a mapped store is not copied.
        """
        rows = [self._row(slide_id) for slide_id in slide_ids]
        if len(rows) == 1 and not pin_memory and self._blocks.is_mapped:
            mapped = self._mapped(slide_ids[0], rows[0])
            if mapped is not None:
                return mapped
        starts = [0]
        for row in rows:
            starts.append(starts[-1] + row.n)
        info, total = self.info, starts[-1]
        empty = _pinned if pin_memory else self._memory.empty
        nothing = None, memoryview(b"")
        features_MD, features = empty((total, info.num_features), _TORCH_DTYPES[info.dtype])
        coords_M2, coords = empty((total, 2), _TORCH_DTYPES[info.coord_dtype]) if info.coord_dtype else nothing
        labels_M, labels = self._memory.empty((total,), torch.int8) if info.has_instance_labels else nothing
        packed = PackedSlides(features_MD, torch.from_numpy(np.array(starts)), coords_M2, labels_M)
        done_feat = done_coord = done_label = 0
        for slide_id, row in zip(slide_ids, rows, strict=True):
            part = features[done_feat : (done_feat := done_feat + row.feat_nbytes)]
            blocks = [Block(row.feat_offset, part, row.xxh3_feat)]
            if row.coord_nbytes:
                part = coords[done_coord : (done_coord := done_coord + row.coord_nbytes)]
                blocks.append(Block(row.coord_offset, part, row.xxh3_coord))
            if row.label_nbytes:
                part = labels[done_label : (done_label := done_label + row.label_nbytes)]
                blocks.append(Block(row.label_offset, part, row.xxh3_label))
            self._fill(slide_id, row, blocks)
        return packed

    def labels(self) -> pd.DataFrame | None:
        """The label table; None if the store has none or is restricted.

        Raises:
            IntegrityError: The file differs from `dataset.json`.
        """
        if self.info.labels_sha256 is None or self._is_restricted:
            return None
        content = _read_checked(self.location, LABELS_FILE, self.info.labels_sha256)
        try:
            table = open_arrow(content).read_all()
            table.validate(full=True)
            frame = table.to_pandas()
        except Exception as error:  # a damaged Arrow file raises more than ArrowInvalid
            raise IntegrityError(f"{self.uri}/{LABELS_FILE}: not a table ({error}); convert the source again") from None
        assert isinstance(frame, pd.DataFrame)
        return frame

    def given_splits(self) -> bytes | None:
        """The file of imported splits; None if the store has none or is restricted.

        Raises:
            IntegrityError: The file differs from `dataset.json`.
        """
        if self.info.splits_sha256 is None or self._is_restricted:
            return None
        return _read_checked(self.location, SPLITS_FILE, self.info.splits_sha256)

    def restrict(self, slide_ids: Sequence[str]) -> BagStore:
        """A store that knows these slides only, and no labels.

        Raises:
            DataError: A slide is not in this store.
        """
        for slide_id in slide_ids:
            self._row(slide_id)
        index = self.index.select(slide_ids)
        return BagStore(self.location, self.info, index, self._blocks, is_restricted=True)

    def with_blocks(self, blocks: BlockReader) -> BagStore:
        """The same store, its shards read by other means."""
        return BagStore(self.location, self.info, self.index, blocks, is_restricted=self._is_restricted)

    def _row(self, slide_id: str) -> IndexRow:
        try:
            return self.index.row(slide_id)
        except KeyError:
            which = "this restricted view of the store" if self._is_restricted else "the store"
            raise DataError(
                f"{self.uri}: no slide {slide_id!r} in {which}, which has {len(self.slide_ids)} slides"
            ) from None

    def _fill(self, slide_id: str, row: IndexRow, blocks: Sequence[Block]) -> None:
        """Read the blocks of a slide into memory and check them."""
        shard = self.info.shards[row.shard].name
        try:
            found = self._blocks.read_blocks(shard, blocks)
        except OSError as error:
            raise self._unreadable(shard, slide_id, error) from error
        for asked, block in zip(blocks, found, strict=True):
            if block.xxh3 != asked.xxh3 or block.num_read != len(asked.buffer):
                raise self._damaged(shard, slide_id, _column_at(row, asked.offset), block)

    def _mapped(self, slide_id: str, row: IndexRow) -> PackedSlides | None:
        """A slide whose tensors are views of a private map; None if there is none, or its bytes are not those written.

        Someone may have written to the map, or the file may be damaged: the read that copies knows better.
        """
        shard = self.info.shards[row.shard].name
        tensors: dict[str, Tensor] = {}
        for column in _columns(row):
            if column.nbytes == 0:
                continue
            try:
                view = self._blocks.view(shard, column.offset, column.nbytes)
            except OSError as error:
                raise self._unreadable(shard, slide_id, error) from error
            if view is None or column.offset % _MAP_ALIGNMENT:
                return None
            if len(view) != column.nbytes or xxhash.xxh3_64_intdigest(view.data) != column.xxh3:
                return None
            dtype = {"features": self.info.dtype, "coords": self.info.coord_dtype}.get(column.name)
            tensors[column.name] = torch.from_numpy(view).view(_TORCH_DTYPES[dtype] if dtype else torch.int8)
        coords = tensors.get("coords")
        return PackedSlides(
            tensors["features"].view(row.n, -1),
            torch.tensor([0, row.n]),
            None if coords is None else coords.view(row.n, 2),
            tensors.get("instance_label"),
        )

    def _unreadable(self, shard: str, slide_id: str, error: OSError) -> IntegrityError:
        return IntegrityError(
            f"{self.uri}: shard {shard}, bag {slide_id!r}: cannot be read ({error}); restore the shard or convert again"
        )

    def _damaged(self, shard: str, slide_id: str, column: _Column, found: FoundBlock) -> IntegrityError:
        where = f"{self.uri}: shard {shard}, bag {slide_id!r}, {column.name}"
        if found.num_read != column.nbytes:
            return IntegrityError(
                f"{where}: the file ends early: expected {column.nbytes} bytes at offset {column.offset}, "
                f"got {found.num_read}; restore the shard from a copy or convert again"
            )
        return IntegrityError(
            f"{where}: checksum mismatch: expected xxh3 {column.xxh3:016x}, got {found.xxh3:016x}; "
            "restore the shard from a copy or convert again"
        )


class _Column(NamedTuple):
    """Where a column of a slide lies in its shard."""

    name: str
    offset: int
    nbytes: int
    xxh3: int


def _columns(row: IndexRow) -> tuple[_Column, _Column, _Column]:
    return (
        _Column("features", row.feat_offset, row.feat_nbytes, row.xxh3_feat),
        _Column("coords", row.coord_offset, row.coord_nbytes, row.xxh3_coord),
        _Column("instance_label", row.label_offset, row.label_nbytes, row.xxh3_label),
    )


def _column_at(row: IndexRow, offset: int) -> _Column:
    return next(column for column in _columns(row) if column.nbytes and column.offset == offset)


def _pinned(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, memoryview]:
    """A page-locked tensor without content, and its memory as writable bytes."""
    tensor = torch.empty(shape, dtype=dtype, pin_memory=True)
    array: np.ndarray = tensor.view(-1).view(torch.uint8).numpy()
    return tensor, array.data


def _read_info(location: Location) -> DatasetInfo:
    path = f"{location.uri}/{DATASET_FILE}"
    try:
        content = location.read_file(DATASET_FILE, max_bytes=_MAX_INFO_BYTES)
    except FileNotFoundError:
        raise DataError(f"{location.uri}: {_why_no_store(location.local_root)}; {HOW_TO_MAKE}") from None
    try:
        tree = json.loads(content)
        version = tree.get("format")
    except (ValueError, AttributeError, RecursionError) as error:
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


def _why_no_store(root: Path | None) -> str:
    if root is None:
        return f"nothing at this address is called {DATASET_FILE}, so no store; check bucket and prefix"
    if not root.exists():
        return "no such directory, so no store"
    if not root.is_dir():
        return "a file, but a store is a directory"
    names = leftover_names(root)
    if not names:
        return "an empty directory, not a store"
    return (
        f"not a store: {DATASET_FILE} is missing beside {', '.join(names)} (other data, or left by an interrupted "
        "conversion: then finish it with --resume, or delete the directory)"
    )


def _check_shard_sizes(location: Location, info: DatasetInfo) -> None:
    sizes = location.sizes(SHARD_FOLDER)
    if sizes is None:
        return
    for shard in info.shards:
        size = sizes.get(shard.name)
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise IntegrityError(
                f"{location.uri}: shard {shard.name} {found}, {DATASET_FILE} says {shard.bytes} bytes; "
                "restore it from a copy or convert again"
            )


def _read_checked(location: Location, name: str, sha256: str, *, max_bytes: int = _MAX_TABLE_BYTES) -> bytes:
    try:
        content = location.read_file(name, max_bytes=max_bytes)
    except FileNotFoundError as error:
        raise IntegrityError(f"{location.uri}: {name} cannot be read ({error}); restore it or convert again") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise IntegrityError(
            f"{location.uri}: {name} has sha256 {found[:16]}…, {DATASET_FILE} says {sha256[:16]}…; "
            "restore it or convert again"
        )
    return content
