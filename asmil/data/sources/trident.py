"""TRIDENT's patch features: `features_<encoder>/<slide>.h5` with `features`, `coords` and attributes on both.

Slides without tissue are written on purpose, as `[0, D]` or as rank-1 `[0]`. Slide vectors share the keys and differ by
rank only: they are recognised and refused, because one vector is no bag.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import h5py

from asmil.data.schema import DatasetFacts, FeatureDtype
from asmil.data.sources.base import ReadOptions, Source, SourceBag, UnitKind
from asmil.data.sources.hdf5 import attribute_number, attributes, is_hdf5, numeric_dataset, open_hdf5
from asmil.data.sources.tiles import describe, slide_id_of, tile_datasets
from asmil.errors import DataError

__all__ = ["TridentHdf5"]


class TridentHdf5:
    """Reader of TRIDENT's `.h5` patch features."""

    name = "trident-h5"
    layout = "TRIDENT .h5 per slide: features [N, D] and coords [N, 2] with attributes such as encoder, patch_size"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()

    def detect(self, path: Path) -> str | None:
        """Keys `features` of rank 1 or 2 and `coords`, at least one with attributes."""
        if not is_hdf5(path):
            return None
        with open_hdf5(path) as file:
            if not {"features", "coords"} <= set(file):
                return None
            features, coords = numeric_dataset(file, "features", path), numeric_dataset(file, "coords", path)
            named = sorted({*features.attrs, *coords.attrs})
            if features.ndim not in (1, 2) or not named:
                return None
            return f"HDF5 with {describe(features, coords)} and attributes {', '.join(named)}"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide of the file name, or its mention in `no_tissue`."""
        slide_id = slide_id_of(path)
        with open_hdf5(path) as file:
            shape = file["features"].shape
            if shape[0] == 0:
                return Source((), partial(_read, path), no_tissue=(slide_id,))
            if len(shape) == 1:
                raise DataError(
                    f"{path}: features has rank 1 ({shape[0]} values): a slide vector of TRIDENT, not patch features; "
                    "multiple-instance learning needs one row per tile: give the folder features_<encoder>, not "
                    "slide_features_<encoder>"
                )
            header = tile_datasets(file, "features", path).header(slide_id)
            return Source((header,), partial(_read, path), _facts(file, path))


def _read(path: Path, slide_id: str) -> SourceBag:
    with open_hdf5(path) as file:
        return tile_datasets(file, "features", path).read()


def _facts(file: h5py.File, path: Path) -> DatasetFacts:
    on_coords: dict[str, Any] = attributes(file["coords"])
    encoder = attributes(file["features"]).get("encoder")
    tile_size = attribute_number(on_coords, "patch_size", path)
    overlap = attribute_number(on_coords, "overlap", path)
    return DatasetFacts(
        encoder=None if encoder is None else str(encoder),
        magnification=attribute_number(on_coords, "target_magnification", path),
        tile_size=None if tile_size is None else int(tile_size),
        coord_unit="level0_px",
        coord_origin="top_left",
        facts={} if overlap is None else {"tile_overlap_px": int(overlap)},
    )
