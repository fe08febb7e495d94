"""CLAM's feature files: `h5_files/<slide>.h5` with `features` and `coords` and no attributes at all.

Patch size and level are known only to the coordinate files (`patches/<slide>.h5`); `patch_size` is measured at
`patch_level`, not at level 0. Coordinates are the top-left corner of a tile in level-0 pixels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from asmil.data.schema import DatasetFacts, FeatureDtype
from asmil.data.sources.base import ReadOptions, Source, SourceBag, UnitKind
from asmil.data.sources.hdf5 import attribute_number, attributes, is_hdf5, numeric_dataset, open_hdf5, read_all
from asmil.data.sources.tiles import describe, slide_id_of, tile_datasets
from asmil.errors import DataError

__all__ = ["ClamHdf5"]

_ASK_FOR_RESOLUTION = (
    "note: CLAM feature files do not say at what resolution their tiles were cut; to keep that with the store, give "
    "--patches FOLDER (the coordinate files) or --mpp"
)


class ClamHdf5:
    """Reader of CLAM's `.h5` feature files."""

    name = "clam-h5"
    layout = "CLAM .h5 per slide: features [N, D] and coords [N, 2], no attributes"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()

    def detect(self, path: Path) -> str | None:
        """Keys `features` of rank 2 and `coords`, neither with an attribute."""
        if not is_hdf5(path):
            return None
        with open_hdf5(path) as file:
            if not {"features", "coords"} <= set(file):
                return None
            features, coords = numeric_dataset(file, "features", path), numeric_dataset(file, "coords", path)
            if features.ndim != 2 or len(features.attrs) or len(coords.attrs):
                return None
            return f"HDF5 with {describe(features, coords)} and no attributes"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide of the file name, with the facts of its coordinate file if that folder is given."""
        slide_id = slide_id_of(path)
        with open_hdf5(path) as file:
            slides = (tile_datasets(file, "features", path).header(slide_id),)
        facts = DatasetFacts(coord_unit="level0_px", coord_origin="top_left")
        if options.patches is None:
            return Source(slides, partial(_read, path, None), facts, notes=(_ASK_FOR_RESOLUTION,))
        patch_file = options.patches / f"{slide_id}.h5"
        facts = facts.model_copy(update=_patch_facts(patch_file))
        return Source(slides, partial(_read, path, patch_file), facts)


def _read(path: Path, patch_file: Path | None, slide_id: str) -> SourceBag:
    with open_hdf5(path) as file:
        bag = tile_datasets(file, "features", path).read()
    if patch_file is not None and bag.coords_N2 is not None:
        with open_hdf5(patch_file) as file:
            patch_coords_N2 = read_all(numeric_dataset(file, "coords", patch_file))
        if not np.array_equal(patch_coords_N2, bag.coords_N2):
            raise DataError(f"{patch_file}: its coordinates are not those of {path}; it belongs to another run of CLAM")
    return bag


def _patch_facts(patch_file: Path) -> dict[str, object]:
    if not patch_file.is_file():
        raise DataError(f"{patch_file}: no such file; --patches must be CLAM's coordinate folder, one file per slide")
    with open_hdf5(patch_file) as file:
        found = attributes(numeric_dataset(file, "coords", patch_file)) if "coords" in file else {}
    size, level = (attribute_number(found, name, patch_file) for name in ("patch_size", "patch_level"))
    if size is None or level is None:
        raise DataError(
            f"{patch_file}: no dataset coords with attributes patch_size and patch_level; --patches must be CLAM's "
            "coordinate folder: give it, or --mpp instead"
        )
    return {"tile_size": int(size), "facts": {"patch_level": int(level)}}
