"""Writers of small HDF5 files in the exact layouts of foreign tools: keys, chunking, dtypes and attributes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.data.foreign import tiles, write_acmil, write_clam, write_trident

STAMP_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "current": {
        "stamp_version": "2.3.0",
        "extractor": "uni2",
        "unit": "um",
        "tile_size_um": 256.0,
        "tile_size_px": 224,
        "code_hash": "1f2e3d4c",
        "feat_type": "tile",
    },
    "2.0": {"stamp_version": "2.0.1", "extractor": "ctranspath", "unit": "um", "tile_size": 256.0},
    "older": {"extractor": "STAMP-extract-1.0.2_ctranspath"},
}


def write_stamp(
    path: Path,
    features_NF: np.ndarray,
    coords_N2: np.ndarray | None,
    *,
    attributes: Mapping[str, Any] = STAMP_ATTRIBUTES["current"],
    feature_key: str = "feats",
) -> None:
    """STAMP's file: contiguous, float16 features, attributes on the file itself."""
    with h5py.File(path, "w") as file:
        if coords_N2 is not None:
            file["coords"] = coords_N2
        file[feature_key] = features_NF.astype("f2")
        file.attrs.update(attributes)


def write_stamp_vector(path: Path, vector: np.ndarray, *, feat_type: str | None = "slide") -> None:
    """STAMP's vector of a slide or patient; its first versions did not write the kind."""
    with h5py.File(path, "w") as file:
        file["feats"] = vector.astype("f4")
        file.attrs.update({"version": "2.3.0", "encoder": "titan", "precision": "torch.float32"})
        if feat_type is not None:
            file.attrs.update({"stamp_version": "2.3.0", "code_hash": "1f2e3d4c", "feat_type": feat_type})


def write_marugoto(path: Path, features_NF: np.ndarray, coords_N2: np.ndarray, augmented_N: np.ndarray) -> None:
    """marugoto's file: int64 coordinates, float16 features, booleans as HDF5 enumeration, `info.json` beside it."""
    extractor = "marugoto-extract-v0.6.0_xiyue-wang-ctranspath"
    with h5py.File(path, "w") as file:
        file["coords"] = coords_N2.astype("i8")
        file["feats"] = features_NF.astype("f2")
        file["augmented"] = augmented_N.astype(bool)
        file.attrs["extractor"] = extractor
    (path.parent / "info.json").write_text(json.dumps({"extractor": extractor, "augmented_repetitions": 1}))


def write_bare(path: Path, features: np.ndarray, coords: np.ndarray | None = None) -> None:
    """The file MMP, PANTHER and MIL_BASELINE read: `features` as it comes, perhaps `coords`, no attributes."""
    with h5py.File(path, "w") as file:
        file["features"] = features
        if coords is not None:
            file["coords"] = coords


def write_pathforge(
    path: Path,
    coords_N2: np.ndarray,
    bags: Mapping[str, Mapping[str, np.ndarray]],
    *,
    spec: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
    status: str = "complete",
) -> None:
    """PathForge's file: gzip 4 with guessed chunks, a status on every dataset, JSON texts, a group `meta`.

    Args:
        path: File to write.
        coords_N2: Top-left corners at level 0, for every tiling.
        bags: Features by tiling, such as `256px_0.5mpp`, and extractor.
        spec: Replaces keys of the tiling specification.
        meta: Replaces attributes of `meta`.
        status: Of every dataset; before there was one, files had none.
    """
    with h5py.File(path, "w") as file:
        file.create_group("meta").attrs.update(
            {"schema_name": "pathbench_mil_extended", "schema_version": "1.0", "coord_space": "level0_pixel"}
            | {"num_levels": np.int32(3)}
            | dict(meta or {})
        )
        file.create_dataset("annotations/tissue", data="[]", dtype=h5py.string_dtype("utf-8"))
        for name, features in bags.items():
            edge_px, mpp = name.removesuffix("mpp").split("px_")
            window_N3 = np.tile([512, 512, 1], (len(coords_N2), 1))
            arrays = {"coords": np.hstack([coords_N2, window_N3]).astype("i4")}
            arrays |= {f"features/{extractor}": values.astype("f4") for extractor, values in features.items()}
            for key, values in arrays.items():
                dataset = file.create_dataset(
                    f"bags/{name}/{key}",
                    data=values,
                    chunks=True if values.size else None,
                    compression="gzip" if values.size else None,
                    compression_opts=4 if values.size else None,
                )
                dataset.attrs["status"] = status
            stated = {"tile_px": int(edge_px), "tile_mpp": float(mpp), "stride_px": int(edge_px)}
            text = json.dumps(stated | {"coord_space": "level0", "backend": "lazyslide"} | dict(spec or {}))
            file.create_dataset(f"bags/{name}/tiling_spec", data=text, dtype=h5py.string_dtype("utf-8"))


def _unit(name: str, write: Callable[[Path], None]) -> Callable[[Path], Path]:
    def written(folder: Path) -> Path:
        write(folder / name)
        return folder / name

    return written


_X, _AT = tiles(40)
_GRID = np.stack(np.meshgrid(np.arange(8), np.arange(5)), axis=-1).reshape(-1, 2)
_TWICE = np.repeat([False, True], len(_X))

WRITERS: dict[str, Callable[[Path], Path]] = {
    "clam-h5": _unit("s.h5", lambda path: write_clam(path, _X, _AT)),
    "trident-h5": _unit("s.h5", lambda path: write_trident(path, _X, _AT)),
    "trident-h5, slide without tissue": _unit("s.h5", lambda path: write_trident(path, _X[:0], _AT[:0])),
    "acmil-h5": _unit("all.h5", lambda path: write_acmil(path, [(f"s{i}", *tiles(3 + i), i % 2) for i in range(3)])),
    "stamp-h5": _unit("s.h5", lambda path: write_stamp(path, _X, (256.0 * _GRID).astype("f4"))),
    "stamp-h5, 2.0": _unit(
        "s.h5", lambda path: write_stamp(path, _X, 256.0 * _GRID, attributes=STAMP_ATTRIBUTES["2.0"])
    ),
    "stamp-h5, older": _unit(
        "s.h5", lambda path: write_stamp(path, _X, 224 * _GRID, attributes=STAMP_ATTRIBUTES["older"])
    ),
    "stamp-h5, multiplex": _unit(
        "s.h5", lambda path: write_stamp(path, _X, None, attributes={}, feature_key="patch_embeddings")
    ),
    "marugoto-h5": _unit(
        "s.h5", lambda path: write_marugoto(path, np.tile(_X, (2, 1)), np.tile(224 * _GRID, (2, 1)), _TWICE)
    ),
    "mmp-h5": _unit("s.h5", lambda path: write_bare(path, _X)),
    "mmp-h5, stacked": _unit("s.h5", lambda path: write_bare(path, _X[None], _AT[None])),
    "pathforge-h5": _unit("s.h5", lambda path: write_pathforge(path, _AT, {"256px_0.5mpp": {"uni": _X}})),
}
