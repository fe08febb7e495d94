"""ACMIL's (and ASMIL's) one-file format: an HDF5 file with a group per slide, each with `feat`, `coords` and `label`.

The label is an integer attribute of the group, taken as it is: merging classes, as BRACS does, is the label table's
business. The files say nothing about what their coordinates mean.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import h5py

from asmil.data.schema import FeatureDtype, check_slide_id
from asmil.data.sources.base import ContentError, ReadOptions, SlideHeader, Source, SourceBag, UnitKind
from asmil.data.sources.hdf5 import attribute, group_at, is_hdf5, numeric_dataset, open_hdf5
from asmil.data.sources.tiles import TileDatasets, describe, tile_datasets

__all__ = ["AcmilHdf5"]

_KEYS_OF_OTHERS = {"bags", "features", "feats", "patch_embeddings"}  # at the root of per-slide files


class AcmilHdf5:
    """Reader of ACMIL's one-file feature sets."""

    name = "acmil-h5"
    layout = "ACMIL .h5 of all slides: one group per slide with feat [N, D], coords [N, 2], attribute label"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()

    def detect(self, path: Path) -> str | None:
        """A group first at the root, with `feat` and `coords`."""
        if not is_hdf5(path):
            return None
        with open_hdf5(path) as file:
            name = next(iter(file), None)
            if name is None or _KEYS_OF_OTHERS & set(file):
                return None
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                return None
            first = group_at(file, name, path)
            if first is None or not {"feat", "coords"} <= set(first):
                return None
            found = describe(numeric_dataset(first, "feat", path), numeric_dataset(first, "coords", path))
            return f"HDF5 with {len(file)} groups, the first ({first.name!a}) with {found}"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """One bag per group that has instances, in the order of the names."""
        slides: list[SlideHeader] = []
        no_tissue: list[str] = []
        labels: dict[str, dict[str, int]] = {}
        with open_hdf5(path) as file:
            for name in sorted(file):
                check_slide_id(name)
                group = group_at(file, name, path)
                if group is None or not {"feat", "coords"} <= set(group):
                    raise ContentError(f"{path}: /{name} has no feat and coords; expected both in every slide's group")
                if numeric_dataset(group, "feat", path).shape[:1] == (0,):
                    no_tissue.append(name)
                    continue
                tiles = _tiles(group, path)
                tiles.check_complete(path)
                slides.append(tiles.header(name))
                labels |= _label(group, name, path)
        return Source(tuple(slides), partial(_read, path), no_tissue=tuple(no_tissue), labels=labels)


def _tiles(group: h5py.Group, path: Path) -> TileDatasets:
    return tile_datasets(numeric_dataset(group, "feat", path), numeric_dataset(group, "coords", path), path)


def _read(path: Path, slide_id: str) -> SourceBag:
    with open_hdf5(path) as file:
        group = group_at(file, slide_id, path)
        assert group is not None, "open() has seen it"
        return _tiles(group, path).read()


def _label(group: h5py.Group, slide_id: str, path: Path) -> dict[str, dict[str, int]]:
    value = attribute(group, "label", path)
    if value is None:
        return {}
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
        raise ContentError(f"{path}: attribute label of {group.name} is {value!r}, expected an integer")
    return {slide_id: {"label": int(value)}}
