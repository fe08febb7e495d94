"""Two models compared on the same bags: every difference with an interval, a p-value and its reasons.

It takes predictions, not run directories. A difference is always first minus second, its p-value is two-sided, and
`differences.with_holm` corrects it over the models that were compared. Patients answer how a difference would change
with other patients of the same kind, for the models as they were trained; how it would change with other trainings is
the question of `trainings`. Neither answers for the other, so both are results of their own.

Scores of different folds come from different models and are never ranked or counted together: a figure is formed on
each fold, averaged over the seeds, and then over the folds, as `asmil.run` reports it.

Shapes: S seeds, B rows (bags of all folds), C classes, R resamples, N rows times seeds.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from asmil.errors import DataError
from asmil.metrics.classification import classification_metrics
from asmil.metrics.delong import compare_auc_per_class
from asmil.metrics.differences import Difference
from asmil.metrics.resampling import Bootstrap, bootstrap, paired_permutation
from asmil.metrics.survival import TIED_RISK, harrell_c
from asmil.metrics.values import Metric
from asmil.metrics.weighted import WeightedStatistic, class_statistics, concordance, confusion_statistics

__all__ = [
    "ClassPredictions",
    "Draws",
    "PairedFold",
    "RiskPredictions",
    "compare_c",
    "compare_classes",
    "compare_statistic",
    "difference_of_means",
    "rows_of_folds",
]

SWAPPED = ("accuracy", "macro_f1", "balanced_accuracy")
"""Metrics of predicted classes, which two models can exchange."""


@dataclass(frozen=True)
class ClassPredictions:
    """One model's class probabilities for the test parts of one or several folds.

    Attributes:
        bag_ids: Name of each bag.
        groups: Patient of each bag.
        labels_B: Index of the true class.
        probabilities_SBC: Probability of each class under each seed; [B, C] for one seed.
        class_names: The C classes, in the order of the columns.
        folds: Fold whose model predicted each bag; all in one without it.
        predicted_SB: Index of the class that was answered under each seed, as by a threshold; the most probable one
            without it.
    """

    bag_ids: Sequence[str]
    groups: Sequence[Hashable]
    labels_B: np.ndarray
    probabilities_SBC: np.ndarray
    class_names: Sequence[str]
    folds: Sequence[Hashable] | None = None
    predicted_SB: np.ndarray | None = None


@dataclass(frozen=True)
class RiskPredictions:
    """One model's risks for the test parts of one or several folds.

    Attributes:
        bag_ids: Name of each bag.
        groups: Patient of each bag.
        folds: Fold whose model gave the risk of each bag. Risks are compared within a fold only.
        time_B: Follow-up times, any unit.
        event_B: 1 where the event was observed, 0 where censored.
        risk_SB: Predicted risks under each seed; [B] for one seed.
    """

    bag_ids: Sequence[str]
    groups: Sequence[Hashable]
    folds: Sequence[Hashable]
    time_B: np.ndarray
    event_B: np.ndarray
    risk_SB: np.ndarray


@dataclass(frozen=True)
class PairedFold:
    """One metric of two models on one fold.

    Attributes:
        rows: The fold's rows among all.
        figures: The metric of the first and of the second model.
        statistic: Their difference for weighted rows of the fold.
    """

    rows: np.ndarray
    figures: tuple[Metric, Metric]
    statistic: WeightedStatistic


@dataclass(frozen=True)
class Draws:
    """How patients are drawn.

    Attributes:
        groups: Patient of each row.
        folds: Fold of each row.
        pooled: Patients occur in several folds, as in repeats, and are drawn with all their rows; else within theirs.
        resamples: Bootstrap resamples, and permutations at most.
        seed: Seed of the draws.
    """

    groups: Sequence[Hashable]
    folds: Sequence[Hashable]
    pooled: bool = False
    resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class _Answers:
    """What one model says: probabilities and answered classes, under each seed."""

    probabilities_SBC: np.ndarray
    predicted_SB: np.ndarray


def compare_classes(
    first: ClassPredictions, second: ClassPredictions, *, pooled: bool = False, resamples: int = 10_000, seed: int = 0
) -> dict[str, Difference]:
    """Differences of two classifiers on the same bags, in the mean over seeds and folds.

    Accuracy, macro F1 and balanced accuracy: bootstrap interval over patients, p of the permutation that swaps the
    predicted classes of a patient, under all seeds and in all folds at once. Macro AUC of three or more classes:
    interval and p of the bootstrap. AUC of each class against the rest, or of class 1 when there are two: DeLong.

    Args:
        first: Predictions of the first model.
        second: Predictions of the second model for the same bags in the same order, with as many seeds.
        pooled: Patients occur in several folds, as in repeats, and are drawn with all their rows; DeLong's variances,
            which take folds for independent, give way to the bootstrap. Else they are drawn within their fold.
        resamples: Bootstrap resamples, and permutations at most.
        seed: Seed of the draws.

    Returns:
        `accuracy`, `macro_f1`, `balanced_accuracy`, `macro_auc` (not when binary), then `auc` or `auc[NAME]`. Folds
        where a metric is undefined are left out of it, with the reason.

    Raises:
        DataError: The bags, labels, folds or patients of the two differ, or predictions are unusable.
    """
    _require_same(first, second, ("bag_ids", "groups", "labels_B", "class_names"))
    _require_same(first, second, ("folds",) if first.folds is not None or second.folds is not None else ())
    answers = [_answers(model) for model in (first, second)]
    _require_equal_seeds(*(model.predicted_SB for model in answers))
    labels_B = np.asarray(first.labels_B, dtype=np.int64)
    draws = Draws(first.groups, first.folds or [None] * len(labels_B), pooled, resamples, seed)
    names = [*SWAPPED] + ["macro_auc"] * (len(first.class_names) > 2)
    parts = _class_parts(first, answers, labels_B, draws, names)
    found = {}
    for name in names:
        difference = compare_statistic(name, parts[name], draws)
        if name in SWAPPED and difference.value is not None:
            difference = _with_permutation(difference, _defined(parts[name]), answers, labels_B, draws)
        found[name] = difference
    if pooled:
        return found | _pooled_areas(first, answers, labels_B, draws)
    ours, theirs = (model.probabilities_SBC for model in answers)
    return found | compare_auc_per_class(
        ours, theirs, labels_B, first.class_names, groups=first.groups, folds=first.folds
    )


def compare_c(
    first: RiskPredictions, second: RiskPredictions, *, pooled: bool = False, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Difference of Harrell's C on the same patients, bootstrapped over patients.

    Several folds and seeds give the difference of the mean C; the models stay as they were trained, so the interval
    holds for these models and not for new trainings (`compare_folds`, `compare_seeds`).

    Args:
        first: Risks of the first model.
        second: Risks of the second model for the same bags in the same order, with as many seeds.
        pooled: Patients occur in several folds, as in repeats, and are drawn with all their rows; else within their
            fold.
        resamples: Bootstrap resamples.
        seed: Seed of the draws.

    Returns:
        The difference of `c_index` over the patients of the folds where C is defined; the reason says if and why
        some are not (`no_events` and the like), or that a model's risks are all equal (`collapsed`).

    Raises:
        DataError: The bags, outcomes, patients or folds of the two differ, or risks are not finite.
    """
    _require_same(first, second, ("bag_ids", "groups", "folds", "time_B", "event_B"))
    risks = [_by_seed(model.risk_SB, 2) for model in (first, second)]
    _require_equal_seeds(*risks)
    time_B, event_B = np.asarray(first.time_B, dtype=np.float64), np.asarray(first.event_B)
    parts = []
    for rows in rows_of_folds(first.folds).values():
        outcomes = time_B[rows], event_B[rows]
        bag_ids = [first.bag_ids[row] for row in rows.tolist()]
        ours, theirs = (
            _mean([harrell_c(*outcomes, risk_B, bag_ids=bag_ids) for risk_B in risk_SB[:, rows]]) for risk_SB in risks
        )
        statistics = [[concordance(*outcomes, risk_B, tied=TIED_RISK) for risk_B in risk_SB[:, rows]]
                      for risk_SB in risks]  # fmt: skip
        parts.append(PairedFold(rows, (ours, theirs), difference_of_means(*statistics)))
    return compare_statistic("c_index", parts, Draws(first.groups, first.folds, pooled, resamples, seed))


