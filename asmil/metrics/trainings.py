"""Figures of two models compared over folds and over seeds, and how far the figures of one model lie apart.

It takes one figure per training; what patients say about a difference is in `compare`. A difference is always first
minus second, its p-value is two-sided. Folds share most of their training patients, which the test over folds corrects
for; the test over seeds speaks of training runs on one split.

Shapes: F folds or seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student_t

from asmil.errors import DataError
from asmil.metrics.differences import Difference
from asmil.metrics.resampling import sign_flip_p

__all__ = ["SeedSpread", "compare_folds", "compare_seeds", "mean_null_c_spread", "seed_spread"]

MIN_FOLDS = 3
"""Fewest paired folds or seeds whose spread gives a t-test."""


@dataclass(frozen=True)
class SeedSpread:
    """How much a figure moves when only the seed of the training changes.

    Attributes:
        mean: Mean over the seeds; None without any.
        sd: Standard deviation with n - 1 in the denominator; None for fewer than two.
        lowest: Smallest figure.
        highest: Largest figure.
        num_seeds: Seeds with a figure.
        left_out: Seeds without one.
        reason: `no_seeds`, or `one_seed` where there is no spread to speak of.
    """

    mean: float | None
    sd: float | None
    lowest: float | None
    highest: float | None
    num_seeds: int
    left_out: int
    reason: str | None = None


def compare_folds(
    first: Sequence[float | None],
    second: Sequence[float | None],
    *,
    test_per_train: float,
    metric: str = "c_index",
) -> Difference:
    """Paired difference over folds, with the variance corrected for training sets that overlap.

    The t-statistic is mean / sqrt((1/J + n_test/n_train) s^2) with J - 1 degrees of freedom (Nadeau & Bengio, Machine
    Learning 52, 2003, 239-281; for k folds the ratio is 1 / (k - 1)). The plain paired t-test takes folds for
    independent and claims too much. `p_exact` is Wilcoxon's signed-rank test over all signs, without the correction; on
    five folds it cannot fall below 1/16.

    Args:
        first: The first model's figure of each fold (and repeat), None where it is undefined.
        second: The second model's figures of the same folds.
        test_per_train: n_test / n_train, the number of test patients over the number of training patients.
        metric: Name of the figure.

    Returns:
        The mean difference over folds where both are defined; without interval and p for fewer than three
        (`too_few_folds`) or equal differences (`no_spread`, `identical`).

    Raises:
        DataError: Numbers of folds that differ, or a share that is not positive.

    Example:
        >>> found = compare_folds([0.6, 0.7, 0.65, 0.62, 0.71], [0.55, 0.66, 0.66, 0.6, 0.65], test_per_train=1 / 4)
        >>> round(found.value, 3), round(found.p_value, 3), found.p_exact
        (0.032, 0.161, 0.125)
    """
    if not test_per_train > 0:
        raise DataError(f"the ratio of test to training patients is {test_per_train}; expected a positive number")
    values, left_out = _paired(first, second, "folds")
    method = "corrected resampled t; p_exact: signed-rank"
    return _t_test(metric, values, left_out, test_per_train, method, "folds", _signed_ranks)


def compare_seeds(first: Mapping[int, float | None], second: Mapping[int, float | None], *, metric: str) -> Difference:
    """Paired t-test over seeds: both models were trained with each seed and tested on the same part.

    The p-value speaks of training runs, given this split and these test patients. Figures over folds are averaged per
    seed before they come here. `p_exact` flips the signs of the differences.

    Args:
        first: The first model's figure under each seed, None where it is undefined.
        second: The second model's figures; seeds that only one model has are left out and counted.
        metric: Name of the figure.

    Returns:
        The mean difference; without interval and p for fewer than three seeds (`too_few_seeds`) or equal
        differences (`no_spread`, `identical`).
    """
    seeds = sorted(set(first) | set(second))
    values, left_out = _paired([first.get(seed) for seed in seeds], [second.get(seed) for seed in seeds], "seeds")
    return _t_test(metric, values, left_out, 0.0, "paired t; p_exact: sign flips", "seeds", sign_flip_p)


def seed_spread(figures: Sequence[float | None]) -> SeedSpread:
    """Mean, standard deviation and range of one model's figure over seeds.

    Args:
        figures: The figure under each seed, None where it is undefined.

    Returns:
        The spread.

    Example:
        >>> seed_spread([0.5, 0.75, None]).left_out
        1
    """
    found = [figure for figure in figures if figure is not None]
    left_out = len(figures) - len(found)
    if not found:
        return SeedSpread(None, None, None, None, 0, left_out, "no_seeds")
    sd = float(np.std(found, ddof=1)) if len(found) > 1 else None
    reason = None if len(found) > 1 else "one_seed"
    return SeedSpread(float(np.mean(found)), sd, min(found), max(found), len(found), left_out, reason)


def mean_null_c_spread(spreads: Sequence[float | None]) -> float | None:
    """Standard deviation of the mean C over folds for a random score: the noise a difference has to rise above.

    Args:
        spreads: `null_c_spread` of each fold's test part; folds share no patient. None where no pair is comparable:
            such a fold has no C and is in no mean.

    Returns:
        The standard deviation over the other folds, or None if there is none.

    Example:
        >>> mean_null_c_spread([0.03, 0.04, None])
        0.025
    """
    known = [spread for spread in spreads if spread is not None]
    return float(np.sqrt(np.square(known).sum()) / len(known)) if known else None


def _t_test(
    metric: str,
    values_2F: np.ndarray,
    left_out: int,
    overlap: float,
    method: str,
    unit: str,
    exact: Callable[[np.ndarray], float],
) -> Difference:
    """t-test of paired figures, [2, F], whose mean difference has variance (1/F + overlap) s^2."""
    num = values_2F.shape[1]
    if num == 0:
        return Difference(metric, None, None, None, method, unit, 0, left_out=left_out, reason=f"too_few_{unit}")
    first, second = values_2F.mean(axis=1).tolist()
    differences = values_2F[0] - values_2F[1]
    result = Difference(metric, first, second, float(differences.mean()), method, unit, num, left_out=left_out)
    if num < MIN_FOLDS:
        return replace(result, reason=f"too_few_{unit}")
    if np.ptp(differences) < 1e-12:
        is_identical = bool(np.abs(differences).max() < 1e-12)
        return replace(result, p_value=1.0, reason="identical") if is_identical else replace(result, reason="no_spread")
    error = float(np.sqrt((1 / num + overlap) * differences.var(ddof=1)))
    mean = float(differences.mean())
    half = float(student_t.ppf(0.975, num - 1)) * error
    p_value = float(2 * student_t.sf(abs(mean) / error, num - 1))
    return replace(result, interval=(mean - half, mean + half), p_value=p_value, p_exact=exact(differences))


def _signed_ranks(differences: np.ndarray) -> float:
    """Wilcoxon's signed-rank p-value over all signs; zeros are dropped and ties share their rank."""
    found = differences[np.abs(differences) > 1e-12]
    return sign_flip_p(np.sign(found) * rankdata(np.abs(found).round(12)))


def _paired(first: Sequence[float | None], second: Sequence[float | None], unit: str) -> tuple[np.ndarray, int]:
    """The figures that both have, [2, F], and how many pairs are left out."""
    if len(first) != len(second):
        raise DataError(
            f"{len(first)} and {len(second)} {unit}; a paired comparison needs the same {unit} of both models"
        )
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2).T, len(first) - len(pairs)
