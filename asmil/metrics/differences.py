"""The result of comparing two models: a difference, its interval and its p-value, or the reason why one is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from asmil.errors import DataError

__all__ = ["MIN_PATIENTS", "Difference", "holm", "with_holm"]

MIN_PATIENTS = 5
"""Fewest patients (per class, where classes matter) from which an interval or a normal approximation is formed."""


@dataclass(frozen=True)
class Difference:
    """First model minus second model in one metric.

    Attributes:
        metric: Name of the metric, such as `macro_f1` or `auc[tumor]`.
        first: The metric of the first model, in the metric's own unit (a share from 0 to 1 for all those here).
        second: The metric of the second model.
        value: `first - second`; None where either is undefined.
        interval: 95 % confidence interval of `value`.
        p_value: Two-sided p-value of no difference, not corrected for the number of comparisons.
        p_holm: `p_value` after Holm's correction over the comparisons it was made with; see `with_holm`.
        p_exact: A second p-value that assumes no distribution (sign flips), where the first is a t-test.
        method: What the interval and the p-value are, in words.
        unit: What was counted as independent: `patients`, `folds` or `seeds`.
        num_units: How many of them entered.
        left_out: Units left out, or resamples without a value, because the metric is undefined there.
        reason: Why something is missing, or a warning beside it: `one_class`, `absent_class`, `too_few_patients`,
            `no_spread`, `identical`, `undefined_resamples`, `too_few_folds`, `too_few_seeds`, or the metric's own.
    """

    metric: str
    first: float | None
    second: float | None
    value: float | None
    method: str
    unit: str
    num_units: int
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    p_holm: float | None = None
    p_exact: float | None = None
    left_out: int = 0
    reason: str | None = None


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down correction: the chance of any false claim among these comparisons stays below the level.

    The k-th smallest of m p-values is multiplied by m - k + 1, never falls below the one before it and never exceeds
    1 (Holm 1979). Comparisons without a p-value claim nothing, so they are not counted in m and stay None.

    Args:
        p_values: The p-value of each comparison.

    Returns:
        The corrected p-values under the same names, in the same order.

    Raises:
        DataError: A p-value outside 0 to 1.

    Example:
        >>> holm({"a": 0.25, "b": 0.125, "c": None, "d": 0.0625})
        {'a': 0.25, 'b': 0.25, 'c': None, 'd': 0.1875}
    """
    for name, p in p_values.items():
        if p is not None and not 0 <= p <= 1:
            raise DataError(
                f"the p-value of {name!r} is {p}; expected a number from 0 to 1, or None where there is none"
            )
    found = {name: p for name, p in p_values.items() if p is not None}
    ordered = sorted(found, key=lambda name: found[name])
    scaled = [found[name] * (len(ordered) - k) for k, name in enumerate(ordered)]
    corrected = dict(zip(ordered, np.minimum(np.maximum.accumulate(scaled), 1.0).tolist(), strict=True))
    return {name: corrected.get(name) for name in p_values}


def with_holm(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """The same differences with `p_holm` filled in, corrected over all of them.

    Args:
        differences: One metric's differences, one for each model compared (or any family of claims made together).

    Returns:
        Copies under the same names.
    """
    corrected = holm({name: difference.p_value for name, difference in differences.items()})
    return {name: replace(difference, p_holm=corrected[name]) for name, difference in differences.items()}
