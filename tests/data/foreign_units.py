"""One small unit per format and variant, with what a reader must find in it.

What is expected comes from the arrays that were written, never from a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from asmil.data.sources import SourceBag
from tests.data import foreign_arrays, foreign_classic, foreign_hdf5, foreign_tensor
from tests.data.foreign import classic_set, tiles

__all__ = ["EXPECTED", "WRITERS", "Expected", "format_of"]


@dataclass(frozen=True)
class Expected:
    """The content of a unit: its bags and their labels by id, and the slides without tissue."""

    bags: Mapping[str, SourceBag]
    labels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    no_tissue: tuple[str, ...] = ()


def format_of(name: str) -> str:
    """The format of a unit's name, which is `<format>` or `<format>, <variant>`."""
    return name.split(",")[0]


def _joined(*parts: Mapping[str, Callable[[Path], Path]]) -> dict[str, Callable[[Path], Path]]:
    joined: dict[str, Callable[[Path], Path]] = {}
    for part in parts:
        assert not joined.keys() & part.keys()
        joined |= part
    return joined


WRITERS = _joined(foreign_classic.WRITERS, foreign_hdf5.WRITERS, foreign_tensor.WRITERS, foreign_arrays.WRITERS)


def _one(
    features_ND: np.ndarray, coords_N2: np.ndarray | None = None, *, slide_id: str = "s", dtype: str = "f4"
) -> Expected:
    return Expected({slide_id: SourceBag(features_ND.astype(dtype), coords_N2)})


def _classic(*slide_ids: str) -> Expected:
    data = classic_set()
    bags = {slide_id: SourceBag(bag_ND) for slide_id, bag_ND in zip(slide_ids, data.bags, strict=True)}
    return Expected(bags, {slide_id: {"label": label} for slide_id, label in zip(slide_ids, data.labels, strict=True)})


def _torchmil(**columns: str) -> Expected:
    bags, labels = {}, {}
    for position, (name, (features_ND, coords_N2)) in enumerate(foreign_arrays.BAGS.items()):
        bags[name] = SourceBag(features_ND, coords_N2, np.arange(len(features_ND)) % 2)
        labels[name] = {"label": position % 2, **columns}
    return Expected(bags, labels)


def _eva(*sizes: int) -> Expected:
    bags = {f"slide_{size}": SourceBag(tiles(size)[0]) for size in sizes}
    rows = enumerate(bags)
    return Expected(bags, {name: {"label": at % 2, "split": "val" if at == 1 else "train"} for at, name in rows})


def _slide2vec() -> Expected:
    sizes = {"slide_1": 5, "slide_3": 3}
    bags = {name: SourceBag(tiles(size)[0].astype("f2"), tiles(size)[1]) for name, size in sizes.items()}
    return Expected(bags, no_tissue=("slide_2",))


def _acmil() -> Expected:
    bags = {f"s{i}": SourceBag(tiles(3 + i)[0].astype("f2"), tiles(3 + i)[1]) for i in range(3)}
    return Expected(bags, {f"s{i}": {"label": i % 2} for i in range(3)})


_FEATURES, _PLACES = tiles(40)
_SMALL, _SMALL_PLACES = tiles(5)
_GRID = np.stack(np.meshgrid(np.arange(8), np.arange(5)), axis=-1).reshape(-1, 2)
_NUMBERED = ("0", "1", "2")
_NAMED = ("MUSK-188", "MUSK-190", "NON-MUSK-j81")
_BARE = _one(_SMALL, slide_id="slide_1")

EXPECTED: dict[str, Expected] = {
    "uci-c45": _classic(*_NAMED),
    "andrews-svm": _classic(*_NUMBERED),
    "prtools-mat": _classic(*_NAMED),
    "andrews-mat": _classic(*_NUMBERED),
    "cell-mat": _classic(*_NUMBERED),
    "classic-csv": _classic(*_NUMBERED),
    "comma-sparse": _classic("fox_data_1", "fox_data_2", "fox_data_3"),
    "npy-triple": _classic(*_NUMBERED),
    "clam-h5": _one(_FEATURES, _PLACES),
    "trident-h5": _one(_FEATURES, _PLACES),
    "trident-h5, slide without tissue": Expected({}, no_tissue=("s",)),
    "acmil-h5": _acmil(),
    "stamp-h5": _one(_FEATURES, 256.0 * _GRID, dtype="f2"),
    "stamp-h5, 2.0": _one(_FEATURES, 256.0 * _GRID, dtype="f2"),
    "stamp-h5, older": _one(_FEATURES, 256.0 * _GRID, dtype="f2"),
    "stamp-h5, multiplex": _one(_FEATURES, dtype="f2"),
    "marugoto-h5": _one(_FEATURES, 256.0 * _GRID, dtype="f2"),
    "mmp-h5": _one(_FEATURES),
    "mmp-h5, stacked": _one(_FEATURES, _PLACES),
    "pathforge-h5": _one(_FEATURES, _PLACES),
    "tensor-pt": _BARE,
    "mil-baseline-pt": _BARE,
    "trident-pt": _BARE,
    "slideflow": _one(_SMALL, _SMALL_PLACES, slide_id="slide_1"),
    "eva": _eva(3, 2, 4),
    "eva, files of tiles": _eva(3, 2),
    "slide2vec": _slide2vec(),
    "slide2vec, .npz": _slide2vec(),
    "histossl-npy": _one(_SMALL, np.stack([np.arange(5), _SMALL_PLACES[:, 1] // 512], axis=1), slide_id="slide_1"),
    "dsmil-csv": _one(np.round(_SMALL.astype("f8"), 4), slide_id="slide_1"),
    "npy": _BARE,
    "npz": _one(_SMALL, _SMALL_PLACES, slide_id="slide_1"),
    "torchmil": _torchmil(),
    "torchmil, HDF5": _torchmil(split="train"),
    "lazyslide-zarr": Expected({}),
}