def compare_statistic(name: str, parts: Sequence[PairedFold], draws: Draws) -> Difference:
    """Difference of any metric in the mean over folds, bootstrapped over patients.

    Args:
        name: Name of the metric.
        parts: The metric on each fold.
        draws: How patients are drawn.

    Returns:
        The difference over the folds where the metric is defined, with the first reason that one of them gives.

    Raises:
        DataError: A patient lies in two folds that are not pooled.
    """
    reason = next((figure.reason for part in parts for figure in part.figures if figure.reason), None)
    kept = _defined(parts)
    if not kept:
        first, second = (figure.value for figure in parts[0].figures) if len(parts) == 1 else (None, None)
        method, reason = "bootstrap over patients", reason or "too_few"
        return Difference(name, first, second, None, method, "patients", 0, reason=reason)
    rows = np.sort(np.concatenate([part.rows for part in kept]))
    places = [(np.searchsorted(rows, part.rows), part.statistic) for part in kept]
    resampled = bootstrap(
        lambda weights_RB: np.asarray(np.mean([statistic(weights_RB[:, at]) for at, statistic in places], axis=0)),
        [draws.groups[row] for row in rows],
        strata=None if draws.pooled else [draws.folds[row] for row in rows],
        resamples=draws.resamples,
        seed=draws.seed,
    )
    figures_2F = np.array([[part.figures[model].value for part in kept] for model in (0, 1)], dtype=np.float64)
    first, second = figures_2F.mean(axis=1).tolist()
    return _of_bootstrap(name, first, second, reason, resampled)


