"""What the per-tile formats share: a feature matrix and a coordinate matrix with one row per tile."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from asmil.data.arrays import coord_dtype_of
from asmil.data.schema import DatasetFacts
from asmil.data.sources.base import ContentError, SlideHeader, Source, SourceBag
from asmil.data.sources.hdf5 import check_complete, read_all

__all__ = [
    "ASK_FOR_RESOLUTION",
    "FILE_SUFFIXES",
    "TileDatasets",
    "describe",
    "has_features",
    "slide_id_of",
    "tile_datasets",
    "tile_source",
]

FILE_SUFFIXES = (".h5", ".hdf5")
ASK_FOR_RESOLUTION = "do not say at what resolution their tiles were cut; to keep that with the store, give "


def slide_id_of(path: Path) -> str:
    """The slide a per-slide file belongs to: its name without `.h5` or `.hdf5`, and nothing else cut off.

    Example:
        >>> slide_id_of(Path("TCGA-2F-A9KO-01Z-00-DX1.1955.ome.h5"))
        'TCGA-2F-A9KO-01Z-00-DX1.1955.ome'
    """
    return path.stem if path.suffix.lower() in FILE_SUFFIXES else path.name


def describe(*datasets: h5py.Dataset | None) -> str:
    """Name, dtype and shape of those datasets that exist, for the line that says what was found."""
    return ", ".join(
        f"{item.name.rsplit('/', 1)[-1]} {item.dtype} {list(item.shape)}" for item in datasets if item is not None
    )


def has_features(keys: Collection[str]) -> bool:
    """Whether the root keys are those of a file with `features` per tile; with `labels` it is torchmil's."""
    return "features" in keys and "labels" not in keys


class TileDatasets(NamedTuple):
    """The checked, still unread datasets of one slide.

    Attributes:
        features: Shape [N, D], or [1, N, D] where `tile_datasets` was told to expect that.
        coords: As many rows; x and y are its first two columns. None if the slide has no coordinates.
    """

    features: h5py.Dataset
    coords: h5py.Dataset | None

    def header(self, slide_id: str) -> SlideHeader:
        """What the shapes and dtypes say."""
        num_instances, num_features = self.features.shape[-2:]
        return SlideHeader(
            slide_id, num_instances, num_features, None if self.coords is None else coord_dtype_of(self.coords)
        )

    def read(self) -> SourceBag:
        """Both, whole, in the dtypes of the file."""
        return SourceBag(read_all(self.features).reshape(self.features.shape[-2:]), self.read_coords())

    def read_coords(self) -> np.ndarray | None:
        """The coordinates alone, shape [N, 2]."""
        if self.coords is None:
            return None
        return np.ascontiguousarray(read_all(self.coords).reshape(self.coords.shape[-2:])[:, :2])

    def check_complete(self, path: Path) -> None:
        """Check that both were written to their end.

        Raises:
            DataError: Parts are missing.
        """
        for dataset in (self.features, self.coords):
            if dataset is not None:
                check_complete(dataset, path)


def tile_datasets(
    features: h5py.Dataset, coords: h5py.Dataset | None, path: Path, *, num_columns: int = 2, stacked: bool = False
) -> TileDatasets:
    """Features and coordinates of one slide, checked against each other.

    Args:
        features: As `numeric_dataset` gave it.
        coords: Likewise; None if the slide has none.
        path: The file, to be named in errors.
        num_columns: Columns the coordinates must have.
        stacked: A leading dimension of 1 is allowed.

    Raises:
        ContentError: Wrong rank, features that are not floats, or row counts that differ.
    """
    lead = (1,) if stacked and features.ndim == 3 else ()
    if features.ndim != 2 + len(lead) or features.shape[: len(lead)] != lead or features.dtype.kind != "f":
        bits = "; if these are bit patterns of bfloat16, write them as float32" if features.dtype == np.uint16 else ""
        raise ContentError(
            f"{path}: {features.name} is {features.dtype} {list(features.shape)}, expected floats of shape "
            f"{'[1, N, D] or ' if stacked else ''}[N, D]{bits}"
        )
    if features.shape[-1] == 0:
        raise ContentError(f"{path}: {features.name} has shape {list(features.shape)}: vectors of width 0")
    num_rows = features.shape[-2]
    expected = [(num_rows, num_columns)] + [(1, num_rows, num_columns)] * stacked
    if coords is not None and coords.shape not in expected:
        raise ContentError(
            f"{path}: {coords.name} has shape {list(coords.shape)}, expected {list(expected[0])} for "
            f"{num_rows} rows of features; coordinates and features do not belong together"
        )
    return TileDatasets(features, coords)


def tile_source(
    path: Path,
    tiles: TileDatasets,
    read: Callable[[str], SourceBag],
    facts: DatasetFacts,
    notes: tuple[str, ...] = (),
) -> Source:
    """The source of a file with one slide: its header, or its mention in `no_tissue` if it has no tiles.

    Raises:
        DataError: The datasets were not written to their end.
    """
    header = tiles.header(slide_id_of(path))
    if header.num_instances == 0:
        return Source((), read, no_tissue=(header.slide_id,))
    tiles.check_complete(path)
    return Source((header,), read, facts, notes=notes)
