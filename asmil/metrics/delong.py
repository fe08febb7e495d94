"""AUC with DeLong's variance: intervals, paired and unpaired differences, rows clustered in patients.

Shapes: M models, S seeds, B rows (bags), C classes, P positives, N negatives, K patients.

Placements come from midranks, which takes O(B log B) instead of all P x N pairs (Sun & Xu, IEEE Signal Processing
Letters 21, 2014, 1389-1393). Where a patient has several rows the placements are summed over the patient before they
are squared (Obuchowski, Biometrics 53, 1997, 567-578); with one row per patient this is exactly DeLong, DeLong &
Clarke-Pearson (Biometrics 44, 1988, 837-845).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from asmil.errors import DataError
from asmil.metrics.differences import MIN_PATIENTS, Difference
from asmil.metrics.values import Metric

__all__ = ["auc_covariance", "auc_with_interval", "compare_auc", "compare_auc_per_class", "compare_unpaired_auc"]

Z_95 = float(norm.ppf(0.975))


def auc_covariance(
    scores_MB: np.ndarray, positive_B: np.ndarray, *, groups: Sequence[Hashable] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUC of each of M scores of the same rows, and the covariance matrix of these AUCs.

    Args:
        scores_MB: Scores that grow with the chance of being positive.
        positive_B: Which rows are positive.
        groups: Patient of each row; every row is a patient of its own without it.

    Returns:
        The M areas and their M x M covariance. The covariance is NaN if either class has fewer than two patients.

    Raises:
        DataError: Shapes that do not fit, non-finite scores, or only one class.

    Example:
        >>> area, covariance = auc_covariance(np.array([[0.1, 0.4, 0.35, 0.8]]), np.array([0, 0, 1, 1]))
        >>> area.item(), round(covariance.item(), 6)
        (0.75, 0.125)
    """
    scores_MB, positive_B, patient_B = _checked(scores_MB, positive_B, groups)
    num_positive, num_negative = int(positive_B.sum()), int((~positive_B).sum())
    if num_positive == 0 or num_negative == 0:
        raise DataError(
            f"an AUC needs positive and negative rows, got {num_positive} and {num_negative}; leave this class out"
        )
    rank_MB = rankdata(scores_MB, axis=1)
    within_MP = rankdata(scores_MB[:, positive_B], axis=1)
    within_MN = rankdata(scores_MB[:, ~positive_B], axis=1)
    placement_MP = (rank_MB[:, positive_B] - within_MP) / num_negative
    placement_MN = 1 - (rank_MB[:, ~positive_B] - within_MN) / num_positive
    area_M = placement_MP.mean(axis=1)
    positives = _per_patient(placement_MP - area_M[:, None], patient_B[positive_B], patient_B.max() + 1)
    negatives = _per_patient(placement_MN - area_M[:, None], patient_B[~positive_B], patient_B.max() + 1)
    with_positive, with_negative = (len(np.unique(patient_B[rows])) for rows in (positive_B, ~positive_B))
    if min(with_positive, with_negative) < 2:
        return area_M, np.full((len(area_M), len(area_M)), np.nan)
    shared_MM = positives @ negatives.T
    num_patients = len(np.unique(patient_B))
    covariance_MM = (
        _unbiased(with_positive) * positives @ positives.T / num_positive**2
        + _unbiased(with_negative) * negatives @ negatives.T / num_negative**2
        + _unbiased(num_patients) * (shared_MM + shared_MM.T) / (num_positive * num_negative)
    )
    return area_M, covariance_MM


