"""Writers of small units in the exact layouts of tools that write NumPy, CSV or zarr files, or several files per slide.

`WRITERS` has one small valid unit per format or variant, for the tests that hold for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from tests.data.foreign import tiles

BAGS = {"bag_1": tiles(4), "bag_2": tiles(3), "bag_10": tiles(1)}


def write_histossl(path: Path, features_ND: np.ndarray, addresses_N3: np.ndarray) -> None:
    """HistoSSLscaling's array: deep-zoom level, x and y before the features, all float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.hstack([addresses_N3, features_ND]).astype("f4"))


def write_dsmil(path: Path, features_ND: np.ndarray) -> None:
    """DSMIL's table: what pandas writes with a header of column numbers, no index and four decimals."""
    pd.DataFrame(features_ND).to_csv(path, index=False, float_format="%.4f")


def write_torchmil(
    folder: Path,
    bags: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    suffix: str = ".npy",
    splits: Mapping[str, str] | None = None,
) -> None:
    """torchmil's folders: features, labels, inst_labels and coords, a file per bag in each.

    With `.h5` the instance labels stay `.npy` content under the name of an HDF5 file, since torchmil reads them so.
    """
    for position, (name, (features_ND, coords_N2)) in enumerate(bags.items()):
        parts = {
            "features": features_ND,
            "labels": np.array([position % 2]),
            "inst_labels": np.arange(len(features_ND)) % 2,
            "coords": coords_N2,
        }
        for part, values in parts.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            path = folder / part / f"{name}{suffix}"
            if suffix == ".h5" and part != "inst_labels":
                with h5py.File(path, "w") as file:
                    file[part] = values
            else:
                with path.open("wb") as stream:
                    np.save(stream, values)
    if splits is not None:
        rows = [{"bag_name": name, "split": split} for name, split in splits.items()]
        pd.DataFrame(rows).to_csv(folder / "splits.csv", index=False)


def write_lazyslide(path: Path, *, zarr_format: int = 3) -> None:
    """The metadata of LazySlide's SpatialData folder; its arrays are not looked at."""
    attributes = {"spatialdata_attrs": {"spatialdata_software_version": "0.5.0", "version": "0.2"}}
    table = path / "tables" / "uni_tiles"
    table.mkdir(parents=True)
    if zarr_format == 3:
        text = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes})
        (path / "zarr.json").write_text(text)
        table_text = {"zarr_format": 3, "node_type": "group", "attributes": {"encoding-type": "anndata"}}
        (table / "zarr.json").write_text(json.dumps(table_text))
    else:
        (path / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
        (path / ".zattrs").write_text(json.dumps(attributes))
        (table / ".zattrs").write_text(json.dumps({"encoding-type": "anndata", "encoding-version": "0.1.0"}))


def _histossl(folder: Path) -> Path:
    features_ND, coords_N2 = tiles(5)
    path = folder / "slide_1" / "features.npy"
    write_histossl(path, features_ND, np.column_stack([np.full(5, 16), np.arange(5), coords_N2[:, 1] // 512]))
    return path


def _dsmil(folder: Path) -> Path:
    write_dsmil(folder / "slide_1.csv", tiles(5)[0])
    return folder / "slide_1.csv"


def _npy(folder: Path) -> Path:
    np.save(folder / "slide_1.npy", tiles(5)[0])
    return folder / "slide_1.npy"


def _npz(folder: Path) -> Path:
    features_ND, coords_N2 = tiles(5)
    np.savez_compressed(folder / "slide_1.npz", features=features_ND, coords=coords_N2)
    return folder / "slide_1.npz"


def _torchmil(folder: Path) -> Path:
    write_torchmil(folder / "set", BAGS)
    return folder / "set"


def _torchmil_hdf5(folder: Path) -> Path:
    write_torchmil(folder / "set", BAGS, suffix=".h5", splits=dict.fromkeys(BAGS, "train"))
    return folder / "set"


def _lazyslide(folder: Path) -> Path:
    write_lazyslide(folder / "slide_1.zarr")
    return folder / "slide_1.zarr"


WRITERS: dict[str, Callable[[Path], Path]] = {
    "histossl-npy": _histossl,
    "dsmil-csv": _dsmil,
    "npy": _npy,
    "npz": _npz,
    "torchmil": _torchmil,
    "torchmil, HDF5": _torchmil_hdf5,
    "lazyslide-zarr": _lazyslide,
}
