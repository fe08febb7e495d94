"""95 % intervals: Wilson's for a proportion, and a bootstrap that resamples whole groups (patients), never rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy.stats import binomtest

from asmil.errors import DataError

__all__ = ["clustered_bootstrap", "wilson_interval"]


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    It assumes independent trials: give it one bag per patient, and use `clustered_bootstrap` otherwise.

    Args:
        successes: How many trials succeeded.
        n: How many trials there were.

    Returns:
        Lower and upper 95 % limit.

    Raises:
        DataError: No trials, or more successes than trials.

    Example:
        >>> [round(limit, 3) for limit in wilson_interval(8, 10)]
        [0.49, 0.943]
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"no proportion can be formed of {successes} successes in {n} trials; evaluate some bags first")
    limits = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(limits.low), float(limits.high)


def clustered_bootstrap(
    statistic: Callable[[np.ndarray], float | None],
    groups: Sequence[Hashable],
    *,
    strata: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a statistic of rows that come in dependent groups.

    Each resample draws as many groups as there are, with replacement, and takes all rows of a drawn group each time
    it is drawn. With strata (folds, say) groups are drawn within their stratum, so a mean over folds keeps its folds.

    Args:
        statistic: The statistic of the rows with the given indices (repeated where drawn repeatedly), or None where
            it is undefined.
        groups: Group of each row.
        strata: Stratum of each row; all rows of a group lie in one stratum.
        resamples: Number of resamples.
        seed: Seed of the draws; equal seeds give equal intervals.

    Returns:
        The 2.5 % and 97.5 % quantiles over the resamples where the statistic is defined, or None where an interval
        would mean nothing: fewer than two groups, or a statistic undefined in more than half of the resamples.

    Raises:
        DataError: A group lies in two strata, or the numbers of rows differ.
    """
    strata = [None] * len(groups) if strata is None else strata
    clusters = _clusters(groups, strata)
    if sum(len(members) for members in clusters) < 2:
        return None
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = [
            members[k] for members in clusters for k in generator.integers(len(members), size=len(members)).tolist()
        ]
        value = statistic(np.concatenate(drawn))
        if value is not None:
            values.append(value)
    if 2 * len(values) < resamples:
        return None
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _clusters(groups: Sequence[Hashable], strata: Sequence[Hashable]) -> list[list[np.ndarray]]:
    """Row indices of each group, listed per stratum, both in order of first appearance."""
    if len(groups) != len(strata):
        raise DataError(f"{len(groups)} groups but {len(strata)} strata; expected one of each per row")
    rows_of: dict[Hashable, dict[Hashable, list[int]]] = {}
    stratum_of: dict[Hashable, Hashable] = {}
    for row, (group, stratum) in enumerate(zip(groups, strata, strict=True)):
        if stratum_of.setdefault(group, stratum) != stratum:
            raise DataError(
                f"group {group!r} lies in strata {stratum_of[group]!r} and {stratum!r}; "
                f"resampling within strata needs every group in one, so resample without strata"
            )
        rows_of.setdefault(stratum, {}).setdefault(group, []).append(row)
    return [[np.asarray(rows) for rows in members.values()] for members in rows_of.values()]