def auc_with_interval(
    score_B: np.ndarray, positive_B: np.ndarray, *, groups: Sequence[Hashable] | None = None
) -> Metric:
    """AUC of one score with DeLong's 95 % interval on the logit scale, which never leaves 0 to 1.

    Args:
        score_B: Score that grows with the chance of being positive.
        positive_B: Which rows are positive.
        groups: Patient of each row; every row is a patient of its own without it.

    Returns:
        The area. Null with reason `one_class`; without an interval for `too_few_patients` in a class, and for
        `no_spread` where all placements are equal, as under perfect separation: that says nothing about the error.

    Raises:
        DataError: Shapes that do not fit or non-finite scores.
    """
    scores_MB, positive_B, patient_B = _checked(np.atleast_2d(score_B), positive_B, groups)
    if positive_B.all() or not positive_B.any():
        return Metric(None, "one_class" if len(positive_B) else "too_few")
    area_M, covariance_MM = auc_covariance(scores_MB, positive_B, groups=groups)
    area, variance = float(area_M[0]), float(covariance_MM[0, 0])
    if _smaller_class(positive_B, patient_B) < MIN_PATIENTS:
        return Metric(area, "too_few_patients")
    if variance <= _rounding(scores_MB) or not 0 < area < 1:
        return Metric(area, "no_spread")
    half = Z_95 * math.sqrt(variance) / (area * (1 - area))
    return Metric(area, interval=(float(expit(logit(area) - half)), float(expit(logit(area) + half))))


def compare_auc(
    first_SB: np.ndarray,
    second_SB: np.ndarray,
    positive_B: np.ndarray,
    *,
    groups: Sequence[Hashable] | None = None,
    folds: Sequence[Hashable] | None = None,
    metric: str = "auc",
) -> Difference:
    """Paired difference of two AUCs on the same rows: DeLong's z-test and its interval.

    Several seeds give the difference of their mean AUC, whose variance follows from the covariance of all of them;
    several folds the mean of the folds' differences, whose variances add, because folds share no patient.

    Args:
        first_SB: Score of the first model under each seed; [B] for one seed.
        second_SB: Scores of the second model for the same rows, with as many seeds.
        positive_B: Which rows are positive.
        groups: Patient of each row; every row is a patient of its own without it.
        folds: Fold of each row. Scores of different folds are not ranked together; all rows are in one without it.
        metric: Name of the result.

    Returns:
        The difference. `identical` with p = 1 where both order the rows in the same way; without interval and p
        for `too_few_patients` in a class or `no_spread`; all null with reason `one_class`. Folds of one class are
        left out, with that reason.

    Raises:
        DataError: Shapes that do not fit, non-finite scores, or a patient in two folds.
    """
    first_SB, second_SB = (np.atleast_2d(np.asarray(scores, dtype=np.float64)) for scores in (first_SB, second_SB))
    if first_SB.shape != second_SB.shape:
        raise DataError(
            f"the scores of the two models have shapes {first_SB.shape} and {second_SB.shape}; a paired comparison "
            f"needs both models' scores of the same rows"
        )
    scores_MB, positive_B, patient_B = _checked(np.concatenate([first_SB, second_SB]), positive_B, groups)
    kept, reason = _folds_of_two_classes(positive_B, patient_B, folds)
    rows_B = np.concatenate(kept) if kept else np.arange(len(positive_B))
    num_patients = len(np.unique(patient_B[rows_B]))
    method = "DeLong, paired" if num_patients == len(rows_B) else "DeLong, paired, clustered (Obuchowski)"
    if not kept:
        return Difference(metric, None, None, None, method, "patients", num_patients, reason=reason)
    num_seeds = len(first_SB)
    contrast_M = np.repeat([1.0, -1.0], num_seeds) / num_seeds
    found = [auc_covariance(scores_MB[:, rows], positive_B[rows], groups=patient_B[rows].tolist()) for rows in kept]
    variance = sum(float(contrast_M @ covariance_MM @ contrast_M) for _, covariance_MM in found) / len(kept) ** 2
    area_M = np.mean([area_M for area_M, _ in found], axis=0)
    smaller = [_smaller_class(positive_B[rows], patient_B[rows]) for rows in kept]
    is_same = all(
        np.array_equal(rankdata(first_SB[:, rows], axis=1), rankdata(second_SB[:, rows], axis=1)) for rows in kept
    )
    result = _difference(
        metric, area_M.reshape(2, num_seeds).mean(axis=1), variance, method, num_patients,
        smaller_class=0 if min(smaller) < 2 else 1 + sum(count - 1 for count in smaller),
        is_same=is_same, rounding=_rounding(scores_MB),
    )  # fmt: skip
    return replace(result, reason=result.reason or reason)


