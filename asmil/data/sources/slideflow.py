"""slideflow's bags: `<slide>.pt`, a tensor, with `<slide>.index.npz` beside it and `bags_config.json` in the folder.

The index holds the tiles' locations: their centres in level-0 pixels. Beside a TFRecord a file of the same name holds
byte offsets (and the coordinates under `locations`), so such an index is never taken for coordinates.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from asmil.data.arrays import coord_dtype_of
from asmil.data.schema import DatasetFacts, FeatureDtype
from asmil.data.sources.base import ContentError, ReadOptions, SlideHeader, Source, SourceBag, UnitKind
from asmil.data.sources.json_files import number_in, read_json
from asmil.data.sources.matrices import as_matrix, check_coords, feature_shape, slide_id_of
from asmil.data.sources.numpy_files import NpyHeader, npy_header, npz_headers, read_npy, read_npz
from asmil.data.sources.torch_files import TORCH_SUFFIXES, read_torch, torch_content
from asmil.errors import DataError

__all__ = ["SlideflowBags", "belongs_to_slideflow"]

_CONFIG = "bags_config.json"
_COORDS_KEY = "arr_0"
_INDEX_SUFFIXES = (".index.npz", ".index.npy")
_TFRECORD_SUFFIXES = (".tfrecords", ".tfrecord")
_FACTS = DatasetFacts(coord_unit="level0_px", coord_origin="center")


class SlideflowBags:
    """Reader of slideflow's `.pt` bags."""

    name = "slideflow"
    layout = "slideflow .pt per slide: a tensor [N, D], with <slide>.index.npz or bags_config.json beside it"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ("*.index.npz", "*.index.npy", _CONFIG, "*.tfrecords", "*.tfrecord")
    options: frozenset[str] = frozenset()

    def detect(self, path: Path) -> str | None:
        """A bare tensor with slideflow's index or configuration beside it."""
        content = torch_content(path)
        if content is None or content.kind != "tensor" or not belongs_to_slideflow(path):
            return None
        index = _index(path)
        beside = f"{index[0].name} {index[1]}" if index else _CONFIG
        return f"a .pt file with a tensor {content.arrays['']} and {beside} beside it"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """The slide of the file name, with what the folder's configuration says."""
        content, index = torch_content(path), _index(path)
        assert content is not None, "detect() has seen it"
        slide_id = slide_id_of(path, *TORCH_SUFFIXES)
        header = content.arrays[""]
        shape = feature_shape(f"{path}: the tensor", header.shape, header.dtype)
        if shape.num_instances == 0:
            return Source((), partial(_read, path), no_tissue=(slide_id,))
        coords, facts = None, DatasetFacts()
        notes: tuple[str, ...] = ()
        if index is None:
            notes = ("note: no index of tile locations beside the slideflow bags; they are stored without coordinates",)
        else:
            check_coords(f"{index[0]}: {_COORDS_KEY}", index[1].shape, index[1].dtype, shape.num_instances)
            coords, facts = coord_dtype_of(index[1]), _FACTS
        facts = facts.model_copy(update=_configured(path.parent / _CONFIG, shape.num_features))
        slide = SlideHeader(slide_id, shape.num_instances, shape.num_features, coords)
        return Source((slide,), partial(_read, path), facts, notes=notes)


def belongs_to_slideflow(path: Path) -> bool:
    """Whether slideflow's index or configuration lies beside a `.pt` file."""
    if _index(path) is not None:
        return True
    config = read_json(path.parent / _CONFIG)
    return isinstance(config, dict) and "extractor" in config


def _index(path: Path) -> tuple[Path, NpyHeader] | None:
    """The file of tile locations, if there is one and no TFRecord it could belong to."""
    if any(path.with_suffix(suffix).exists() for suffix in _TFRECORD_SUFFIXES):
        return None
    for suffix in _INDEX_SUFFIXES:
        index = path.with_suffix(suffix)
        if not index.is_file():
            continue
        headers = npz_headers(index)
        if headers is not None:
            return (index, headers[_COORDS_KEY]) if set(headers) == {_COORDS_KEY} else None
        header = npy_header(index)
        if header is None:
            raise DataError(
                f"{index}: neither a .npz nor a .npy file, but the name of an index of tile locations; it is cut or "
                "damaged: copy it again, or remove it to convert the bag without coordinates"
            )
        return index, header
    return None


def _read(path: Path, slide_id: str) -> SourceBag:
    features_ND = as_matrix(read_torch(path, "")[0])
    index = _index(path)
    if index is None:
        return SourceBag(features_ND)
    is_npz = npz_headers(index[0]) is not None
    coords_N2: np.ndarray = read_npz(index[0], _COORDS_KEY) if is_npz else read_npy(index[0])
    return SourceBag(features_ND, coords_N2)


def _configured(path: Path, num_features: int) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict):
        return {}
    declared = config.get("num_features")
    if declared is not None and declared != num_features:
        raise ContentError(f"{path}: num_features is {declared!r}, but the bags beside it have {num_features} features")
    extractor, normalizer = config.get("extractor"), config.get("normalizer")
    facts: dict[str, Any] = {"facts": {}}
    if isinstance(extractor, dict) and isinstance(extractor.get("class"), str):
        facts["encoder"] = extractor["class"].rpartition(".")[2]
    if isinstance(normalizer, dict) and isinstance(normalizer.get("method"), str):
        facts["facts"] = {"stain_normalizer": normalizer["method"]}
    return facts | _resolution(path, config)


def _resolution(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Tile size, and micrometres per pixel or the magnification, which slideflow writes as a width of `20x`."""
    tile_px, width = number_in(path, config, "tile_px"), config.get("tile_um")
    facts: dict[str, Any] = {} if tile_px is None else {"tile_size": int(tile_px)}
    magnification = re.fullmatch(r"(\d+(?:\.\d+)?)x", width) if isinstance(width, str) else None
    if magnification:
        return facts | {"magnification": float(magnification[1])}
    tile_um = number_in(path, config, "tile_um")
    return facts if tile_um is None or not tile_px else facts | {"mpp": tile_um / tile_px}
