"""Plain NumPy files, one slide each: `.npy` with the features, `.npz` with features and perhaps coordinates.

They say nothing about how the features were made or what the coordinates mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from asmil.data.arrays import coord_dtype_of
from asmil.data.schema import FeatureDtype
from asmil.data.sources.base import ContentError, ReadOptions, SlideHeader, Source, SourceBag, UnitKind
from asmil.data.sources.histossl import has_tile_addresses
from asmil.data.sources.matrices import as_matrix, check_coords, feature_shape, slide_id_of
from asmil.data.sources.numpy_files import NpyHeader, npy_header, npz_headers, read_npy, read_npz

__all__ = ["NumpyArchive", "NumpyArray"]

_NOTE = "note: NumPy files do not say how their tiles were cut; to keep that with the store, give --encoder and --mpp"
_FEATURE_KEYS = ("features", "feats", "embeddings")
_COORDS_KEY = "coords"


class NumpyArray:
    """Reader of plain `.npy` files."""

    name = "npy"
    layout = "NumPy .npy per slide: features [N, D]"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()

    def detect(self, path: Path) -> str | None:
        """One array whose first columns are not the tile addresses of HistoSSLscaling."""
        header = npy_header(path)
        return None if header is None or has_tile_addresses(path, header) else f"a .npy file with {header}"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide of the file name."""
        _refuse_part_of_a_set(path)
        header = npy_header(path)
        assert header is not None, "detect() has seen it"
        slide_id = slide_id_of(path, ".npy")
        shape = feature_shape(f"{path}: the array", header.shape, header.dtype.name)
        if shape.num_instances == 0:
            return Source((), partial(_read_array, path), no_tissue=(slide_id,))
        return Source((SlideHeader(slide_id, *shape),), partial(_read_array, path), notes=(_NOTE,))


class NumpyArchive:
    """Reader of plain `.npz` files."""

    name = "npz"
    layout = "NumPy .npz per slide: features, feats, embeddings or a single array [N, D], and perhaps coords [N, 2]"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset({"features"})

    def detect(self, path: Path) -> str | None:
        """Arrays of which one is named as features are, or a single one."""
        headers = npz_headers(path)
        if not headers or not _feature_keys(headers):
            return None
        return f"a .npz file with {', '.join(f'{key} {header}' for key, header in sorted(headers.items()))}"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide of the file name."""
        headers = npz_headers(path)
        assert headers, "detect() has seen it"
        key = _chosen(path, _feature_keys(headers), options.features)
        slide_id = slide_id_of(path, ".npz")
        shape = feature_shape(f"{path}: {key}", headers[key].shape, headers[key].dtype.name)
        coords = headers.get(_COORDS_KEY)
        read = partial(_read_archive, path, key, coords is not None)
        if shape.num_instances == 0:
            return Source((), read, no_tissue=(slide_id,))
        if coords is not None:
            check_coords(f"{path}: {_COORDS_KEY}", coords.shape, coords.dtype, shape.num_instances)
        others = sorted(set(headers) - {key, _COORDS_KEY})
        notes = (_NOTE, *([f"note: not read from the .npz files: {', '.join(others)}"] if others else []))
        slide = SlideHeader(slide_id, *shape, coords=None if coords is None else coord_dtype_of(coords))
        return Source((slide,), read, notes=notes)


def _feature_keys(headers: Mapping[str, NpyHeader]) -> list[str]:
    if len(headers) == 1 and _COORDS_KEY not in headers:
        return list(headers)
    return [key for key in _FEATURE_KEYS if key in headers]


def _chosen(path: Path, keys: Sequence[str], wanted: str | None) -> str:
    if wanted is None and len(keys) > 1:
        raise ContentError(f"{path}: holds {len(keys)} feature sets: {', '.join(keys)}; say which with --features NAME")
    if wanted is not None and wanted not in keys:
        raise ContentError(f"{path}: holds no features {wanted!r}; it has {', '.join(keys)}")
    return wanted or keys[0]


def _read_array(path: Path, slide_id: str) -> SourceBag:
    return SourceBag(as_matrix(read_npy(path)))


def _read_archive(path: Path, key: str, has_coords: bool, slide_id: str) -> SourceBag:
    return SourceBag(as_matrix(read_npz(path, key)), read_npz(path, _COORDS_KEY) if has_coords else None)


def _refuse_part_of_a_set(path: Path) -> None:
    """The features of a whole classic set are no slide, though the array looks the same."""
    name = path.name.removesuffix("_features.npy")
    if name != path.name and (path.parent / f"{name}_bag_ids.npy").is_file():
        raise ContentError(
            f"{path}: {name}_bag_ids.npy beside it says that these are the features of a whole set of bags; give the "
            "folder instead of the file"
        )
