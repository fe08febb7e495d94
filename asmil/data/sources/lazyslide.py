"""LazySlide's SpatialData folders (`*.zarr`): recognised, and answered with how to export them.

Zarr is read by a library of its own with codecs of its own; a few lines where LazySlide is installed make files that
are read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asmil.data.schema import FeatureDtype
from asmil.data.sources.base import ContentError, ReadOptions, Source, UnitKind
from asmil.data.sources.json_files import read_json

__all__ = ["LazySlideZarr"]

_EXPORT = (
    "where spatialdata is installed, run for every slide: import numpy, spatialdata; "
    "slide = spatialdata.read_zarr('SLIDE.zarr'); numpy.savez('SLIDE.npz', "
    "features=numpy.asarray(slide.tables['MODEL_tiles'].X), "
    "coords=slide.shapes['tiles'].bounds[['minx', 'miny']].to_numpy()) -- and give the folder of the .npz files "
    "(list(slide.tables) names the tables; the rows of both are the tiles in their order)"
)


class LazySlideZarr:
    """Says what to do with a zarr folder of LazySlide."""

    name = "lazyslide-zarr"
    layout = "LazySlide .zarr folder (recognised; to be exported first)"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "folder"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()

    def detect(self, path: Path) -> str | None:
        """Zarr metadata with the attributes of SpatialData or AnnData."""
        attributes = _attributes(path)
        if "spatialdata_attrs" in attributes:
            return "a zarr folder with spatialdata_attrs"
        encoding = attributes.get("encoding-type")
        return "a zarr folder with an AnnData table" if encoding == "anndata" else None

    def open(self, path: Path, options: ReadOptions) -> Source:
        """Never opens it.

        Raises:
            ContentError: Always; it says how to export the features.
        """
        raise ContentError(f"{path}: a zarr folder as LazySlide writes it, which is not read; {_EXPORT}")


def _attributes(path: Path) -> Mapping[str, Any]:
    """User attributes of a zarr group, of format 2 or 3."""
    found = read_json(path / ".zattrs")
    if found is None:
        group = read_json(path / "zarr.json")
        found = group.get("attributes") if isinstance(group, dict) else None
    return found if isinstance(found, dict) else {}
