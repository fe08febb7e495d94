"""95 % intervals of a task's metrics, with patients (groups) as the unit of resampling."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from asmil.metrics.intervals import clustered_bootstrap, wilson_interval
from asmil.metrics.values import Metric

__all__ = ["accuracy_interval", "with_intervals"]


def accuracy_interval(correct_B: np.ndarray, groups: Sequence[str]) -> tuple[float, float] | None:
    """Interval of the share of correct bags: Wilson's if each bag is a group of its own, else a bootstrap of groups.

    Args:
        correct_B: Which bags are right.
        groups: Group of each bag.

    Returns:
        Lower and upper limit, or None where an interval would mean nothing.
    """
    if len(correct_B) == 0:
        return None
    if len(set(groups)) == len(groups):
        return wilson_interval(int(correct_B.sum()), len(correct_B))
    return clustered_bootstrap(lambda rows: float(correct_B[rows].mean()), groups)


def with_intervals(
    measure: Callable[[np.ndarray], Mapping[str, Metric]],
    names: Sequence[str],
    groups: Sequence[str],
    *,
    strata: Sequence[Hashable] | None = None,
) -> dict[str, Metric]:
    """Metrics with bootstrap intervals. All are taken from the same resamples, and each of these is measured once.

    Args:
        measure: The metrics of the rows with the given indices.
        names: Which of them to give an interval.
        groups: Group of each row.
        strata: Stratum of each row, such as its fold; groups are drawn within theirs.

    Returns:
        The named metrics of all rows; without an interval where there is no value, and with the reason `no_interval`
        where resampling cannot tell one, as of too few groups.
    """
    seen: dict[bytes, Mapping[str, Metric]] = {}

    def resampled(name: str, rows: np.ndarray) -> float | None:
        key = rows.tobytes()
        if key not in seen:
            seen[key] = measure(rows)
        return seen[key][name].value

    metrics = measure(np.arange(len(groups)))
    found = {}
    for name in names:
        limits, reason = None, metrics[name].reason
        if metrics[name].value is not None:
            limits = clustered_bootstrap(partial(resampled, name), groups, strata=strata)
            reason = reason or ("no_interval" if limits is None else None)
        found[name] = replace(metrics[name], interval=limits, reason=reason)
    return found
