"""Metrics of several yes-no labels per bag, some of them unknown.

Shapes: B bags, L labels. The truth is 1, 0 or NaN where it is unknown; unknown entries count nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from asmil.errors import DataError
from asmil.metrics.calibration import calibration_error, log_loss
from asmil.metrics.classification import area_under_roc, refuse_not_finite
from asmil.metrics.values import Metric

__all__ = ["multilabel_details", "multilabel_metrics"]


def multilabel_metrics(
    probabilities_BL: np.ndarray,
    labels_BL: np.ndarray,
    predicted_BL: np.ndarray,
    *,
    bag_ids: Sequence[str] | None = None,
) -> dict[str, Metric]:
    """Figures over all labels.

    Args:
        probabilities_BL: Probability of each label.
        labels_BL: The truth.
        predicted_BL: The answers, 1 or 0.
        bag_ids: Names of the bags for error messages; row numbers are used without it.

    Returns:
        `accuracy`, the share of known entries answered rightly; `macro_f1`, the mean F1 of the labels;
        `macro_auc` and `balanced_accuracy` (mean of sensitivity and specificity), means over the labels. The latter
        two are null if a label is all present (`one_class`), all absent (`absent_class`) or unknown (`too_few`) here;
        macro F1 is then of the labels that occur among truth and answers, with the reason beside it.

    Raises:
        DataError: Shapes that do not fit, or non-finite probabilities (bags named).
    """
    _check(probabilities_BL, labels_BL, predicted_BL, bag_ids)
    known_BL = np.isfinite(labels_BL)
    if not known_BL.any():
        return dict.fromkeys(("accuracy", "macro_f1", "macro_auc", "balanced_accuracy"), Metric(None, "too_few"))
    per_label = [_label_figures(*columns) for columns in _by_label(probabilities_BL, labels_BL, predicted_BL)]
    f1 = [figures["f1"] for figures in per_label]
    scored = [metric.value for metric in f1 if metric.value is not None]
    reason = next((metric.reason for metric in f1 if metric.reason), None)
    return {
        "accuracy": Metric(float((predicted_BL == labels_BL)[known_BL].mean())),
        "macro_f1": Metric(float(np.mean(scored)) if scored else None, reason),
        "macro_auc": _mean([figures["auc"] for figures in per_label]),
        "balanced_accuracy": _mean([figures[name] for figures in per_label for name in ("sensitivity", "specificity")]),
    }


def multilabel_details(
    probabilities_BL: np.ndarray, labels_BL: np.ndarray, predicted_BL: np.ndarray, label_names: Sequence[str]
) -> dict[str, Metric]:
    """What stands in a result beside `multilabel_metrics`; each without a value, but with a reason, if undefined.

    Args:
        probabilities_BL: Probability of each label.
        labels_BL: The truth.
        predicted_BL: The answers, 1 or 0.
        label_names: The labels.

    Returns:
        `micro_f1` and `micro_auc` of all known entries together; `exact_match`, the share of bags with every known
        label right; `log_loss`, `brier` and `ece` of the entries; `f1[name]`, `precision[name]`, `sensitivity[name]`,
        `specificity[name]` and `auc[name]` of each label.
    """
    known_BL = np.isfinite(labels_BL)
    score, label, predicted = (array[known_BL] for array in (probabilities_BL, labels_BL, predicted_BL))
    overall = dict.fromkeys(
        ("micro_f1", "micro_auc", "exact_match", "log_loss", "brier", "ece"), Metric(None, "too_few")
    )
    if len(label):
        pooled, both = _label_figures(score, label, predicted), np.stack([1 - score, score], axis=1)
        right_B = ((predicted_BL == labels_BL) | ~known_BL).all(axis=1)[known_BL.any(axis=1)]
        overall = {
            "micro_f1": pooled["f1"],
            "micro_auc": pooled["auc"],
            "exact_match": Metric(float(right_B.mean())),
            "log_loss": Metric(log_loss(both, label.astype(np.int64))),
            "brier": Metric(float(np.square(score - label).mean())),
            "ece": Metric(calibration_error(both.max(axis=1), both.argmax(axis=1) == label)),
        }
    columns = _by_label(probabilities_BL, labels_BL, predicted_BL)
    per_label = {name: _label_figures(*column) for name, column in zip(label_names, columns, strict=True)}
    return overall | {
        f"{figure}[{name}]": metric for name, found in per_label.items() for figure, metric in found.items()
    }


def _by_label(*arrays_BL: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """The columns of the arrays, side by side."""
    return zip(*(array_BL.T for array_BL in arrays_BL), strict=True)


def _label_figures(score_B: np.ndarray, label_B: np.ndarray, predicted_B: np.ndarray) -> dict[str, Metric]:
    """Figures of one label where it is known."""
    known_B = np.isfinite(label_B)
    if not known_B.any():
        return dict.fromkeys(("f1", "precision", "sensitivity", "specificity", "auc"), Metric(None, "too_few"))
    score_B, true_B, said_B = score_B[known_B], label_B[known_B] == 1, predicted_B[known_B] == 1
    both, true, said = int((true_B & said_B).sum()), int(true_B.sum()), int(said_B.sum())
    return {
        "f1": _ratio(2 * both, true + said, "absent_class"),
        "precision": _ratio(both, said, "never_predicted"),
        "sensitivity": _ratio(both, true, "absent_class"),
        "specificity": _ratio(len(true_B) - true - said + both, len(true_B) - true, "one_class"),
        "auc": area_under_roc(score_B, true_B),
    }


def _ratio(above: int, below: int, reason: str) -> Metric:
    return Metric(above / below) if below else Metric(None, reason)


def _mean(metrics: Sequence[Metric]) -> Metric:
    """The mean, or the first reason why there is none."""
    values = [metric.value for metric in metrics if metric.value is not None]
    if len(values) < len(metrics):
        return Metric(None, next(metric.reason for metric in metrics if metric.value is None))
    return Metric(float(np.mean(values)))


def _check(
    probabilities_BL: np.ndarray, labels_BL: np.ndarray, predicted_BL: np.ndarray, bag_ids: Sequence[str] | None
) -> None:
    if probabilities_BL.ndim != 2 or not probabilities_BL.shape == labels_BL.shape == predicted_BL.shape:
        raise DataError(
            f"probabilities, truth and answers have shapes {probabilities_BL.shape}, {labels_BL.shape} and "
            f"{predicted_BL.shape}; they need one common shape [bags, labels]"
        )
    refuse_not_finite(probabilities_BL, bag_ids)
