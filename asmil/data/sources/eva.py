"""eva's embeddings: a folder with `manifest.csv` and the `.pt` files it names, each a list of vectors or one tensor.

Rows with the same `wsi_id` are one bag; without that column each file is one. `target` becomes the label column `label`
and `split` the column of that name.

eva keeps the places of its patches in `coords_<split>.csv`, but saves the vectors in portions, later portions in front
of earlier ones and those of several devices mixed. Which vector belongs to which place cannot be told from the files,
so bags have no coordinates.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from asmil.data.schema import FeatureDtype
from asmil.data.sources.base import ContentError, LabelValue, ReadOptions, SlideHeader, Source, SourceBag, UnitKind
from asmil.data.sources.csv_files import csv_header, csv_rows
from asmil.data.sources.many_bags import bag_headers, inside
from asmil.data.sources.matrices import FeatureShape, feature_shape
from asmil.data.sources.torch_files import list_header, read_torch, torch_content
from asmil.errors import DataError

__all__ = ["EvaEmbeddings"]

_MANIFEST = "manifest.csv"
_COLUMNS = ("origin", "embeddings", "target", "split")
_GROUP_COLUMN = "wsi_id"
_NOTE = "note: eva does not say how its tiles were cut; to keep that with the store, give --encoder and --mpp"
_COORDS_NOTE = (
    "note: coords_*.csv are not read: eva saves later vectors in front of earlier ones, so it is not known which place "
    "belongs to which vector"
)


class EvaEmbeddings:
    """Reader of a folder that eva wrote."""

    name = "eva"
    layout = "eva folder: manifest.csv (origin, embeddings, target, split, perhaps wsi_id) and the .pt files it names"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "folder"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()

    def detect(self, path: Path) -> str | None:
        """A manifest with eva's columns."""
        header = csv_header(path / _MANIFEST)
        return f"a folder with {_MANIFEST}: {', '.join(header)}" if set(_COLUMNS) <= set(header) else None

    def open(self, path: Path, options: ReadOptions) -> Source:
        """One bag per `wsi_id`, or per file, in the order of the manifest."""
        rows = _grouped(path)
        files = {bag: [inside(path, row["embeddings"], str(path / _MANIFEST)) for row in rows[bag]] for bag in rows}
        found = bag_headers(files, lambda bag: _header(bag, files[bag]))
        if found.slides and all(header.num_instances == 1 for header in found.slides):
            raise ContentError(
                f"{path}: each of the {len(found.slides)} entries of {_MANIFEST} holds one vector: embeddings of "
                "single images or of whole slides, not of tiles; multiple-instance learning needs one row per tile"
            )
        labels = {header.slide_id: _labels(path, header.slide_id, rows[header.slide_id]) for header in found.slides}
        notes = (_NOTE, _COORDS_NOTE) if any(path.glob("coords_*.csv")) else (_NOTE,)
        read = found.guarded(partial(_read, files))
        return Source(found.slides, read, no_tissue=found.no_tissue, labels=labels, notes=notes)


def _grouped(path: Path) -> dict[str, list[dict[str, str]]]:
    rows = csv_rows(path / _MANIFEST, *_COLUMNS)
    grouped: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        bag = row.get(_GROUP_COLUMN) or PurePosixPath(row["embeddings"]).stem
        if bag in grouped and not row.get(_GROUP_COLUMN):
            raise ContentError(
                f"{path / _MANIFEST}: {grouped[bag][0]['embeddings']} and {row['embeddings']} would both be bag "
                f"{bag!r}; add a column {_GROUP_COLUMN} that says which bag a row belongs to"
            )
        grouped.setdefault(bag, []).append(row)
    if not grouped:
        raise DataError(f"{path / _MANIFEST}: no rows; eva was cut off before it wrote any: run it again")
    return grouped


def _header(bag: str, files: Sequence[Path]) -> SlideHeader | None:
    shapes = [_shape(file) for file in files]
    widths = {shape.num_features for shape in shapes if shape.num_instances}
    if not widths:
        return None
    if len(widths) > 1:
        raise ContentError(f"bag {bag!r}: its vectors have widths {sorted(widths)}, expected one width")
    return SlideHeader(bag, sum(shape.num_instances for shape in shapes), widths.pop())


def _shape(file: Path) -> FeatureShape:
    """Rows and width of all vectors in a file."""
    if not file.is_file():
        raise DataError(f"{file}: {_MANIFEST} names this file, but it does not exist; copy it too")
    found = file.stat()
    return _shape_of(file, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 16)  # a folder is opened for every shard of the store
def _shape_of(file: Path, num_bytes: int, modified_ns: int) -> FeatureShape:
    del num_bytes, modified_ns  # parts of the key
    vectors = list_header(file)
    if vectors is not None and len(vectors[1].shape) == 1:
        return FeatureShape(vectors[0], vectors[1].shape[0])
    content = torch_content(file)
    if content is None or content.kind not in ("tensor", "list") or content.others:
        raise DataError(f"{file}: no tensor or list of tensors as eva writes them; make or copy it again")
    parts = []
    for key, header in content.arrays.items():
        shape = (1, *header.shape) if len(header.shape) == 1 and header.shape != (0,) else header.shape
        parts.append(feature_shape(f"{file}: tensor {key}" if key else f"{file}: the tensor", shape, header.dtype))
    filled = [part for part in parts if part.num_instances]
    if len({part.num_features for part in filled}) > 1:
        raise ContentError(f"{file}: holds vectors of different widths, expected one width")
    width = filled[0].num_features if filled else 0
    return FeatureShape(sum(part.num_instances for part in filled), width)


def _read(files: Mapping[str, Sequence[Path]], bag: str) -> SourceBag:
    rows = []
    for file in files[bag]:
        content = torch_content(file)
        assert content is not None, "open() has seen it"
        arrays = read_torch(file, *content.arrays)
        rows += [array.reshape(-1, array.shape[-1]) for array in arrays if array.size]
    return SourceBag(np.concatenate(rows))


def _labels(path: Path, bag: str, rows: Sequence[Mapping[str, str]]) -> dict[str, LabelValue]:
    values: dict[str, LabelValue] = {}
    for column, name in (("target", "label"), ("split", "split")):
        found = {row[column] for row in rows}
        if len(found) > 1:
            raise ContentError(
                f"{path / _MANIFEST}: bag {bag!r} has {column} {' and '.join(sorted(found))}; expected the same in all "
                "of its rows"
            )
        text = found.pop()
        if text.endswith(".pt"):
            raise ContentError(
                f"{path / _MANIFEST}: target {text!r} is a mask; embeddings for segmentation are no bags"
            )
        if text:
            values[name] = _plain(text) if name == "label" else text
    return values


def _plain(text: str) -> LabelValue:
    """A whole number as such; anything else stays text."""
    try:
        return int(text)
    except ValueError:
        return text
