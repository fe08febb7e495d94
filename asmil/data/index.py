"""The index of a store: where in which shard the bytes of every stored slide lie, and their checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from asmil.data.schema import COORD_DTYPES, FEATURE_DTYPES, DatasetInfo, check_slide_id
from asmil.errors import DataError, IntegrityError

__all__ = ["BagIndex", "IndexRow", "open_arrow", "table_to_bytes"]


class IndexRow(NamedTuple):
    """Where one stored slide lies; what a store does not have takes 0 bytes.

    Attributes:
        shard: Position in the shard list of `dataset.json`.
        feat_offset: First byte of the features in the shard file.
        feat_nbytes: Their length in bytes.
        coord_offset: First byte of the coordinates.
        coord_nbytes: Their length in bytes.
        label_offset: First byte of the instance labels.
        label_nbytes: Their length in bytes.
        n: Number of instances.
        xxh3_feat: xxh3-64 of the feature bytes.
        xxh3_coord: xxh3-64 of the coordinate bytes.
        xxh3_label: xxh3-64 of the instance-label bytes.
    """

    shard: int
    feat_offset: int
    feat_nbytes: int
    coord_offset: int
    coord_nbytes: int
    label_offset: int
    label_nbytes: int
    n: int
    xxh3_feat: int
    xxh3_coord: int
    xxh3_label: int


_ROW_DTYPE = np.dtype(
    [(name, "<u8" if name.startswith("xxh3") else "<i4" if name == "shard" else "<i8") for name in IndexRow._fields]
)
_BLOCKS = ("feat", "coord", "label")
_TRAILER_BYTES = 10  # length of the footer and the magic of an Arrow IPC file
_NONE = (0, "values", 1)  # width, dtype and bytes per value of what a store does not have


class BagIndex:
    """The rows of `index.arrow`, kept as one small array so that an index of thousands of slides pickles small.

    Args:
        slide_ids: Stored slides in file order.
        rows: One `IndexRow` each.
    """

    def __init__(self, slide_ids: Iterable[str], rows: Sequence[IndexRow] | np.ndarray) -> None:
        self.slide_ids = tuple(slide_ids)
        self._rows = rows if isinstance(rows, np.ndarray) else np.array(list(rows), dtype=_ROW_DTYPE)
        self._positions = {slide_id: position for position, slide_id in enumerate(self.slide_ids)}

    def __contains__(self, slide_id: object) -> bool:
        return slide_id in self._positions

    def row(self, slide_id: str) -> IndexRow:
        """The row of a slide; `KeyError` if it has none."""
        return IndexRow._make(self._rows[self._positions[slide_id]].item())

    def select(self, slide_ids: Sequence[str]) -> BagIndex:
        """The index of some slides only, in the order of this index."""
        positions = sorted({self._positions[slide_id] for slide_id in slide_ids})
        return BagIndex((self.slide_ids[position] for position in positions), self._rows[positions])

    def dataset_id(self) -> str:
        """Identity of the stored data: the same bags give the same id, however they are cut into shards."""
        checksums = zip(*(self._rows[f"xxh3_{block}"].tolist() for block in _BLOCKS), strict=True)
        lines = sorted(
            f"{slide_id}\t{n}\t{feat:016x}\t{coord:016x}\t{label:016x}\n"
            for slide_id, n, (feat, coord, label) in zip(
                self.slide_ids, self._rows["n"].tolist(), checksums, strict=True
            )
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """The content of `index.arrow`."""
        columns = {"slide_id": pa.array(self.slide_ids, pa.string())}
        columns |= {name: pa.array(np.ascontiguousarray(self._rows[name])) for name in IndexRow._fields}
        table = pa.table(columns)
        table = table.cast(pa.schema([field.with_nullable(False) for field in table.schema]))
        return table_to_bytes(table)

    @classmethod
    def from_bytes(cls, content: bytes, source: str) -> BagIndex:
        """Read `index.arrow`.

        Raises:
            IntegrityError: The bytes are not an index.
        """
        try:
            table = open_arrow(content).read_all()
            table.validate(full=True)
            slide_ids = table.column("slide_id").to_pylist()
            rows = np.empty(len(slide_ids), dtype=_ROW_DTYPE)
            for name in IndexRow._fields:
                rows[name] = table.column(name).to_numpy()
        except Exception as error:  # a damaged Arrow file raises more than ArrowInvalid
            raise IntegrityError(f"{source}: not an index of bags ({error}); restore it or convert again") from None
        return cls(slide_ids, rows)

    def check(self, info: DatasetInfo, source: str) -> None:
        """Refuse an index that contradicts `dataset.json` or points outside its shards.

        Args:
            info: The store's facts.
            source: The store, as named in errors.

        Raises:
            IntegrityError: Counts, lengths or ranges are impossible.
        """
        problem = self._problem(info)
        if problem is not None:
            raise IntegrityError(f"{source}: index.arrow contradicts dataset.json: {problem}; convert the source again")

    def _problem(self, info: DatasetInfo) -> str | None:
        rows = self._rows
        if len(rows) != info.num_bags or int(rows["n"].sum()) != info.num_instances:
            return (
                f"{len(rows)} bags with {int(rows['n'].sum())} instances, "
                f"expected {info.num_bags} with {info.num_instances}"
            )
        if len(self._positions) != len(rows):
            return "a slide id occurs twice"
        for slide_id in self.slide_ids:
            try:
                check_slide_id(slide_id)
            except DataError as error:
                return str(error)
        if not ((rows["shard"] >= 0) & (rows["shard"] < len(info.shards)) & (rows["n"] >= 1)).all():
            return "a bag lies in no shard or has no instances"
        return self._range_problem(info)

    def _range_problem(self, info: DatasetInfo) -> str | None:
        shapes = {
            "feat": (info.num_features, info.dtype, FEATURE_DTYPES[info.dtype].numpy.itemsize),
            "coord": (2, info.coord_dtype, COORD_DTYPES[info.coord_dtype].numpy.itemsize)
            if info.coord_dtype
            else _NONE,
            "label": (1, "int8", 1) if info.has_instance_labels else _NONE,
        }
        shard_bytes = np.array([shard.bytes for shard in info.shards])[self._rows["shard"]]
        for block, (width, dtype, itemsize) in shapes.items():
            offset, nbytes, n = self._rows[f"{block}_offset"], self._rows[f"{block}_nbytes"], self._rows["n"]
            bad = (nbytes != n * width * itemsize) | (offset < 0) | (offset > shard_bytes - nbytes)
            if bad.any():
                first = int(np.argmax(bad))
                return (
                    f"bag {self.slide_ids[first]!r} declares {nbytes[first]} bytes of {block} at {offset[first]}, that "
                    f"is {n[first]} x {nbytes[first] / n[first] / itemsize:g} {dtype}, expected "
                    f"{n[first] * width * itemsize} ({n[first]} x {width} {dtype}) within a shard of "
                    f"{shard_bytes[first]}"
                )
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {"slide_ids": self.slide_ids, "rows": self._rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["slide_ids"], state["rows"])  # type: ignore[misc]


def table_to_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of an Arrow IPC file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def open_arrow(content: bytes | pa.Buffer) -> pa.RecordBatchFileReader:
    """Open an Arrow IPC file that holds storage types only.

    As soon as Arrow reads the name of an extension type in a schema, it runs what some library has registered for that
    name, which may unpickle its metadata. So the name is looked for before Arrow sees the schema, which is in the
    footer.

    Args:
        content: The whole file.

    Raises:
        ValueError: There is an extension type; Arrow's own errors if it is no such file.
    """
    view = memoryview(content)
    length = int.from_bytes(view[-_TRAILER_BYTES : 4 - _TRAILER_BYTES], "little", signed=True)
    if 0 < length <= len(view) and b"ARROW:extension:name" in bytes(view[-length - _TRAILER_BYTES : -_TRAILER_BYTES]):
        raise ValueError("it holds Arrow extension types, which may run code when they are read")
    return pa.ipc.open_file(pa.BufferReader(content))
