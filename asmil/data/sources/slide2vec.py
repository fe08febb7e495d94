"""slide2vec's `tile_embeddings` folder: `<id>.pt` or `<id>.npz` with `<id>.meta.json`, and `../tiles`.

The coordinates lie in `../tiles/<id>.coordinates.npz`, as separate arrays `x` and `y`: the top-left corner of a tile in
level-0 pixels. With classes each folder has a subfolder per class. A slide without tissue has a sidecar and no
features. Slide, patient and region embeddings have the same layout and another `artifact_type`; they are recognised and
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from asmil.data.arrays import coord_dtype_of
from asmil.data.schema import DatasetFacts, FeatureDtype
from asmil.data.sources.base import ContentError, ReadOptions, SlideHeader, Source, SourceBag, UnitKind
from asmil.data.sources.json_files import number_in, read_json
from asmil.data.sources.many_bags import bag_headers, first_readable
from asmil.data.sources.matrices import FeatureShape, as_matrix, feature_shape
from asmil.data.sources.numpy_files import npz_headers, read_npz
from asmil.data.sources.torch_files import read_torch, torch_content
from asmil.errors import DataError

__all__ = ["Slide2vecTiles"]

_META = ".meta.json"
_COORDINATES = ".coordinates.npz"
_TILES = "tile_embeddings"
_FEATURES, _INDEX = "features", "tile_index"


class Slide2vecTiles:
    """Reader of slide2vec's tile embeddings."""

    name = "slide2vec"
    layout = "slide2vec tile_embeddings folder: <id>.pt or .npz with <id>.meta.json, tiles/<id>.coordinates.npz beside"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "folder"
    sidecars: tuple[str, ...] = (f"*{_COORDINATES}",)
    options: frozenset[str] = frozenset()

    def detect(self, path: Path) -> str | None:
        """A sidecar that names the kind of its features."""
        samples = _samples(path)
        if not samples:
            return None
        try:
            kind, _ = first_readable(samples, lambda sample: _kind(path / f"{sample}{_META}"))
        except DataError:  # no JSON: the sidecars of something else
            return None
        return f"a folder with <id>{_META} of artifact_type {kind!r}" if kind is not None else None

    def open(self, path: Path, options: ReadOptions) -> Source:
        """One bag per sidecar, in the order of the names."""
        metas: dict[str, Mapping[str, Any]] = {}

        def header_of(sample: str) -> SlideHeader | None:
            meta = _meta(path, sample)
            header = _header(path, sample, meta)
            if header is not None:
                metas[sample] = meta
            return header

        found = bag_headers(_samples(path), header_of)
        facts = _facts(path, metas)
        without = [header.slide_id for header in found.slides if header.coords is None]
        notes: tuple[str, ...] = ()
        if without:
            notes = (f"note: no {without[0]}{_COORDINATES} in a folder tiles beside; stored without coordinates",)
        else:
            facts = facts.model_copy(update={"coord_unit": "level0_px", "coord_origin": "top_left"})
        return Source(found.slides, found.guarded(partial(_read, path)), facts, found.no_tissue, notes=notes)


def _samples(path: Path) -> list[str]:
    files = (item.name.removesuffix(_META) for item in path.glob(f"*{_META}") if item.is_file())
    return sorted(name for name in files if not name.startswith(".") and not name.endswith(".coordinates"))


def _kind(file: Path) -> tuple[str | None, Mapping[str, Any]]:
    """The kind of features that a sidecar names, if it does, and its content."""
    content = read_json(file)
    meta = content if isinstance(content, dict) else {}
    kind = meta.get("artifact_type")
    return kind if isinstance(kind, str) else None, meta


def _meta(path: Path, sample: str) -> Mapping[str, Any]:
    file = path / f"{sample}{_META}"
    kind, meta = _kind(file)
    if kind is None:
        raise DataError(f"{file}: no artifact_type; expected the sidecar of {_TILES}: make or copy it again")
    if kind != _TILES:
        raise ContentError(
            f"{file}: artifact_type is {kind[:60]!r}, not {_TILES}; multiple-instance learning needs one row per tile: "
            f"give the folder {_TILES} (slide2vec writes it with save_tile_embeddings=True)"
        )
    return meta


