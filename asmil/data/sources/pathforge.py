"""PathForge's slide files: `bags/<px>px_<mpp>mpp/` with `coords`, `tiling_spec` and `features/<extractor>`.

One file holds any number of tilings, each with the features of any number of extractors; a store has one of each, so
with more than one the user names it, such as `256px_0.5mpp/uni`. Coordinates are x and y of the top-left corner in
level-0 pixels, then width, height and level of the region that was read for the tile; these three depend on the
scanner's resolution and stay behind.
"""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import h5py

from asmil.data.schema import DatasetFacts, FeatureDtype
from asmil.data.sources.base import ContentError, ReadOptions, Source, SourceBag, UnitKind
from asmil.data.sources.hdf5 import (
    attribute,
    group_at,
    is_hdf5,
    json_dataset,
    numeric_dataset,
    open_hdf5,
    plain_text,
)
from asmil.data.sources.tiles import TileDatasets, tile_datasets, tile_source
from asmil.errors import DataError

__all__ = ["PathForgeHdf5"]

_TILING = re.compile(r"(\d{1,6})px_([0-9.]{1,12}(?:e-?\d{1,3})?)mpp")
_COORD_SPACES = {None, "level0", "level0_pixel"}
_NUM_COLUMNS = 5  # x, y, read_w, read_h, read_level


class PathForgeHdf5:
    """Reader of PathForge's slide files."""

    name = "pathforge-h5"
    layout = "PathForge .h5 per slide: bags/<px>px_<mpp>mpp/ with coords [N, 5] and features/<extractor> [N, D]"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset({"features"})

    def detect(self, path: Path) -> str | None:
        """A group `bags` of groups, the first of them with `coords`."""
        if not is_hdf5(path):
            return None
        with open_hdf5(path) as file:
            bags = group_at(file, "bags", path) if "bags" in set(file) else None
            if bags is None or len(bags) == 0:
                return None
            first = group_at(bags, min(bags), path)
            if first is None or "coords" not in set(first):
                return None
            return f"HDF5 with {len(bags)} tilings in bags, the first {min(bags)!a} with coords"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide of the file name, with the feature set the user named or the only one."""
        with open_hdf5(path) as file:
            tiling, extractor = _choose(_feature_sets(file, path), options.features, path)
            read = partial(_read, path, tiling, extractor)
            return tile_source(path, _tiles(file, tiling, extractor, path), read, _facts(file, tiling, extractor, path))


def _feature_sets(file: h5py.File, path: Path) -> dict[str, tuple[str, str]]:
    """Tiling and extractor of every feature set, by the name that chooses it."""
    bags = _group(file, "bags", path)
    found = {}
    for tiling in sorted(bags):
        bag = _group(bags, tiling, path)
        extractors = sorted(_group(bag, "features", path)) if "features" in set(bag) else []
        found.update({f"{tiling}/{extractor}": (tiling, extractor) for extractor in extractors})
    return found


def _choose(found: dict[str, tuple[str, str]], name: str | None, path: Path) -> tuple[str, str]:
    listed = ", ".join(ascii(known)[1:-1] for known in list(found)[:20]) or "none"
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name is None and not found:
        raise DataError(f"{path}: tiles without features; extract features with PathForge before converting")
    if name is None:
        raise ContentError(f"{path}: holds {len(found)} feature sets: {listed}; say which with --features NAME")
    if name not in found:
        raise ContentError(f"{path}: holds no features {name!r}; it has {listed}")
    return found[name]


def _group(parent: h5py.Group, name: str, path: Path) -> h5py.Group:
    group = group_at(parent, name, path)
    if group is None:
        raise DataError(f"{path}: {ascii(parent.name)[1:-1]} holds a dataset {name!r}, expected a group")
    return group


def _tiles(file: h5py.File, tiling: str, extractor: str, path: Path) -> TileDatasets:
    bag = _group(_group(file, "bags", path), tiling, path)
    if "coords" not in set(bag):
        raise DataError(f"{path}: bags/{tiling} has no coords; PathForge writes them before features: make it again")
    features = numeric_dataset(_group(bag, "features", path), extractor, path)
    coords = numeric_dataset(bag, "coords", path)
    for item in (features, coords):
        status = attribute(item, "status", path)
        if status not in (None, "complete"):
            raise DataError(f"{path}: {item.name} has status {status!r}: it was not written to its end: make it again")
    if features.shape[:1] == (1,) and coords.shape[:1] > (1,):
        raise ContentError(
            f"{path}: {features.name} has one row for {coords.shape[0]} tiles: a vector of the slide, not of tiles; "
            "name features of a tile encoder with --features NAME"
        )
    return tile_datasets(features, coords, path, num_columns=_NUM_COLUMNS)


def _facts(file: h5py.File, tiling: str, extractor: str, path: Path) -> DatasetFacts:
    bag = _group(_group(file, "bags", path), tiling, path)
    spec = json_dataset(bag, "tiling_spec", path) if "tiling_spec" in set(bag) else {}
    spaces = {spec.get("coord_space") if isinstance(spec.get("coord_space"), str | None) else "not a name"}
    if "meta" in set(file):
        spaces.add(attribute(_group(file, "meta", path), "coord_space", path))
    if not spaces <= _COORD_SPACES:
        raise ContentError(
            f"{path}: coord_space is {' and '.join(sorted(map(repr, spaces - {None})))}, expected level0"
        )
    named = _TILING.fullmatch(tiling)
    tile_px = _number(spec, "tile_px", named and named[1], path)
    return DatasetFacts(
        encoder=plain_text(extractor),
        mpp=_number(spec, "tile_mpp", named and named[2], path),
        tile_size=None if tile_px is None else int(tile_px),
        coord_unit="level0_px",
        coord_origin="top_left",
    )


def _number(spec: dict[str, Any], key: str, named: str | None, path: Path) -> float | None:
    """A number of the tiling, from its specification or else its name."""
    value = spec.get(key, named)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ContentError(f"{path}: {key} of the tiling is {str(value)[:60]!r}, expected a positive number")
    return number


def _read(path: Path, tiling: str, extractor: str, slide_id: str) -> SourceBag:
    with open_hdf5(path) as file:
        return _tiles(file, tiling, extractor, path).read()
