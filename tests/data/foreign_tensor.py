"""Writers of small units in the exact layouts of tools that write `.pt`, `.npy`, `.npz` or CSV files.

`WRITERS` has one small valid unit per format, for the tests that hold for all of them.
"""

from __future__ import annotations

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


WRITERS: dict[str, Callable[[Path], Path]] = {
    "tensor-pt": _tensor_unit,
    "mil-baseline-pt": _dict_unit,
    "trident-pt": _numpy_unit,
    "slideflow": _slideflow_unit,
}
