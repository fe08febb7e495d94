"""The `.h5` features that MMP, PANTHER and MIL_BASELINE read: `features` [N, D] or [1, N, D], and often nothing else.

`features` of rank 2 with `coords` and no attributes is CLAM's file, with attributes TRIDENT's, and those tools read
them as such; what is left for this reader is a leading dimension of 1, and files without `coords`. A single row, as
[1, D] or [1, 1, D], is a bag of one tile: nothing in such a file tells it from a vector of the slide, and these tools
take it for a tile. Rank 1 is a vector of the slide and refused.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import h5py

from asmil.data.schema import DatasetFacts, FeatureDtype
from asmil.data.sources.base import ContentError, ReadOptions, Source, SourceBag, UnitKind
from asmil.data.sources.hdf5 import is_hdf5, numeric_dataset, open_hdf5
from asmil.data.sources.tiles import (
    ASK_FOR_RESOLUTION,
    TileDatasets,
    describe,
    has_features,
    tile_datasets,
    tile_source,
)

__all__ = ["MmpHdf5"]

_NOTE = f"note: files with bare features {ASK_FOR_RESOLUTION}--mpp, and --encoder for the network that made them"


class MmpHdf5:
    """Reader of `.h5` files with bare features."""

    name = "mmp-h5"
    layout = "MMP, PANTHER or MIL_BASELINE .h5 per slide: features [1, N, D], or [N, D] without coords"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()

    def detect(self, path: Path) -> str | None:
        """Key `features` that is neither CLAM's nor TRIDENT's nor, with `labels`, torchmil's."""
        if not is_hdf5(path):
            return None
        with open_hdf5(path) as file:
            keys = set(file)
            if not has_features(keys):
                return None
            features = numeric_dataset(file, "features", path)
            coords = numeric_dataset(file, "coords", path) if "coords" in keys else None
            if coords is not None and _is_of_others(features, coords):
                return None
            return f"HDF5 with {describe(features, coords)}"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide of the file name."""
        with open_hdf5(path) as file:
            features = numeric_dataset(file, "features", path)
            if features.ndim < 2:
                raise ContentError(
                    f"{path}: {describe(features)}: one vector, not one row per tile, which multiple-instance learning "
                    "needs; give the folder of the patch features"
                )
            return tile_source(path, _tiles(file, path), partial(_read, path), DatasetFacts(), (_NOTE,))


def _is_of_others(features: h5py.Dataset, coords: h5py.Dataset) -> bool:
    is_trident = features.ndim == 1 and (len(features.attrs) or len(coords.attrs))
    return bool(features.ndim == 2 or is_trident)


def _tiles(file: h5py.File, path: Path) -> TileDatasets:
    coords = numeric_dataset(file, "coords", path) if "coords" in set(file) else None
    return tile_datasets(numeric_dataset(file, "features", path), coords, path, stacked=True)


def _read(path: Path, slide_id: str) -> SourceBag:
    with open_hdf5(path) as file:
        return _tiles(file, path).read()
