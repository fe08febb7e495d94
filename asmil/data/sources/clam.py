"""CLAM's feature files: `h5_files/<slide>.h5` with `features` and `coords` and no attributes at all.

Patch size and level are known only to the coordinate files (`patches/<slide>.h5`); `patch_size` is measured at
`patch_level`, not at level 0. Coordinates are the top-left corner of a tile in level-0 pixels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import h5py
import numpy as np

from asmil.data.schema import DatasetFacts, FeatureDtype
from asmil.data.sources.base import ContentError, ReadOptions, Source, SourceBag, UnitKind
from asmil.data.sources.hdf5 import attribute_number, is_hdf5, numeric_dataset, open_hdf5, read_all
from asmil.data.sources.tiles import (
    ASK_FOR_RESOLUTION,
    TileDatasets,
    describe,
    has_features,
    slide_id_of,
    tile_datasets,
    tile_source,
)
from asmil.errors import DataError

__all__ = ["ClamHdf5"]

_NOTE = f"note: CLAM feature files {ASK_FOR_RESOLUTION}--patches FOLDER (the coordinate files) or --mpp"


class ClamHdf5:
    """Reader of CLAM's `.h5` feature files."""

    name = "clam-h5"
    layout = "CLAM .h5 per slide: features [N, D] and coords [N, 2], no attributes"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset({"patches"})

    def detect(self, path: Path) -> str | None:
        """Keys `features` of rank 2 and `coords`, neither with an attribute, and no `labels`.

        Raises:
            DataError: It is one of CLAM's coordinate files.
        """
        if not is_hdf5(path):
            return None
        with open_hdf5(path) as file:
            keys = set(file)
            if keys == {"coords"} and "patch_level" in numeric_dataset(file, "coords", path).attrs:
                raise DataError(
                    f"{path}: a coordinate file of CLAM without features; give the folder h5_files as the source and "
                    "this folder as --patches"
                )
            if not has_features(keys) or "coords" not in keys:
                return None
            features, coords = numeric_dataset(file, "features", path), numeric_dataset(file, "coords", path)
            if features.ndim != 2 or len(features.attrs) or len(coords.attrs):
                return None
            return f"HDF5 with {describe(features, coords)} and no attributes"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide of the file name, with the facts of its coordinate file if that folder is given."""
        facts = DatasetFacts(coord_unit="level0_px", coord_origin="top_left")
        patch_file = None if options.patches is None else options.patches / f"{slide_id_of(path)}.h5"
        read = partial(_read, path, patch_file)
        with open_hdf5(path) as file:
            source = tile_source(path, _tiles(file, path), read, facts, (_NOTE,))
        if patch_file is None or not source.slides:
            return source
        return Source(source.slides, read, facts.model_copy(update=_patch_facts(patch_file)))


def _tiles(file: h5py.File, path: Path) -> TileDatasets:
    return tile_datasets(numeric_dataset(file, "features", path), numeric_dataset(file, "coords", path), path)


def _read(path: Path, patch_file: Path | None, slide_id: str) -> SourceBag:
    with open_hdf5(path) as file:
        bag = _tiles(file, path).read()
    if patch_file is not None and bag.coords_N2 is not None:
        with open_hdf5(patch_file) as file:
            patch_coords_N2 = read_all(numeric_dataset(file, "coords", patch_file))
        if not np.array_equal(patch_coords_N2, bag.coords_N2):
            raise ContentError(f"{patch_file}: its coordinates are not those of {path}; it is of another run of CLAM")
    return bag


def _patch_facts(patch_file: Path) -> dict[str, object]:
    if not patch_file.is_file():
        raise ContentError(f"{patch_file}: no such file; --patches is CLAM's coordinate folder, one file per slide")
    size = level = None
    with open_hdf5(patch_file) as file:
        if "coords" in set(file):
            coords = numeric_dataset(file, "coords", patch_file)
            size, level = (attribute_number(coords, name, patch_file) for name in ("patch_size", "patch_level"))
    if size is None or level is None:
        raise ContentError(
            f"{patch_file}: no dataset coords with attributes patch_size and patch_level; --patches must be CLAM's "
            "coordinate folder: give it, or --mpp instead"
        )
    return {"tile_size": int(size), "facts": {"patch_level": int(level)}}
