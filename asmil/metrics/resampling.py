"""Resampling of whole patients by weights, and swaps of two models' predictions: thousands of resamples at once.

A bootstrap resample is a row of weights, the number of times each row was drawn, so a statistic is measured on all
resamples by matrix products; one that takes row indices gets each index as often as its weight says. This file knows
how to resample, not what to compare.

Shapes: R resamples, B rows (bags), K patients.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from asmil.errors import DataError
from asmil.metrics.differences import MIN_PATIENTS
from asmil.metrics.weighted import WeightedStatistic

__all__ = [
    "Bootstrap",
    "Permutation",
    "bootstrap",
    "paired_permutation",
    "sign_flip_p",
]

MAX_UNDEFINED = 0.05
"""Largest share of resamples without a value: more than the two tails hold, and what is lost sets the limits."""

CELLS_AT_ONCE = 2**22
"""Entries of the weights or predictions held in memory at a time."""

ROUNDING = 1e-12
"""Statistics closer than this are equal; they are sums of at most some thousand shares."""


@dataclass(frozen=True)
class Bootstrap:
    """What a bootstrap of whole patients says about a statistic.

    Attributes:
        value: The statistic of the rows themselves; None where it is undefined.
        interval: The 2.5 % and 97.5 % quantiles over the resamples.
        p_value: Two-sided p-value of the statistic being 0: twice the smaller share of resamples on one side of 0,
            the rows themselves counted on both. It is below 0.05 when the interval excludes 0, up to 1 / R.
        resamples: How many resamples were drawn.
        undefined: How many of them had no value, as of one class; they were left out, not redrawn.
        num_patients: How many patients were drawn in each.
        reason: Why there is no interval: `undefined`, `too_few_patients`, `undefined_resamples` (more than 5 %), or
            `no_spread` (all resamples agree, which bounds no error).
    """

    value: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    resamples: int
    undefined: int
    num_patients: int
    reason: str | None = None


@dataclass(frozen=True)
class Permutation:
    """The p-value of a permutation test.

    Attributes:
        value: The difference that was observed; None where it is undefined.
        p_value: Two-sided p-value, or None.
        permutations: How many permutations were measured.
        is_exact: Whether these were all there are.
        reason: `undefined` where the statistic has no value for the observed rows or for a permutation.
    """

    value: float | None
    p_value: float | None
    permutations: int
    is_exact: bool
    reason: str | None = None


def bootstrap(
    statistic: WeightedStatistic,
    groups: Sequence[Hashable],
    *,
    strata: Sequence[Hashable] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Bootstrap:
    """Percentile bootstrap of whole patients (Efron & Tibshirani 1993, chapter 13), drawn within strata.

    Percentile limits are used because those beside each single result are percentile limits too.

    Args:
        statistic: Statistic of weighted rows.
        groups: Patient of each row.
        strata: Stratum (fold) of each row; patients are drawn within theirs.
        resamples: Number of resamples.
        seed: Seed of the draws; equal seeds give equal results.

    Returns:
        The interval and p-value, or the reason why there is none.

    Raises:
        DataError: A patient lies in two strata, or the numbers of rows differ.

    Example:
        >>> rows = np.arange(20.0)
        >>> found = bootstrap(lambda weights_RB: weights_RB @ rows / weights_RB.sum(axis=1), range(20))
        >>> found.value, [round(limit) for limit in found.interval]
        (9.5, [7, 12])
    """
    patient_B, members = _patients(groups, strata)
    num_patients = sum(len(patients) for patients in members)
    value = float(statistic(np.ones((1, len(groups))))[0]) if len(groups) else float("nan")
    if np.isnan(value):
        return Bootstrap(None, None, None, 0, 0, num_patients, "undefined")
    if num_patients - len(members) < MIN_PATIENTS - 1:
        return Bootstrap(value, None, None, 0, 0, num_patients, "too_few_patients")
    generator = np.random.default_rng(seed)
    values_R = np.concatenate(
        [
            statistic(_drawn(members, size, generator)[:, patient_B])
            for size in _chunks(resamples, max(len(groups), num_patients))
        ]
    )
    defined = values_R[~np.isnan(values_R)]
    undefined = resamples - len(defined)
    if undefined > MAX_UNDEFINED * resamples:
        return Bootstrap(value, None, None, resamples, undefined, num_patients, "undefined_resamples")
    if np.ptp(defined) <= ROUNDING:
        return Bootstrap(value, None, None, resamples, undefined, num_patients, "no_spread")
    low, high = np.quantile(defined, (0.025, 0.975)).tolist()
    one_side = min((defined <= ROUNDING).sum(), (defined >= -ROUNDING).sum())
    p_value = min(1.0, float(2 * (one_side + 1) / (len(defined) + 1)))
    return Bootstrap(value, (low, high), p_value, resamples, undefined, num_patients)


def paired_permutation(
    statistic: Callable[[np.ndarray], np.ndarray],
    first_B: np.ndarray,
    second_B: np.ndarray,
    groups: Sequence[Hashable],
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> Permutation:
    """Test that two models are exchangeable: the predictions of both are swapped, patient by patient.

    Patients whose predictions agree in all rows change nothing when swapped, so only the others count. All swaps are
    measured if there are no more than `permutations`; otherwise as many are drawn, and p = (b + 1) / (m + 1) with b of
    m at least as far from 0 as observed (Phipson & Smyth 2010), which is never 0.

    Args:
        statistic: Maps predictions [R, B, ...] to R values. Labels stay with their rows.
        first_B: Predictions of the first model, [B, ...]. Both models' must have one scale: classes, probabilities.
        second_B: Predictions of the second model for the same rows.
        groups: Patient of each row.
        permutations: Largest number of permutations.
        seed: Seed of the draws.

    Returns:
        The p-value; 1 if all predictions agree.

    Raises:
        DataError: Shapes that differ.
    """
    first_B, second_B = np.asarray(first_B), np.asarray(second_B)
    if first_B.shape != second_B.shape or len(first_B) != len(groups):
        raise DataError(
            f"predictions have shapes {first_B.shape} and {second_B.shape} for {len(groups)} groups; a paired test "
            f"needs both models' predictions of the same rows"
        )
    patient_B, _ = _patients(groups, None)
    observed = float((statistic(first_B[None]) - statistic(second_B[None]))[0])
    if np.isnan(observed):
        return Permutation(None, None, 0, False, "undefined")
    changed_B = (first_B != second_B).any(axis=tuple(range(1, first_B.ndim)))
    patients, swapped_B = np.unique(patient_B[changed_B], return_inverse=True)
    num_changed = len(patients)
    is_exact = num_changed < 63 and 2**num_changed <= permutations
    total = 2**num_changed if is_exact else permutations
    generator = np.random.default_rng(seed)
    at_least, start = 0, 0
    trailing = (1,) * (first_B.ndim - 1)
    for size in _chunks(total, max(first_B.size, 1)):
        swap_RK = _bits(start, size, num_changed) if is_exact else generator.random((size, num_changed)) < 0.5
        swap_RB = np.zeros((size, len(first_B)), dtype=bool)
        swap_RB[:, changed_B] = swap_RK[:, swapped_B]
        mask = swap_RB.reshape(*swap_RB.shape, *trailing)
        values_R = statistic(np.where(mask, second_B, first_B)) - statistic(np.where(mask, first_B, second_B))
        if np.isnan(values_R).any():
            return Permutation(observed, None, start, False, "undefined")
        at_least += int((np.abs(values_R) >= abs(observed) - ROUNDING).sum())
        start += size
    p_value = at_least / total if is_exact else (at_least + 1) / (total + 1)
    return Permutation(observed, p_value, total, is_exact)


def sign_flip_p(differences: np.ndarray, *, permutations: int = 2**16, seed: int = 0) -> float:
    """Two-sided p-value of the mean of paired differences being 0, over the signs they could have had.

    Args:
        differences: One difference per unit.
        permutations: Sign patterns measured at most; all of them if there are no more.
        seed: Seed of the patterns drawn otherwise.

    Returns:
        The share of patterns whose mean is at least as far from 0 as observed; 1 without differences.

    Example:
        >>> sign_flip_p(np.array([1.0, 2.0, 3.0, 4.0]))
        0.125
    """
    values = np.asarray(differences, dtype=np.float64)
    scale = max(float(np.abs(values).max(initial=0.0)), 1e-300)
    found = paired_permutation(
        lambda signed_RB: signed_RB.sum(axis=1) / (2 * scale),
        values, -values, range(len(values)), permutations=permutations, seed=seed,
    )  # fmt: skip
    return 1.0 if found.p_value is None else found.p_value


def _patients(groups: Sequence[Hashable], strata: Sequence[Hashable] | None) -> tuple[np.ndarray, list[list[int]]]:
    """Index of each row's patient, and the patients of each stratum."""
    named = [None] * len(groups) if strata is None else strata
    if len(groups) != len(named):
        raise DataError(f"{len(groups)} groups but {len(named)} strata; expected one of each per row")
    index: dict[Hashable, int] = {}
    stratum_of: dict[Hashable, Hashable] = {}
    members: dict[Hashable, list[int]] = {}
    for group, stratum in zip(groups, named, strict=True):
        if group not in index:
            index[group] = len(index)
            stratum_of[group] = stratum
            members.setdefault(stratum, []).append(index[group])
        elif stratum_of[group] != stratum:
            raise DataError(
                f"group {group!r} lies in strata {stratum_of[group]!r} and {stratum!r}; "
                f"resampling within strata needs every group in one, so resample without strata"
            )
    return np.array([index[group] for group in groups], dtype=np.int64), list(members.values())


def _drawn(members: list[list[int]], size: int, generator: np.random.Generator) -> np.ndarray:
    """How often each patient is drawn in each of `size` resamples, [R, K]."""
    counts_RK = np.empty((size, sum(len(patients) for patients in members)))
    for patients in members:
        counts_RK[:, patients] = generator.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), size)
    return counts_RK


def _bits(start: int, size: int, width: int) -> np.ndarray:
    """The binary digits of `size` numbers from `start` on, [R, K]."""
    return (np.arange(start, start + size, dtype=np.int64)[:, None] >> np.arange(width)) & 1 > 0


def _chunks(total: int, row_size: int) -> Iterator[int]:
    at_once = max(1, CELLS_AT_ONCE // row_size)
    for start in range(0, total, at_once):
        yield min(at_once, total - start)
