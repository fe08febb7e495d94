"""Writers of small units in the exact layouts of tools that write `.pt`, `.npy`, `.npz` or CSV files.

`WRITERS` has one small valid unit per format, for the tests that hold for all of them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.data.foreign import tiles

BAGS_CONFIG: Mapping[str, Any] = {
    "extractor": {"class": "slideflow.model.extractors.retccl.RetCCLFeatures", "kwargs": {"center_crop": True}},
    "normalizer": {"method": "macenko", "fit": {"stain_matrix_target": [[0.5, 0.2], [0.7, 0.4], [0.4, 0.8]]}},
    "num_features": 6,
    "tile_px": 299,
    "tile_um": 302,
}


def write_tensor(path: Path, value: Any) -> None:
    """CLAM's `pt_files/<slide>.pt` if the value is a tensor; MIL_BASELINE saves dicts, TRIDENT NumPy arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)


def write_slideflow(
    path: Path, features_ND: np.ndarray, locations_N2: np.ndarray | None, config: Mapping[str, Any] | None = BAGS_CONFIG
) -> None:
    """slideflow's bag: the tensor, its tile locations under `arr_0`, and the folder's configuration."""
    write_tensor(path, torch.from_numpy(features_ND))
    if locations_N2 is not None:
        np.savez(path.with_suffix(".index.npz"), locations_N2)
    if config is not None:
        (path.parent / "bags_config.json").write_text(json.dumps(config, indent=1))


def write_eva(
    folder: Path,
    bags: Mapping[str, np.ndarray],
    *,
    stacked: bool = False,
    rows_per_file: int | None = None,
    coords: Mapping[str, np.ndarray] | None = None,
) -> None:
    """eva's folder: a manifest, and a list of vectors (or one tensor) in each file it names.

    Args:
        folder: Folder to write.
        bags: Features by slide.
        stacked: Write tensors instead of lists.
        rows_per_file: Spread each slide over files of so many rows, told apart by the column `wsi_id`.
        coords: Places by slide, as eva lists them in `coords_train.csv`.
    """
    with_id = rows_per_file is not None
    lines = [["origin", "embeddings", "target", "split", *(["wsi_id"] if with_id else [])]]
    for position, (name, features_ND) in enumerate(bags.items()):
        step = rows_per_file or max(len(features_ND), 1)
        for start in range(0, max(len(features_ND), 1), step):
            part_ND = torch.from_numpy(features_ND[start : start + step])
            file = f"images/{name}{f'_{start}' if with_id else ''}.pt"
            write_tensor(folder / file, part_ND if stacked else [row_D.clone() for row_D in part_ND])
            split = "val" if position == 1 else "train"
            lines.append([f"images/{name}.tif", file, str(position % 2), split, *([name] if with_id else [])])
    with (folder / "manifest.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(lines)
    if coords is not None:
        places = [
            [f"images/{name}.tif", str([*map(tuple, at_N2.tolist())]), 224, 224, 1] for name, at_N2 in coords.items()
        ]
        with (folder / "coords_train.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["file", "x_y", "width", "height", "level_idx"], *places])


SLIDE2VEC_META: Mapping[str, Any] = {
    "artifact_type": "tile_embeddings",
    "backend": "cucim",
    "encoder_level": "tile",
    "encoder_name": "virchow2",
    "feature_dtype": "fp16",
    "read_tile_size_px": 224,
    "requested_tile_size_px": 224,
    "requested_spacing_um": 0.5,
    "tile_size_lv0": 448,
}


def write_slide2vec(
    folder: Path,
    sample: str,
    features_ND: np.ndarray,
    coords_N2: np.ndarray | None,
    *,
    suffix: str = ".pt",
    meta: Mapping[str, Any] | None = None,
) -> Path:
    """slide2vec's output of one slide: float16 features, sidecars, coordinates in a folder beside.

    A slide without tissue has sidecars only.

    Returns:
        The folder of the features.
    """
    tiles_folder, features_folder = folder / "tiles", folder / "tile_embeddings"
    index_N = np.arange(len(features_ND), dtype=np.int32)
    for path in (tiles_folder, features_folder):
        path.mkdir(parents=True, exist_ok=True)
    if len(features_ND) and suffix == ".pt":
        torch.save(torch.from_numpy(features_ND.astype("f2")), features_folder / f"{sample}.pt")
    elif len(features_ND):
        np.savez_compressed(features_folder / f"{sample}.npz", features=features_ND.astype("f2"), tile_index=index_N)
    if len(features_ND) and coords_N2 is not None:
        np.savez_compressed(
            tiles_folder / f"{sample}.coordinates.npz",
            x=coords_N2[:, 0],
            y=coords_N2[:, 1],
            tile_index=index_N,
            tissue_fractions=np.ones(len(features_ND), "f4"),
        )
    tiling = {"provenance": {"sample_id": sample}, "tiling": {"n_tiles": len(features_ND), "tile_size_lv0": 448}}
    (tiles_folder / f"{sample}.coordinates.meta.json").write_text(json.dumps(tiling, indent=2, sort_keys=True))
    width = features_ND.shape[1] if len(features_ND) else None
    shape = {"sample_id": sample, "format": suffix[1:], "num_tiles": len(features_ND), "feature_dim": width}
    content = {**SLIDE2VEC_META, **shape, **(meta or {})}
    (features_folder / f"{sample}.meta.json").write_text(json.dumps(content, indent=2, sort_keys=True))
    return features_folder


def _tensor_unit(folder: Path) -> Path:
    write_tensor(folder / "slide_1.pt", torch.from_numpy(tiles(5)[0]))
    return folder / "slide_1.pt"


def _dict_unit(folder: Path) -> Path:
    write_tensor(folder / "slide_1.pt", {"feats": torch.from_numpy(tiles(5)[0])[None]})
    return folder / "slide_1.pt"


def _numpy_unit(folder: Path) -> Path:
    write_tensor(folder / "slide_1.pt", tiles(5)[0])
    return folder / "slide_1.pt"


def _slideflow_unit(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_slideflow(folder / "slide_1.pt", *tiles(5))
    return folder / "slide_1.pt"


def _eva_unit(folder: Path) -> Path:
    write_eva(folder / "virchow2", {f"slide_{size}": tiles(size)[0] for size in (3, 2, 4)})
    return folder / "virchow2"


def _eva_grouped_unit(folder: Path) -> Path:
    write_eva(folder / "virchow2", {f"slide_{size}": tiles(size)[0] for size in (3, 2)}, stacked=True, rows_per_file=2)
    return folder / "virchow2"


def _slide2vec_unit(folder: Path, suffix: str = ".pt") -> Path:
    for name, size in (("slide_1", 5), ("slide_2", 0), ("slide_3", 3)):
        found = write_slide2vec(folder / "run", name, *tiles(size), suffix=suffix)
    return found


WRITERS: dict[str, Callable[[Path], Path]] = {
    "tensor-pt": _tensor_unit,
    "mil-baseline-pt": _dict_unit,
    "trident-pt": _numpy_unit,
    "slideflow": _slideflow_unit,
    "eva": _eva_unit,
    "eva, files of tiles": _eva_grouped_unit,
    "slide2vec": _slide2vec_unit,
    "slide2vec, .npz": lambda folder: _slide2vec_unit(folder, ".npz"),
}
