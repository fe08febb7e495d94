"""Metrics of many weighted copies of the same rows at once, for bootstraps; undefined values are NaN here.

A weight is the number of times a row was drawn. The definitions are those of `classification` and `survival`, which
give one value with a reason; these give thousands without.

Shapes: R resamples, B rows (bags), C classes, N negatives, P positives, X cells of the confusion matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["WeightedStatistic", "class_statistics", "concordance", "confusion_statistics"]

WeightedStatistic = Callable[[np.ndarray], np.ndarray]
"""Maps weights [R, B] to R values; NaN where the statistic is undefined."""


def class_statistics(
    probabilities_BC: np.ndarray, labels_B: np.ndarray, *, predicted_B: np.ndarray | None = None
) -> dict[str, WeightedStatistic]:
    """The metrics of `classification_metrics` as statistics of weighted rows, by the same names and definitions.

    Args:
        probabilities_BC: Probability of each class.
        labels_B: Index of the true class.
        predicted_B: Index of the answered class; the most probable one without it.

    Returns:
        `accuracy`, `macro_f1`, `macro_auc` and `balanced_accuracy`; undefined where that function gives no value.
    """
    num_classes = probabilities_BC.shape[1]
    predicted_B = probabilities_BC.argmax(axis=1) if predicted_B is None else predicted_B
    cells_BX = np.eye(num_classes**2)[labels_B * num_classes + predicted_B]
    ranked = (1,) if num_classes == 2 else range(num_classes)

    def confusion(weights_RB: np.ndarray) -> np.ndarray:
        cells_RX: np.ndarray = weights_RB @ cells_BX
        return cells_RX.reshape(-1, num_classes, num_classes)

    def macro_auc(weights_RB: np.ndarray) -> np.ndarray:
        areas_CR = np.stack([_auc(weights_RB, probabilities_BC[:, c], labels_B == c) for c in ranked])
        return np.asarray(areas_CR.mean(axis=0))

    return {
        "accuracy": lambda weights_RB: _accuracy(confusion(weights_RB)),
        "macro_f1": lambda weights_RB: _macro_f1(confusion(weights_RB)),
        "macro_auc": macro_auc,
        "balanced_accuracy": lambda weights_RB: _balanced_accuracy(confusion(weights_RB)),
    }


def confusion_statistics(labels_B: np.ndarray, num_classes: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Metrics of many predictions of the same rows, for permutations; they take predicted classes [R, B].

    Args:
        labels_B: Index of the true class.
        num_classes: Number of classes.

    Returns:
        `accuracy`, `macro_f1` and `balanced_accuracy`.
    """

    def confusion(predicted_RB: np.ndarray) -> np.ndarray:
        num_cells = num_classes**2
        cells_RB = labels_B * num_classes + predicted_RB + num_cells * np.arange(len(predicted_RB))[:, None]
        counts = np.bincount(cells_RB.ravel(), minlength=num_cells * len(predicted_RB))
        return counts.reshape(-1, num_classes, num_classes)

    return {
        "accuracy": lambda predicted_RB: _accuracy(confusion(predicted_RB)),
        "macro_f1": lambda predicted_RB: _macro_f1(confusion(predicted_RB)),
        "balanced_accuracy": lambda predicted_RB: _balanced_accuracy(confusion(predicted_RB)),
    }


def concordance(time_B: np.ndarray, event_B: np.ndarray, risk_B: np.ndarray, *, tied: float) -> WeightedStatistic:
    """Harrell's C of weighted rows, with the pairs and ties of `harrell_c`.

    Args:
        time_B: Follow-up times.
        event_B: 1 where the event was observed, 0 where censored.
        risk_B: Risks; a larger one means an earlier event.
        tied: Risks that differ by no more than this are tied.

    Returns:
        The statistic; undefined where no drawn pair is comparable.
    """
    is_event = event_B.astype(bool)
    later_BB = (time_B[:, None] < time_B) | ((time_B[:, None] == time_B) & ~is_event)
    comparable_BB = (is_event[:, None] & later_BB).astype(np.float64)
    gap_BB = risk_B[:, None] - risk_B
    score_BB = comparable_BB * np.where(np.abs(gap_BB) <= tied, 0.5, gap_BB > 0)

    def statistic(weights_RB: np.ndarray) -> np.ndarray:
        return _ratio(
            ((weights_RB @ score_BB) * weights_RB).sum(axis=1), ((weights_RB @ comparable_BB) * weights_RB).sum(axis=1)
        )

    return statistic


def _auc(weights_RB: np.ndarray, score_B: np.ndarray, positive_B: np.ndarray) -> np.ndarray:
    """Weighted share of positive-negative pairs in the right order, ties counting one half."""
    negatives = np.flatnonzero(~positive_B)
    negatives = negatives[np.argsort(score_B[negatives], kind="stable")]
    below_RN = np.pad(np.cumsum(weights_RB[:, negatives], axis=1), ((0, 0), (1, 0)))
    left, right = (np.searchsorted(score_B[negatives], score_B[positive_B], side=side) for side in ("left", "right"))
    positive_RP = weights_RB[:, positive_B]
    wins_R = (positive_RP * (below_RN[:, left] + below_RN[:, right])).sum(axis=1) / 2
    return _ratio(wins_R, positive_RP.sum(axis=1) * below_RN[:, -1])


def _accuracy(confusion_RCC: np.ndarray) -> np.ndarray:
    return _ratio(np.trace(confusion_RCC, axis1=1, axis2=2), confusion_RCC.sum(axis=(1, 2)))


def _macro_f1(confusion_RCC: np.ndarray) -> np.ndarray:
    true_RC, predicted_RC = confusion_RCC.sum(axis=2), confusion_RCC.sum(axis=1)
    f1_RC = _ratio(2 * np.diagonal(confusion_RCC, axis1=1, axis2=2), true_RC + predicted_RC)
    return _mean_where(f1_RC, true_RC + predicted_RC > 0, true_RC)


def _balanced_accuracy(confusion_RCC: np.ndarray) -> np.ndarray:
    true_RC = confusion_RCC.sum(axis=2)
    return _mean_where(_ratio(np.diagonal(confusion_RCC, axis1=1, axis2=2), true_RC), true_RC > 0, true_RC)


def _mean_where(values_RC: np.ndarray, counted_RC: np.ndarray, true_RC: np.ndarray) -> np.ndarray:
    """Mean over the counted classes; undefined where the labels are of one class."""
    mean_R = _ratio(np.where(counted_RC, values_RC, 0).sum(axis=1), counted_RC.sum(axis=1))
    return np.where((true_RC > 0).sum(axis=1) > 1, mean_R, np.nan)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotients, NaN where the denominator is 0."""
    return np.asarray(np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0))
