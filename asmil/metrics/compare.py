"""Two models compared on the same bags, folds or seeds: every difference with an interval, a p-value and its reasons.

It takes predictions and figures, not run directories. A difference is always first minus second, its p-value is
two-sided, and `differences.with_holm` corrects it over the models that were compared. Patients answer how a difference
would change with other patients of the same kind, seeds how it would change with another training run; neither answers
for the other, so both are results of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student_t

from asmil.errors import DataError
from asmil.metrics.classification import classification_metrics
from asmil.metrics.delong import compare_auc_per_class
from asmil.metrics.differences import Difference
from asmil.metrics.resampling import Bootstrap, bootstrap, paired_permutation, sign_flip_p
from asmil.metrics.survival import TIED_RISK, harrell_c, null_c_spread
from asmil.metrics.values import Metric
from asmil.metrics.weighted import WeightedStatistic, class_statistics, concordance, confusion_statistics

__all__ = [
    "ClassPredictions",
    "RiskPredictions",
    "SeedSpread",
    "compare_c",
    "compare_classes",
    "compare_folds",
    "compare_seeds",
    "mean_null_c_spread",
    "seed_spread",
]

MIN_FOLDS = 3
"""Fewest paired folds or seeds whose spread gives a t-test."""


@dataclass(frozen=True)
class ClassPredictions:
    """One model's class probabilities for a set of bags.

    Attributes:
        bag_ids: Name of each bag.
        groups: Patient of each bag.
        labels_B: Index of the true class.
        probabilities_BC: Probability of each class.
        class_names: The C classes, in the order of the columns.
    """

    bag_ids: Sequence[str]
    groups: Sequence[Hashable]
    labels_B: np.ndarray
    probabilities_BC: np.ndarray
    class_names: Sequence[str]


@dataclass(frozen=True)
class RiskPredictions:
    """One model's risks for the test parts of one or several folds.

    Attributes:
        bag_ids: Name of each bag.
        groups: Patient of each bag.
        folds: Fold whose model gave the risk of each bag. Risks are compared within a fold only.
        time_B: Follow-up times, any unit.
        event_B: 1 where the event was observed, 0 where censored.
        risk_B: Predicted risks.
    """

    bag_ids: Sequence[str]
    groups: Sequence[Hashable]
    folds: Sequence[Hashable]
    time_B: np.ndarray
    event_B: np.ndarray
    risk_B: np.ndarray


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


def compare_classes(
    first: ClassPredictions, second: ClassPredictions, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Difference]:
    """Differences of two classifiers on the same bags of one test part.

    Probabilities of different folds come from different models and are not ranked together: give the figures of each
    fold to `compare_folds` instead.

    Accuracy, macro F1 and balanced accuracy: bootstrap interval over patients, p of the permutation that swaps the
    predicted classes of a patient. Macro AUC of three or more classes: interval and p of the bootstrap. AUC of each
    class against the rest, or of class 1 when there are two: DeLong.

    Args:
        first: Predictions of the first model.
        second: Predictions of the second model for the same bags in the same order.
        resamples: Bootstrap resamples, and permutations at most.
        seed: Seed of the draws.

    Returns:
        `accuracy`, `macro_f1`, `balanced_accuracy`, `macro_auc` (not when binary), then `auc` or `auc[NAME]`.

    Raises:
        DataError: The bags, labels or patients of the two differ, or predictions are unusable.
    """
    _require_same(first, second, ("bag_ids", "groups", "labels_B", "class_names"))
    models = (first, second)
    figures = [
        classification_metrics(
            np.asarray(model.probabilities_BC), np.asarray(model.labels_B), model.class_names, bag_ids=model.bag_ids
        )
        for model in models
    ]
    labels_B = np.asarray(first.labels_B, dtype=np.int64)
    scores = [np.asarray(model.probabilities_BC, dtype=np.float64) for model in models]
    weighted = [class_statistics(scores_BC, labels_B) for scores_BC in scores]
    swapped = confusion_statistics(labels_B, len(first.class_names))
    names = ["accuracy", "macro_f1", "balanced_accuracy"] + ["macro_auc"] * (len(first.class_names) > 2)
    found = {}
    for name in names:
        resampled = bootstrap(
            _minus(weighted[0][name], weighted[1][name]), first.groups, resamples=resamples, seed=seed
        )
        difference = _of_bootstrap(name, figures[0][name], figures[1][name], resampled)
        if name in swapped and difference.value is not None:
            test = paired_permutation(
                swapped[name], scores[0].argmax(axis=1), scores[1].argmax(axis=1), first.groups,
                permutations=resamples, seed=seed,
            )  # fmt: skip
            kind = "exact" if test.is_exact else "Monte Carlo"
            method = f"bootstrap over patients; p: {kind} permutation within patients"
            difference = replace(difference, p_value=test.p_value, method=method)
        found[name] = difference
    return found | compare_auc_per_class(scores[0], scores[1], labels_B, first.class_names, groups=first.groups)


def compare_c(first: RiskPredictions, second: RiskPredictions, *, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Difference of Harrell's C on the same patients, bootstrapped over patients.

    Several folds give the difference of their mean C; patients are drawn within folds, and the models stay as they
    were trained, so the interval holds for these models and not for new trainings (`compare_folds`, `compare_seeds`).

    Args:
        first: Risks of the first model.
        second: Risks of the second model for the same bags in the same order.
        resamples: Bootstrap resamples.
        seed: Seed of the draws.

    Returns:
        The difference of `c_index` over the patients of the folds where C is defined; the reason says if and why
        some are not (`no_events` and the like), or that a model's risks are all equal (`collapsed`).

    Raises:
        DataError: The bags, outcomes, patients or folds of the two differ, or risks are not finite.
    """
    _require_same(first, second, ("bag_ids", "groups", "folds", "time_B", "event_B"))
    time_B, event_B = np.asarray(first.time_B, dtype=np.float64), np.asarray(first.event_B)
    figures, statistics, reasons = [], [], []
    for fold in dict.fromkeys(first.folds):
        rows = np.flatnonzero([named == fold for named in first.folds])
        outcomes = time_B[rows], event_B[rows]
        names = [first.bag_ids[row] for row in rows.tolist()]
        risks = [np.asarray(model.risk_B, dtype=np.float64)[rows] for model in (first, second)]
        ours, theirs = (harrell_c(*outcomes, risk_B, bag_ids=names) for risk_B in risks)
        reasons += [metric.reason for metric in (ours, theirs) if metric.reason]
        if ours.value is None or theirs.value is None:
            continue
        figures.append((ours.value, theirs.value))
        pair = _minus(*(concordance(*outcomes, risk_B, tied=TIED_RISK) for risk_B in risks))
        statistics.append((rows, pair))
    reason = reasons[0] if reasons else None
    if not statistics:
        reason = reason or "too_few"
        return Difference("c_index", None, None, None, "bootstrap over patients", "patients", 0, reason=reason)
    kept = np.sort(np.concatenate([rows for rows, _ in statistics])).tolist()
    positions = [(np.searchsorted(kept, rows), statistic) for rows, statistic in statistics]
    resampled = bootstrap(
        lambda weights_RB: np.asarray(np.mean([statistic(weights_RB[:, at]) for at, statistic in positions], axis=0)),
        [first.groups[row] for row in kept],
        strata=[first.folds[row] for row in kept],
        resamples=resamples,
        seed=seed,
    )
    means = np.mean(figures, axis=0).tolist()
    return _of_bootstrap("c_index", Metric(means[0], reason), Metric(means[1], reason), resampled)


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


