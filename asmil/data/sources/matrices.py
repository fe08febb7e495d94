"""What every format that is not HDF5 demands of its arrays: features [N, D] of floats, coordinates [N, 2]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asmil.data.sources.base import ContentError

__all__ = ["FeatureShape", "as_matrix", "check_coords", "feature_shape", "slide_id_of"]

_FLOATS = ("float16", "float32", "float64", "bfloat16")


class FeatureShape(NamedTuple):
    """Rows N and width D of a feature matrix; N is 0 for a slide without tissue."""

    num_instances: int
    num_features: int


def slide_id_of(path: Path, *suffixes: str) -> str:
    """The slide a per-slide file belongs to: its name without one of these suffixes, and nothing else cut off.

    Example:
        >>> slide_id_of(Path("TCGA-2F-A9KO-01Z-00-DX1.1955.ome.pt"), ".pt", ".pth")
        'TCGA-2F-A9KO-01Z-00-DX1.1955.ome'
    """
    return path.stem if path.suffix.lower() in suffixes else path.name


def feature_shape(where: str, shape: Sequence[int], dtype: str) -> FeatureShape:
    """Rows and width of features, from what the header says.

    `[1, N, D]` counts as `[N, D]`: some tools keep the batch axis. An empty vector is what they write for a slide
    without tissue; any other vector is one per slide.

    Args:
        where: File and name of the array, for messages.
        shape: Its shape.
        dtype: Name of its dtype.

    Raises:
        ContentError: A slide vector, another rank, or numbers that are not floats.
    """
    if 0 in shape[:1] and len(shape) in (1, 2):
        return FeatureShape(0, 0)
    if len(shape) == 3 and shape[0] == 1:
        return feature_shape(where, shape[1:], dtype)
    if len(shape) == 1:
        raise ContentError(
            f"{where} has rank 1 ({shape[0]} values): one vector for the whole slide, not patch features; "
            "multiple-instance learning needs one row per tile: give the folder of the tile features"
        )
    if len(shape) != 2 or shape[1] == 0:
        raise ContentError(f"{where} has shape {list(shape)}, expected one row per tile: [N, D] or [1, N, D]")
    if dtype not in _FLOATS:
        raise ContentError(f"{where} has dtype {dtype}, expected features as {', '.join(_FLOATS)}")
    return FeatureShape(shape[0], shape[1])


def as_matrix(features: np.ndarray) -> np.ndarray:
    """Features [N, D] in native byte order, without the batch axis that `feature_shape` lets pass."""
    matrix_ND = features[0] if features.ndim == 3 else features
    return matrix_ND.astype(matrix_ND.dtype.newbyteorder("="), copy=False)


def check_coords(where: str, shape: Sequence[int], dtype: np.dtype[np.generic], num_instances: int) -> None:
    """Refuse coordinates that are not one x, y pair of numbers per row of features.

    Args:
        where: File and name of the array, for messages.
        shape: Its shape.
        dtype: Its dtype.
        num_instances: Rows of the features.

    Raises:
        ContentError: Another shape, or no numbers.
    """
    if tuple(shape) != (num_instances, 2) or dtype.kind not in "iuf":
        raise ContentError(
            f"{where} is {dtype} {list(shape)}, expected numbers of shape [{num_instances}, 2] for {num_instances} "
            "rows of features; coordinates and features do not belong together"
        )
