"""Small stores for the tests of the data plane."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from asmil.data.store import BagStore
from asmil.data.writer import BagWriter


def draw_bags(lengths: Sequence[int], num_features: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Bags S0, S1, … of the given lengths with standard normal float32 features."""
    rng = np.random.default_rng(seed)
    return {f"S{i}": rng.standard_normal((n, num_features)).astype(np.float32) for i, n in enumerate(lengths)}


def write_store(
    directory: Path, bags: Mapping[str, np.ndarray], labels: pd.DataFrame | None = None, **options: Any
) -> Path:
    """Write bags with coordinates (row, 2 * row) and return the directory."""
    num_features = next(iter(bags.values())).shape[1]
    with BagWriter(directory, num_features=num_features, **options) as writer:
        for slide_id, features_ND in bags.items():
            rows = np.arange(len(features_ND))
            writer.add(slide_id, features_ND, coords_N2=np.stack([rows, 2 * rows], axis=1))
        if labels is not None:
            writer.set_labels(labels)
    return directory


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    """Flip one bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))


def shard_paths(directory: Path) -> list[Path]:
    """The shard files of a store, in order."""
    return [directory / shard.name for shard in BagStore.open(str(directory)).info.shards]


def feature_sum(pickled_store: bytes, slide_id: str) -> float:
    """Read a slide of a store that was opened in another process."""
    store: BagStore = pickle.loads(pickled_store)
    return float(store.read(slide_id).features_ND.double().sum())
