"""STAMP's tile features: `<extractor>-<hash>/<slide>.h5` with `feats`, `coords` and attributes on the file itself.

Three generations differ in how they say what their coordinates mean (the top-left corner of a tile):

- current: micrometres, with the attribute `tile_size_um`;
- 2.0: micrometres, with `tile_size` and `unit`;
- older: neither. Their tiles are 224 pixels and 256 micrometres wide, which shows as a stride of 224 between
  coordinates; these are rescaled to micrometres.

Multiplex files hold `patch_embeddings` instead of `feats`, and no coordinates; none are made up. Files of any STAMP
version are read. One vector per slide or patient is recognised and refused. (With `augmented` beside `feats` a file is
marugoto's: `asmil.data.sources.marugoto`.)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from asmil.data.schema import DatasetFacts, FeatureDtype
from asmil.data.sources.base import ContentError, ReadOptions, Source, SourceBag, UnitKind
from asmil.data.sources.hdf5 import attribute, attribute_number, is_hdf5, numeric_dataset, open_hdf5
from asmil.data.sources.tiles import TileDatasets, describe, tile_datasets, tile_source

__all__ = ["HISTORIC_FACTS", "HISTORIC_NOTE", "StampHdf5", "is_historic", "rescaled"]

HISTORIC_NOTE = (
    "note: files without a stated coordinate unit have a stride of 224: taken as early STAMP, where 224 px are 256 µm, "
    "and rescaled to micrometres"
)
_HISTORIC_UM, _HISTORIC_PX = 256.0, 224
_FEATURE_KEYS = ("feats", "patch_embeddings")
_ATTRIBUTES = (
    "stamp_version",
    "extractor",
    "unit",
    "tile_size",
    "tile_size_um",
    "tile_size_px",
    "encoder",
    "feat_type",
)

HISTORIC_FACTS = DatasetFacts(
    mpp=_HISTORIC_UM / _HISTORIC_PX,
    tile_size=_HISTORIC_PX,
    coord_unit="um",
    coord_origin="top_left",
    facts={"tile_size_um": _HISTORIC_UM},
)


class StampHdf5:
    """Reader of STAMP's `.h5` tile features."""

    name = "stamp-h5"
    layout = "STAMP .h5 per slide: feats (or patch_embeddings) [N, F], coords [N, 2], attributes on the file"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()

    def detect(self, path: Path) -> str | None:
        """Key `feats` or `patch_embeddings` and no `augmented`."""
        if not is_hdf5(path):
            return None
        with open_hdf5(path) as file:
            keys = set(file)
            if "augmented" in keys or not keys & set(_FEATURE_KEYS):
                return None
            found = describe(_features(file, keys, path), _coords(file, keys, path))
            named = [name for name in _ATTRIBUTES if name in file.attrs]
            return f"HDF5 with {found} and root attributes {', '.join(named) or 'of no known name'}"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide of the file name, its coordinates in micrometres."""
        with open_hdf5(path) as file:
            _refuse_vector(file, path)
            tiles = _tiles(file, path)
            facts, historic = _coord_facts(file, tiles, path)
            extractor = attribute(file, "extractor", path)
            facts = facts.model_copy(update={"encoder": None if extractor is None else str(extractor)})
            notes = (HISTORIC_NOTE,) if historic else ()
            source = tile_source(path, tiles, partial(_read, path, historic), facts, notes)
        if not historic:
            return source
        return replace(source, slides=tuple(replace(header, coords="float32") for header in source.slides))


def _features(file: h5py.File, keys: Collection[str], path: Path) -> h5py.Dataset:
    return numeric_dataset(file, next(key for key in _FEATURE_KEYS if key in keys), path)


def _coords(file: h5py.File, keys: Collection[str], path: Path) -> h5py.Dataset | None:
    return numeric_dataset(file, "coords", path) if "coords" in keys else None


def _tiles(file: h5py.File, path: Path) -> TileDatasets:
    keys = set(file)
    return tile_datasets(_features(file, keys, path), _coords(file, keys, path), path)


def _refuse_vector(file: h5py.File, path: Path) -> None:
    keys = set(file)
    kind, features = attribute(file, "feat_type", path), _features(file, keys, path)
    encoded = attribute(file, "encoder", path) is not None and "coords" not in keys  # before there was feat_type
    if kind in ("slide", "patient") or encoded or features.ndim == 1:
        raise ContentError(
            f"{path}: {describe(features)} and feat_type {kind!r}: one vector per slide or patient, not tile features; "
            "multiple-instance learning needs one row per tile: give STAMP's folder of tile features"
        )


def _coord_facts(file: h5py.File, tiles: TileDatasets, path: Path) -> tuple[DatasetFacts, bool]:
    """What is known of tiles and coordinates, and whether these are to be rescaled."""
    tile_px = attribute_number(file, "tile_size_px", path)
    tile_um, size = attribute_number(file, "tile_size_um", path), attribute_number(file, "tile_size", path)
    if size and attribute(file, "unit", path) == "um":
        tile_um = size
    if not tile_um and tiles.coords is not None and tiles.coords.shape[0] > 0:
        if is_historic(tiles.read_coords(), size):
            return HISTORIC_FACTS, True
        raise ContentError(
            f"{path}: no attribute tile_size_um, nor tile_size with unit um, and the coordinates are not those of "
            "early STAMP, whose stride is 224: their unit is unknown; extract the features again with stamp preprocess"
        )
    known = tiles.coords is not None
    return (
        DatasetFacts(
            mpp=tile_um / tile_px if tile_um and tile_px else None,
            tile_size=int(tile_px) if tile_px else None,
            coord_unit="um" if known else None,
            coord_origin="top_left" if known else None,
            facts={"tile_size_um": tile_um} if tile_um else {},
        ),
        False,
    )


def is_historic(coords_N2: np.ndarray | None, tile_size: float | None = None) -> bool:
    """Whether coordinates without a stated unit are those of early STAMP.

    They are if the smallest step between two tiles along either axis rounds to 224. A lone tile has no step: its
    coordinates must be multiples of 224.

    Args:
        coords_N2: Coordinates as stored.
        tile_size: The attribute of that name, which settles it where there is one.

    Example:
        >>> is_historic(np.array([[0, 448], [224, 448], [224, 896]])), is_historic(np.array([[0, 512], [512, 512]]))
        (True, False)
    """
    if coords_N2 is None:
        return False
    gaps = [np.diff(np.unique(column_N)) for column_N in coords_N2.T]
    steps = [float(gap.min()) for gap in gaps if gap.size]
    if tile_size or steps:
        return abs((tile_size or min(steps)) - _HISTORIC_PX) <= 0.5
    tiles_2 = coords_N2[0] / _HISTORIC_PX
    return bool(np.all(np.abs(tiles_2 - np.round(tiles_2)) * _HISTORIC_PX <= 0.5))


def rescaled(bag: SourceBag) -> SourceBag:
    """The bag with early STAMP's coordinates in micrometres."""
    assert bag.coords_N2 is not None
    return replace(bag, coords_N2=bag.coords_N2 / _HISTORIC_PX * _HISTORIC_UM)


def _read(path: Path, historic: bool, slide_id: str) -> SourceBag:
    with open_hdf5(path) as file:
        bag = _tiles(file, path).read()
    return rescaled(bag) if historic else bag
