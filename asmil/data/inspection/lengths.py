"""How many instances the bags of a store have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["LengthBin", "LengthFigures", "summarise_lengths"]


@dataclass(frozen=True)
class LengthBin:
    """Bags of `low` to `high` instances, both included."""

    low: int
    high: int
    bags: int


@dataclass(frozen=True)
class LengthFigures:
    """Distribution of the bag lengths: extremes, quartiles, mean, and a histogram in steps of 1, 2, 5, 10 and so on."""

    shortest: int
    quartile_1: float
    median: float
    quartile_3: float
    longest: int
    mean: float
    bins: tuple[LengthBin, ...]


def summarise_lengths(lengths: Sequence[int]) -> LengthFigures:
    """Figures of bag lengths.

    Args:
        lengths: Instances of each bag; at least one bag.

    Example:
        >>> figures = summarise_lengths([3, 4, 20, 700])
        >>> figures.median, [(part.low, part.high, part.bags) for part in figures.bins if part.bags]
        (12.0, [(2, 4, 2), (20, 49, 1), (500, 999, 1)])
    """
    lengths_B = np.asarray(lengths)
    edges = [1]
    while edges[-1] <= lengths_B.max():
        edges.append(edges[-1] * 5 // 2 if str(edges[-1]).startswith("2") else edges[-1] * 2)
    counts = np.histogram(lengths_B, edges)[0]  # the last bin is closed, but its edge lies above every length
    first = int(np.flatnonzero(counts)[0])
    bins = [LengthBin(low, high - 1, int(n)) for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True)]
    quartiles = [float(value) for value in np.quantile(lengths_B, [0.25, 0.5, 0.75])]
    return LengthFigures(
        shortest=int(lengths_B.min()),
        quartile_1=quartiles[0],
        median=quartiles[1],
        quartile_3=quartiles[2],
        longest=int(lengths_B.max()),
        mean=float(lengths_B.mean()),
        bins=tuple(bins[first:]),
    )
