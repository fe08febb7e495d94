"""What the per-tile formats share: a feature matrix and a coordinate matrix with one row per tile."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py

from asmil.data.arrays import coord_dtype_of
from asmil.data.sources.base import SlideHeader, SourceBag
from asmil.data.sources.hdf5 import numeric_dataset, read_all
from asmil.errors import DataError

__all__ = ["FILE_SUFFIXES", "TileDatasets", "describe", "slide_id_of", "tile_datasets"]

FILE_SUFFIXES = (".h5", ".hdf5")


def slide_id_of(path: Path) -> str:
    """The slide a per-slide file belongs to: its name without `.h5` or `.hdf5`, and nothing else cut off.

    Example:
        >>> slide_id_of(Path("TCGA-2F-A9KO-01Z-00-DX1.1955.ome.h5"))
        'TCGA-2F-A9KO-01Z-00-DX1.1955.ome'
    """
    return path.stem if path.suffix.lower() in FILE_SUFFIXES else path.name


def describe(*datasets: h5py.Dataset) -> str:
    """Name, dtype and shape of datasets, for the line that says what was found."""
    return ", ".join(f"{item.name.rsplit('/', 1)[-1]} {item.dtype} {list(item.shape)}" for item in datasets)


class TileDatasets(NamedTuple):
    """The checked, still unread datasets of one slide."""

    features: h5py.Dataset
    coords: h5py.Dataset

    def header(self, slide_id: str) -> SlideHeader:
        """What the shapes and dtypes say."""
        num_instances, num_features = self.features.shape
        return SlideHeader(slide_id, num_instances, num_features, coord_dtype_of(self.coords))

    def read(self) -> SourceBag:
        """Both, whole, in the dtypes of the file."""
        return SourceBag(read_all(self.features), read_all(self.coords))


def tile_datasets(parent: h5py.Group, feature_key: str, path: Path) -> TileDatasets:
    """Features and coordinates of one slide, checked against each other.

    Args:
        parent: File or group that holds both.
        feature_key: Name of the features; the coordinates are `coords`.
        path: The file, to be named in errors.

    Raises:
        DataError: Wrong rank, features that are not floats, or row counts that differ.
    """
    features, coords = numeric_dataset(parent, feature_key, path), numeric_dataset(parent, "coords", path)
    if features.ndim != 2 or features.dtype.kind != "f":
        raise DataError(
            f"{path}: {features.name} is {features.dtype} {list(features.shape)}, expected floats of shape [N, D]"
        )
    if coords.shape != (features.shape[0], 2):
        raise DataError(
            f"{path}: {coords.name} has shape {list(coords.shape)}, expected [{features.shape[0]}, 2] for "
            f"{features.shape[0]} rows of features; coordinates and features do not belong together"
        )
    return TileDatasets(features, coords)
