"""HistoSSLscaling's `<slide>/features.npy`: deep-zoom level, x and y in the first three columns, then the features.

x and y count tiles at that level. The level is named in a note and not kept as a fact of the store: deep-zoom levels
are numbered from a picture of one pixel, so slides of different size have different levels at the same resolution.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from asmil.data.schema import DatasetFacts, FeatureDtype
from asmil.data.sources.base import ReadOptions, SlideHeader, Source, SourceBag, UnitKind
from asmil.data.sources.matrices import slide_id_of
from asmil.data.sources.numpy_files import NpyHeader, npy_header, read_npy

__all__ = ["HistoSslNpy", "has_tile_addresses"]

_ADDRESS_COLUMNS = 3
_MAX_LEVEL = 31
_MAX_LEVELS = 4
_SNIFFED_ROWS = 64
_FACTS = DatasetFacts(coord_unit="deepzoom_tiles", coord_origin="top_left")


class HistoSslNpy:
    """Reader of HistoSSLscaling's `.npy` files."""

    name = "histossl-npy"
    layout = "HistoSSLscaling <slide>/features.npy: [N, 3 + D], the first columns deep-zoom level, x, y"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()

    def detect(self, path: Path) -> str | None:
        """First column a deep-zoom level, the next two different whole numbers for every row."""
        header = npy_header(path)
        if header is None or not has_tile_addresses(path, header):
            return None
        levels = ", ".join(map(str, _levels(path)))
        return f"a .npy file with {header} whose first columns are deep-zoom level {levels} and whole x, y"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide that the folder is named after; of the file, if it has another name than `features.npy`."""
        header = npy_header(path)
        assert header is not None, "detect() has seen it"
        stem = slide_id_of(path, ".npy")
        num_rows, num_columns = header.shape
        folder = path.absolute().parent  # links are not followed: caches keep all files in one folder and link to them
        slide_id = folder.name if stem == "features" else stem
        slide = SlideHeader(slide_id, num_rows, num_columns - _ADDRESS_COLUMNS, "int32")
        levels = ", ".join(map(str, _levels(path)))
        note = f"note: coordinates count tiles at deep-zoom level {levels}; the store does not keep the level"
        return Source((slide,), partial(_read, path), _FACTS, notes=(note,))


def has_tile_addresses(path: Path, header: NpyHeader) -> bool:
    """Whether the first three columns of a `.npy` file are a deep-zoom level and the address of a tile.

    The level is a whole number from 1 to 31 with at most four values, and no address occurs twice; three columns of
    features cannot look like that by chance.
    """
    is_matrix = len(header.shape) == 2 and header.dtype.kind == "f"
    if not is_matrix or header.shape[0] == 0 or header.shape[1] <= _ADDRESS_COLUMNS:
        return False
    if not _are_whole(_addresses(path, _SNIFFED_ROWS)):  # nearly every other file ends here, with little of it read
        return False
    addresses_N3 = _addresses(path)
    if not _are_whole(addresses_N3):
        return False
    levels = np.unique(addresses_N3[:, 0])
    is_level = levels[0] >= 1 and levels[-1] <= _MAX_LEVEL and len(levels) <= _MAX_LEVELS
    return bool(is_level and len(np.unique(addresses_N3, axis=0)) == len(addresses_N3))


def _are_whole(addresses_N3: np.ndarray) -> bool:
    """Whether all values are whole numbers from 0 to the largest int32."""
    in_range_N3 = (addresses_N3 >= 0) & (addresses_N3 <= np.iinfo(np.int32).max)  # NaN is not
    return bool((in_range_N3 & (addresses_N3 == np.floor(addresses_N3))).all())


def _addresses(path: Path, num_rows: int | None = None) -> np.ndarray:
    """The first three columns, of all rows or the first ones, without reading the others into memory."""
    mapped_ND = np.load(path, mmap_mode="r", allow_pickle=False)
    return np.array(mapped_ND[:num_rows, :_ADDRESS_COLUMNS], dtype=np.float64)


def _levels(path: Path) -> list[int]:
    return [int(level) for level in np.unique(_addresses(path)[:, 0])]


def _read(path: Path, slide_id: str) -> SourceBag:
    values_ND = read_npy(path)
    coords_N2 = values_ND[:, 1:_ADDRESS_COLUMNS].astype(np.int32)
    return SourceBag(np.ascontiguousarray(values_ND[:, _ADDRESS_COLUMNS:]), coords_N2)