def _folds_of_two_classes(
    positive_B: np.ndarray, patient_B: np.ndarray, folds: Sequence[Hashable] | None
) -> tuple[list[np.ndarray], str | None]:
    """Rows of each fold that has both classes, and why others are missing."""
    rows_of: dict[Hashable, list[int]] = {}
    for row, fold in enumerate([None] * len(positive_B) if folds is None else folds):
        rows_of.setdefault(fold, []).append(row)
    listed = [np.array(rows) for rows in rows_of.values()]
    if sum(len(np.unique(patient_B[rows])) for rows in listed) > len(np.unique(patient_B)):
        raise DataError(
            "a patient lies in two folds, whose variances then do not add; compare the folds' areas by a bootstrap "
            "that draws a patient with all rows"
        )
    kept = [rows for rows in listed if positive_B[rows].any() and not positive_B[rows].all()]
    reason = "too_few" if not listed else "one_class" if len(kept) < len(listed) else None
    return kept, reason


def compare_unpaired_auc(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    *,
    groups: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    metric: str = "auc",
) -> Difference:
    """Difference of two AUCs on different patients: the variances add.

    Args:
        first: Scores of the first model, and which of its rows are positive.
        second: The same of the second model, whose patients are others.
        groups: Patient of each row of both; every row is a patient of its own without it.
        metric: Name of the result.

    Returns:
        The difference, with the reasons of `compare_auc` except `identical`.

    Raises:
        DataError: Shapes that do not fit, non-finite scores, or a patient who occurs in both.
    """
    named: tuple[Sequence[Hashable] | None, Sequence[Hashable] | None] = groups or (None, None)
    if groups is not None and (shared := set(groups[0]) & set(groups[1])):
        raise DataError(
            f"{len(shared)} patients occur in both parts (such as {sorted(map(str, shared))[0]!r}); an unpaired "
            f"comparison needs different patients, so compare the two models on the patients they share, in pairs"
        )
    areas, variance, num_patients, smaller, rounding = [], 0.0, 0, [], 0.0
    for (scores, positives), patients in zip((first, second), named, strict=True):
        scores_MB, positive_B, patient_B = _checked(np.atleast_2d(scores), positives, patients)
        num_patients += len(np.unique(patient_B))
        if positive_B.all() or not positive_B.any():
            areas.append(math.nan)
            continue
        area_M, covariance_MM = auc_covariance(scores_MB, positive_B, groups=patients)
        areas.append(float(area_M[0]))
        variance += float(covariance_MM[0, 0])
        smaller.append(_smaller_class(positive_B, patient_B))
        rounding = max(rounding, _rounding(scores_MB))
    if len(smaller) < 2:
        one, other = (None if math.isnan(area) else area for area in areas)
        return Difference(metric, one, other, None, "DeLong, unpaired", "patients", num_patients, reason="one_class")
    return _difference(
        metric, np.array(areas), variance, "DeLong, unpaired", num_patients,
        smaller_class=min(smaller), is_same=False, rounding=rounding,
    )  # fmt: skip