def _header(path: Path, sample: str, meta: Mapping[str, Any]) -> SlideHeader | None:
    if meta.get("num_tiles") == 0:
        return None
    file = _file(path, sample)
    shape = _shape(file)
    declared = (meta.get("num_tiles"), meta.get("feature_dim"))
    if shape.num_instances == 0 or declared != tuple(shape):
        raise ContentError(
            f"{file}: features have shape {list(shape)}, but {sample}{_META} says {list(declared)}; they are of "
            "different runs: extract the slide again"
        )
    places = _coordinates(path, sample)
    if places is None:
        return SlideHeader(sample, *shape)
    headers = npz_headers(places) or {}
    for axis in ("x", "y"):
        if axis not in headers or headers[axis].shape != (shape.num_instances,) or headers[axis].dtype.kind not in "iu":
            raise ContentError(
                f"{places}: {axis} is {headers.get(axis, 'missing')}, expected {shape.num_instances} whole numbers, "
                "one for each row of features; coordinates and features do not belong together"
            )
    return SlideHeader(sample, *shape, coord_dtype_of(headers["x"]))


def _file(path: Path, sample: str) -> Path:
    found = [file for suffix in (".pt", ".npz") if (file := path / f"{sample}{suffix}").is_file()]
    if len(found) != 1:
        what = "both .pt and .npz" if found else "neither .pt nor .npz"
        raise ContentError(f"{path / sample}: {what} beside {sample}{_META}; expected one of them")
    return found[0]


def _shape(file: Path) -> FeatureShape:
    if file.suffix == ".npz":
        header = (npz_headers(file) or {}).get(_FEATURES)
        if header is not None:
            return feature_shape(f"{file}: {_FEATURES}", header.shape, header.dtype.name)
    else:
        content = torch_content(file)
        if content is not None and content.kind == "tensor":
            return feature_shape(f"{file}: the tensor", content.arrays[""].shape, content.arrays[""].dtype)
    raise DataError(f"{file}: holds no features as slide2vec writes them; make or copy it again")


def _coordinates(path: Path, sample: str) -> Path | None:
    folders = (path, path.parent / "tiles", path.parent.parent / "tiles" / path.name)
    found = (folder / f"{sample}{_COORDINATES}" for folder in folders)
    return next((file for file in found if file.is_file()), None)


def _read(path: Path, sample: str) -> SourceBag:
    file, places = _file(path, sample), _coordinates(path, sample)
    is_npz = file.suffix == ".npz"
    features_ND = as_matrix(read_npz(file, _FEATURES) if is_npz else read_torch(file, "")[0])
    if places is None:
        return SourceBag(features_ND)
    both = is_npz and _INDEX in (npz_headers(file) or {}) and _INDEX in (npz_headers(places) or {})
    if both and not np.array_equal(read_npz(file, _INDEX), read_npz(places, _INDEX)):
        raise ContentError(
            f"{places}: its {_INDEX} is not that of {file}; they are of different runs: extract it again"
        )
    return SourceBag(features_ND, np.stack([read_npz(places, "x"), read_npz(places, "y")], axis=1))


def _facts(path: Path, metas: Mapping[str, Mapping[str, Any]]) -> DatasetFacts:
    """Encoder and resolution, which must be the same for all slides of the folder."""
    found: dict[tuple[Any, ...], str] = {}
    for sample, meta in metas.items():
        file = path / f"{sample}{_META}"
        encoder, edge = meta.get("encoder_name"), number_in(file, meta, "requested_tile_size_px")
        if not isinstance(encoder, str | None):
            raise ContentError(f"{file}: encoder_name is {encoder!r}, expected a name")
        found.setdefault((encoder, number_in(file, meta, "requested_spacing_um"), edge), sample)
    if len(found) > 1:
        shown = "; ".join(f"{sample}: {values}" for values, sample in list(found.items())[:3])
        raise ContentError(
            f"{path}: its slides differ in encoder, spacing (µm) or tile size (px): {shown}; a store holds one kind of "
            "features: move the others to a folder of their own"
        )
    encoder, mpp, edge = next(iter(found), (None, None, None))
    return DatasetFacts(encoder=encoder, mpp=mpp, tile_size=None if edge is None else int(edge))