def rows_of_folds(folds: Sequence[Hashable]) -> dict[Hashable, np.ndarray]:
    """Row indices of each fold, in order of first appearance.

    Example:
        >>> rows_of_folds(["b", "a", "b"])
        {'b': array([0, 2]), 'a': array([1])}
    """
    rows: dict[Hashable, list[int]] = {}
    for row, fold in enumerate(folds):
        rows.setdefault(fold, []).append(row)
    return {fold: np.array(found) for fold, found in rows.items()}


def difference_of_means(first: Sequence[WeightedStatistic], second: Sequence[WeightedStatistic]) -> WeightedStatistic:
    """Mean over the seeds of the first model minus that of the second."""

    def statistic(weights_RB: np.ndarray) -> np.ndarray:
        ours, theirs = (np.mean([one(weights_RB) for one in seeds], axis=0) for seeds in (first, second))
        return np.asarray(ours - theirs)

    return statistic


def _class_parts(
    model: ClassPredictions, answers: Sequence[_Answers], labels_B: np.ndarray, draws: Draws, names: Sequence[str]
) -> dict[str, list[PairedFold]]:
    """Each metric on each fold."""
    parts: dict[str, list[PairedFold]] = {name: [] for name in names}
    for rows in rows_of_folds(draws.folds).values():
        bag_ids, label_B = [model.bag_ids[row] for row in rows.tolist()], labels_B[rows]
        seeds = [list(zip(one.probabilities_SBC[:, rows], one.predicted_SB[:, rows], strict=True)) for one in answers]
        figures = [
            [classification_metrics(p_BC, label_B, model.class_names, predicted_B=c_B, bag_ids=bag_ids)
             for p_BC, c_B in one] for one in seeds
        ]  # fmt: skip
        statistics = [[class_statistics(p_BC, label_B, predicted_B=c_B) for p_BC, c_B in one] for one in seeds]
        for name in names:
            ours, theirs = (_mean([metrics[name] for metrics in one]) for one in figures)
            pair = ([found[name] for found in one] for one in statistics)
            parts[name].append(PairedFold(rows, (ours, theirs), difference_of_means(*pair)))
    return parts


def _pooled_areas(
    model: ClassPredictions, answers: Sequence[_Answers], labels_B: np.ndarray, draws: Draws
) -> dict[str, Difference]:
    """AUC of each class by the bootstrap."""
    found = {}
    ranked = {1: "auc"} if len(model.class_names) == 2 else {c: f"auc[{n}]" for c, n in enumerate(model.class_names)}
    for index, name in ranked.items():
        scores = [one.probabilities_SBC[..., index] for one in answers]
        binary = [_Answers(np.stack([1 - score_SB, score_SB], axis=-1), np.zeros(score_SB.shape, int))
                  for score_SB in scores]  # fmt: skip
        rest = replace(model, class_names=("rest", model.class_names[index]))
        parts = _class_parts(rest, binary, (labels_B == index).astype(np.int64), draws, ["macro_auc"])
        found[name] = compare_statistic(name, parts["macro_auc"], draws)
    return found


