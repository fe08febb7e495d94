"""A bootstrap of whole patients by row indices, one resample after another: what the weighted one is compared with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np


def row_bootstrap(
    statistic: Callable[[np.ndarray], float],
    groups: Sequence[Hashable],
    *,
    strata: Sequence[Hashable] | None = None,
    resamples: int,
) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of a statistic of drawn rows; groups are drawn whole, within their stratum."""
    rng = np.random.default_rng(0)
    rows_of: dict[Hashable, dict[Hashable, list[int]]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(None if strata is None else strata[row], {}).setdefault(group, []).append(row)
    values = []
    for _ in range(resamples):
        rows: list[int] = []
        for members in map(list, map(dict.values, rows_of.values())):
            for chosen in rng.integers(len(members), size=len(members)).tolist():
                rows += members[chosen]
        values.append(statistic(np.array(rows)))
    low, high = np.quantile(values, (0.025, 0.975)).tolist()
    return low, high
