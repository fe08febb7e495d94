"""95 % intervals of a task's metrics, with patients (groups) as the unit of resampling."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from asmil.metrics.intervals import wilson_interval
from asmil.metrics.resampling import bootstrap
from asmil.metrics.values import Metric

__all__ = ["accuracy_interval", "with_intervals"]

RESAMPLES = 1000


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
    share = bootstrap(
        lambda weights_RB: weights_RB @ correct_B.astype(float) / weights_RB.sum(axis=1), groups, resamples=RESAMPLES
    )
    return share.interval


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
        The named metrics of all rows; without an interval where there is no value, and where resampling cannot tell
        one, with the reason that `bootstrap` gives: `too_few_patients`, `no_spread` or `undefined_resamples`.
    """
    seen: dict[bytes, Mapping[str, Metric]] = {}

    def resampled(name: str, weights_RB: np.ndarray) -> np.ndarray:
        values = []
        for weights_B in weights_RB.astype(np.int64):
            key = weights_B.tobytes()
            if key not in seen:
                seen[key] = measure(np.repeat(np.arange(len(weights_B)), weights_B))
            values.append(seen[key][name].value)
        return np.array([np.nan if value is None else value for value in values])

    metrics = measure(np.arange(len(groups)))
    found = {}
    for name in names:
        metric = metrics[name]
        if metric.value is not None:
            drawn = bootstrap(partial(resampled, name), groups, strata=strata, resamples=RESAMPLES)
            metric = replace(metric, interval=drawn.interval, reason=metric.reason or drawn.reason)
        found[name] = metric
    return found
