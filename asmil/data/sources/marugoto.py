"""marugoto's (STAMP v1's) features: `<slide>.h5` with `feats`, `coords` and `augmented`, and `info.json` beside them.

The rows of augmented copies of tiles are mixed in and marked; they are dropped unless the user keeps them. A bag is as
long as the rows that stay. Coordinates are early STAMP's where their stride says so (`asmil.data.sources.stamp`), and
otherwise kept as they are, in a unit the file does not state.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from asmil.data.schema import DatasetFacts, FeatureDtype
from asmil.data.sources.base import ContentError, ReadOptions, Source, SourceBag, UnitKind
from asmil.data.sources.hdf5 import attribute, check_complete, is_hdf5, numeric_dataset, open_hdf5, read_all
from asmil.data.sources.stamp import HISTORIC_FACTS, HISTORIC_NOTE, is_historic, rescaled
from asmil.data.sources.tiles import TileDatasets, describe, tile_datasets, tile_source

__all__ = ["MarugotoHdf5"]

_DROPPED_NOTE = "note: rows of augmented tiles are left out; --keep-augmented keeps them"


class MarugotoHdf5:
    """Reader of marugoto's `.h5` features."""

    name = "marugoto-h5"
    layout = "marugoto (STAMP v1) .h5 per slide: feats [N, F], coords [N, 2], augmented [N]"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ("info.json",)
    options: frozenset[str] = frozenset({"keep_augmented"})

    def detect(self, path: Path) -> str | None:
        """Keys `feats` and `augmented`."""
        if not is_hdf5(path):
            return None
        with open_hdf5(path) as file:
            if not {"feats", "augmented"} <= set(file):
                return None
            tiles = _tiles(file, path)
            return f"HDF5 with {describe(*tiles, _augmented(file, path))}"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide of the file name, with the rows that stay."""
        with open_hdf5(path) as file:
            tiles = _tiles(file, path)
            kept_N = _kept(file, tiles, options.keep_augmented, path)
            num_kept = int(kept_N.sum())
            if num_kept == 0 and kept_N.size:
                raise ContentError(f"{path}: every row is marked as augmented; expected the tiles themselves too")
            coords_N2 = tiles.read_coords()
            historic = coords_N2 is not None and num_kept > 0 and is_historic(coords_N2[kept_N])
            extractor = attribute(file, "extractor", path)
            facts = HISTORIC_FACTS if historic else DatasetFacts()
            facts = facts.model_copy(update={"encoder": None if extractor is None else str(extractor)})
            notes = (_DROPPED_NOTE,) * (num_kept < kept_N.size) + (HISTORIC_NOTE,) * historic
            source = tile_source(path, tiles, partial(_read, path, options.keep_augmented, historic), facts, notes)
        headers = (replace(header, num_instances=num_kept) for header in source.slides)
        return replace(source, slides=tuple(replace(item, coords="float32") if historic else item for item in headers))


def _tiles(file: h5py.File, path: Path) -> TileDatasets:
    coords = numeric_dataset(file, "coords", path) if "coords" in set(file) else None
    return tile_datasets(numeric_dataset(file, "feats", path), coords, path)


def _augmented(file: h5py.File, path: Path) -> h5py.Dataset:
    return numeric_dataset(file, "augmented", path, kinds="biu")


def _kept(file: h5py.File, tiles: TileDatasets, keep_augmented: bool, path: Path) -> np.ndarray:
    augmented, num_rows = _augmented(file, path), tiles.features.shape[0]
    if augmented.shape != (num_rows,):
        raise ContentError(
            f"{path}: {augmented.name} has shape {list(augmented.shape)}, expected [{num_rows}] for {num_rows} rows of "
            "features"
        )
    check_complete(augmented, path)
    return np.ones(num_rows, bool) if keep_augmented else read_all(augmented) == 0


def _read(path: Path, keep_augmented: bool, historic: bool, slide_id: str) -> SourceBag:
    with open_hdf5(path) as file:
        tiles = _tiles(file, path)
        kept_N = _kept(file, tiles, keep_augmented, path)
        bag = tiles.read()
    if not kept_N.all():
        bag = SourceBag(bag.features_ND[kept_N], None if bag.coords_N2 is None else bag.coords_N2[kept_N])
    return rescaled(bag) if historic else bag