def _with_permutation(
    difference: Difference,
    parts: Sequence[PairedFold],
    answers: Sequence[_Answers],
    labels_B: np.ndarray,
    draws: Draws,
) -> Difference:
    """The same difference with the p-value of the permutation of predicted classes within patients."""
    num_seeds, _, num_classes = answers[0].probabilities_SBC.shape
    trainings = [(part.rows, seed) for part in parts for seed in range(num_seeds)]
    starts = np.cumsum([0, *(len(rows) for rows, _ in trainings)])
    statistics = [confusion_statistics(labels_B[rows], num_classes)[difference.metric] for rows, _ in trainings]

    def mean_over_trainings(predicted_RN: np.ndarray) -> np.ndarray:
        found = [one(predicted_RN[:, starts[k] : starts[k + 1]]) for k, one in enumerate(statistics)]
        return np.asarray(np.mean(found, axis=0))

    first_N, second_N = (np.concatenate([one.predicted_SB[seed, rows] for rows, seed in trainings]) for one in answers)
    groups = [draws.groups[row] for rows, _ in trainings for row in rows.tolist()]
    test = paired_permutation(
        mean_over_trainings, first_N, second_N, groups, permutations=draws.resamples, seed=draws.seed
    )
    kind = "exact" if test.is_exact else "Monte Carlo"
    method = f"bootstrap over patients; p: {kind} permutation within patients"
    return replace(difference, p_value=test.p_value, method=method)


def _of_bootstrap(name: str, first: float, second: float, warning: str | None, resampled: Bootstrap) -> Difference:
    value = first - second
    is_identical = resampled.reason == "no_spread" and abs(value) < 1e-12
    return Difference(
        name, first, second, value, "bootstrap over patients", "patients", resampled.num_patients,
        interval=resampled.interval,
        p_value=1.0 if is_identical else resampled.p_value,
        left_out=resampled.undefined,
        reason="identical" if is_identical else resampled.reason or warning,
    )  # fmt: skip


def _defined(parts: Sequence[PairedFold]) -> list[PairedFold]:
    """The folds where both models have a value."""
    return [part for part in parts if None not in (part.figures[0].value, part.figures[1].value)]


def _mean(metrics: Sequence[Metric]) -> Metric:
    """Mean over seeds; without a value if one has none."""
    values = [metric.value for metric in metrics]
    known = [value for value in values if value is not None]
    reason = next((metric.reason for metric in metrics if metric.reason), None)
    return Metric(float(np.mean(known)) if len(known) == len(values) else None, reason)


def _answers(model: ClassPredictions) -> _Answers:
    probabilities_SBC = _by_seed(model.probabilities_SBC, 3)
    if model.predicted_SB is None:
        return _Answers(probabilities_SBC, probabilities_SBC.argmax(axis=2))
    return _Answers(probabilities_SBC, _by_seed(model.predicted_SB, 2).astype(np.int64))


def _by_seed(scores: np.ndarray, rank: int) -> np.ndarray:
    """Scores with a leading axis of seeds."""
    scores = np.asarray(scores, dtype=np.float64)
    return scores[None] if scores.ndim == rank - 1 else scores


def _require_equal_seeds(first: np.ndarray, second: np.ndarray) -> None:
    if len(first) != len(second):
        raise DataError(
            f"the two models have {len(first)} and {len(second)} seeds; a paired comparison needs the same of both"
        )


def _require_same(first: object, second: object, fields: Sequence[str]) -> None:
    for field in fields:
        one, other = (list(value) if (value := getattr(model, field)) is not None else [] for model in (first, second))
        if len(one) != len(other):
            raise DataError(f"the two models have {len(one)} and {len(other)} {field}; compare them on the same bags")
        different = [row for row, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
        if different:
            row = different[0]
            raise DataError(
                f"{field} differ in {len(different)} of {len(one)} places (first: row {row}, {one[row]!r} and "
                f"{other[row]!r}); a paired comparison needs the same bags with the same labels in the same order"
            )