def mean_null_c_spread(outcomes: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """Standard deviation of the mean C over folds for a random score: the noise a difference has to rise above.

    Args:
        outcomes: Times and event marks of each fold's test part; folds share no patient.

    Returns:
        The standard deviation over folds with comparable pairs, or None if none has any.
    """
    spreads = [sd for sd in (null_c_spread(*outcome) for outcome in outcomes) if sd is not None]
    return float(np.sqrt(np.square(spreads).sum()) / len(spreads)) if spreads else None


def _of_bootstrap(name: str, first: Metric, second: Metric, resampled: Bootstrap) -> Difference:
    value = None if first.value is None or second.value is None else first.value - second.value
    method, patients = "bootstrap over patients", resampled.num_patients
    warning = first.reason or second.reason
    if value is None:
        return Difference(name, first.value, second.value, None, method, "patients", patients, reason=warning)
    is_identical = resampled.reason == "no_spread" and abs(value) < 1e-12
    return Difference(
        name, first.value, second.value, value, method, "patients", patients,
        interval=resampled.interval,
        p_value=1.0 if is_identical else resampled.p_value,
        left_out=resampled.undefined,
        reason="identical" if is_identical else resampled.reason or warning,
    )  # fmt: skip


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


def _minus(first: WeightedStatistic, second: WeightedStatistic) -> WeightedStatistic:
    return lambda weights_RB: first(weights_RB) - second(weights_RB)


def _require_same(first: object, second: object, fields: Sequence[str]) -> None:
    for field in fields:
        one, other = list(getattr(first, field)), list(getattr(second, field))
        if len(one) != len(other):
            raise DataError(f"the two models have {len(one)} and {len(other)} {field}; compare them on the same bags")
        different = [row for row, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
        if different:
            row = different[0]
            raise DataError(
                f"{field} differ in {len(different)} of {len(one)} places (first: row {row}, {one[row]!r} and "
                f"{other[row]!r}); a paired comparison needs the same bags with the same labels in the same order"
            )
