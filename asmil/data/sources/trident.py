"""TRIDENT's patch features: `features_<encoder>/<slide>.h5` with `features`, `coords` and attributes on both.

Slides without tissue are written on purpose, as `[0, D]` or as rank-1 `[0]`. Slide vectors share the keys and differ by
rank only: they are recognised and refused, because one vector is no bag.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import h5py

from asmil.data.schema import DatasetFacts, FeatureDtype
from asmil.data.sources.base import ContentError, ReadOptions, Source, SourceBag, UnitKind
from asmil.data.sources.hdf5 import attribute, attribute_number, is_hdf5, numeric_dataset, open_hdf5
from asmil.data.sources.tiles import TileDatasets, describe, has_features, slide_id_of, tile_datasets, tile_source
from asmil.errors import DataError

__all__ = ["TridentHdf5"]

_ATTRIBUTES = ("encoder", "name", "patch_size", "patch_size_level0", "savetodir", "target_magnification")


class TridentHdf5:
    """Reader of TRIDENT's `.h5` patch features."""

    name = "trident-h5"
    layout = "TRIDENT .h5 per slide: features [N, D] and coords [N, 2] with attributes such as encoder, patch_size"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()

    def detect(self, path: Path) -> str | None:
        """Keys `features` of rank 1 or 2 and `coords`, at least one with attributes, and no `labels`.

        Raises:
            DataError: It is one of TRIDENT's coordinate files.
        """
        if not is_hdf5(path):
            return None
        with open_hdf5(path) as file:
            keys = set(file)
            if keys == {"coords"} and "patch_size_level0" in numeric_dataset(file, "coords", path).attrs:
                raise DataError(
                    f"{path}: a coordinate file of TRIDENT without features; give the folder features_<encoder> beside "
                    "its patches folder"
                )
            if not has_features(keys) or "coords" not in keys:
                return None
            features, coords = numeric_dataset(file, "features", path), numeric_dataset(file, "coords", path)
            if features.ndim not in (1, 2) or not (len(features.attrs) or len(coords.attrs)):
                return None
            named = [name for name in _ATTRIBUTES if name in features.attrs or name in coords.attrs]
            return f"HDF5 with {describe(features, coords)} and attributes {', '.join(named) or 'of other names'}"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide of the file name, or its mention in `no_tissue`."""
        read = partial(_read, path)
        with open_hdf5(path) as file:
            shape = numeric_dataset(file, "features", path).shape
            if shape == (0,):
                return Source((), read, no_tissue=(slide_id_of(path),))
            if len(shape) == 1:
                raise ContentError(
                    f"{path}: features has rank 1 ({shape[0]} values): a slide vector of TRIDENT, not patch features; "
                    "multiple-instance learning needs one row per tile: give the folder features_<encoder>, not "
                    "slide_features_<encoder>"
                )
            return tile_source(path, _tiles(file, path), read, _facts(file, path))


def _tiles(file: h5py.File, path: Path) -> TileDatasets:
    return tile_datasets(numeric_dataset(file, "features", path), numeric_dataset(file, "coords", path), path)


def _read(path: Path, slide_id: str) -> SourceBag:
    with open_hdf5(path) as file:
        return _tiles(file, path).read()


def _facts(file: h5py.File, path: Path) -> DatasetFacts:
    coords = file["coords"]
    encoder = attribute(file["features"], "encoder", path)
    tile_size = attribute_number(coords, "patch_size", path)
    overlap = attribute_number(coords, "overlap", path)
    return DatasetFacts(
        encoder=None if encoder is None else str(encoder),
        magnification=attribute_number(coords, "target_magnification", path),
        tile_size=None if tile_size is None else int(tile_size),
        coord_unit="level0_px",
        coord_origin="top_left",
        facts={} if overlap is None else {"tile_overlap_px": int(overlap)},
    )