def compare_auc_per_class(
    first_SBC: np.ndarray,
    second_SBC: np.ndarray,
    labels_B: np.ndarray,
    class_names: Sequence[str],
    *,
    groups: Sequence[Hashable] | None = None,
    folds: Sequence[Hashable] | None = None,
) -> dict[str, Difference]:
    """Paired AUC differences of each class against the rest; of class 1 alone, as `auc`, when there are two classes.

    Args:
        first_SBC: Class scores of the first model under each seed; [B, C] for one seed.
        second_SBC: Class scores of the second model for the same rows, with as many seeds.
        labels_B: Index of the true class.
        class_names: The C classes, in the order of the columns.
        groups: Patient of each row; every row is a patient of its own without it.
        folds: Fold of each row, as for `compare_auc`.

    Returns:
        `auc`, or `auc[NAME]` of each class in order. They are not corrected for the number of classes.

    Raises:
        DataError: Shapes that do not fit or non-finite scores.
    """
    first_SBC, second_SBC, labels_B = np.asarray(first_SBC), np.asarray(second_SBC), np.asarray(labels_B)
    for scores_SBC in (first_SBC, second_SBC):
        if scores_SBC.shape[-2:] != (len(labels_B), len(class_names)):
            raise DataError(
                f"class scores have shape {scores_SBC.shape}; {len(labels_B)} labels and {len(class_names)} classes "
                f"need shape {(len(labels_B), len(class_names))}"
            )
    ranked = {1: "auc"} if len(class_names) == 2 else {c: f"auc[{name}]" for c, name in enumerate(class_names)}
    return {
        name: compare_auc(first_SBC[..., c], second_SBC[..., c], labels_B == c, groups=groups, folds=folds, metric=name)
        for c, name in ranked.items()
    }


def _difference(
    metric: str,
    area_M: np.ndarray,
    variance: float,
    method: str,
    num_patients: int,
    *,
    smaller_class: int,
    is_same: bool,
    rounding: float,
) -> Difference:
    first, second = map(float, area_M)
    value, interval, p_value, reason = first - second, None, None, None
    if is_same:
        p_value, reason = 1.0, "identical"
    elif smaller_class < MIN_PATIENTS:
        reason = "too_few_patients"
    elif variance <= rounding:
        reason = "no_spread"
    else:
        error = math.sqrt(variance)
        interval = (max(value - Z_95 * error, -1.0), min(value + Z_95 * error, 1.0))
        p_value = float(2 * norm.sf(abs(value) / error))
    return Difference(
        metric, first, second, value, method, "patients", num_patients,
        interval=interval, p_value=p_value, reason=reason,
    )  # fmt: skip


def _per_patient(values_MB: np.ndarray, patient_B: np.ndarray, num_patients: int) -> np.ndarray:
    """Sums over each patient's rows, [M, K]."""
    return np.stack([np.bincount(patient_B, weights=values_B, minlength=num_patients) for values_B in values_MB])


def _unbiased(count: int) -> float:
    return count / (count - 1)


def _smaller_class(positive_B: np.ndarray, patient_B: np.ndarray) -> int:
    return min(len(np.unique(patient_B[positive_B])), len(np.unique(patient_B[~positive_B])))


def _rounding(scores_MB: np.ndarray) -> float:
    """A variance at or below this is 0 up to rounding: placements are means of at most B terms of size 1."""
    return float((scores_MB.shape[1] * np.finfo(np.float64).eps) ** 2)


def _checked(
    scores_MB: np.ndarray, positive_B: np.ndarray, groups: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores_MB, positive_B = np.asarray(scores_MB, dtype=np.float64), np.asarray(positive_B)
    num_rows = len(positive_B)
    if scores_MB.ndim != 2 or positive_B.ndim != 1 or scores_MB.shape[1] != num_rows:
        raise DataError(f"scores have shape {scores_MB.shape[1:]}; {num_rows} class marks need one score per row")
    if groups is not None and len(groups) != num_rows:
        raise DataError(f"{len(groups)} groups but {num_rows} class marks; expected the patient of each row")
    if not np.isfinite(scores_MB).all():
        rows = np.flatnonzero(~np.isfinite(scores_MB).all(axis=0))
        raise DataError(f"scores are not finite in {len(rows)} of {num_rows} rows (first: row {rows[0]}); repair them")
    index: dict[Hashable, int] = {}
    patients = range(num_rows) if groups is None else groups
    patient_B = np.array([index.setdefault(patient, len(index)) for patient in patients], dtype=np.int64)
    return scores_MB, positive_B.astype(bool), patient_B
