"""Classification metrics of a set of bags: scikit-learn's definitions, with one-class sets answered by a reason.

Those that select or get an interval are computed from the confusion matrix and from ranks, which gives scikit-learn's
numbers in a tenth of its time: a bootstrap measures them a thousand times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support

from asmil.errors import DataError
from asmil.metrics.calibration import brier_score, calibration_error, log_loss
from asmil.metrics.values import Metric

__all__ = ["area_under_roc", "classification_details", "classification_metrics", "refuse_not_finite"]


def classification_metrics(
    probabilities_BC: np.ndarray,
    labels_B: np.ndarray,
    class_names: Sequence[str],
    *,
    predicted_B: np.ndarray | None = None,
    bag_ids: Sequence[str] | None = None,
) -> dict[str, Metric]:
    """Accuracy, macro F1, macro AUC and balanced accuracy of predicted class probabilities.

    What compares classes is null on bags of one
    class (`one_class`). Where some but not all classes occur (`absent_class`), the AUC is null, and macro F1 and
    balanced accuracy are scikit-learn's (F1 over the classes among labels and predictions, recall over those among
    the labels) with the reason beside them, because they average over other classes than a full set would.

    Args:
        probabilities_BC: Probability of each class, or any score that grows with it.
        labels_B: Index of the true class.
        class_names: The C classes, in the order of the columns.
        predicted_B: Index of the class that was answered; None takes the most probable one, the first of several.
        bag_ids: Names of the bags for error messages; row numbers are used without it.

    Returns:
        `accuracy`, `macro_f1`, `macro_auc` (binary: of class 1; else the mean over one-vs-rest) and
        `balanced_accuracy`. All are null with reason `too_few` without bags.

    Raises:
        DataError: Shapes that do not fit, labels outside the classes, or non-finite probabilities (bags named).
    """
    probabilities_BC = np.asarray(probabilities_BC, dtype=np.float64)
    labels_B = np.asarray(labels_B)
    _check(probabilities_BC, labels_B, class_names, bag_ids)
    if len(labels_B) == 0:
        return dict.fromkeys(("accuracy", "macro_f1", "macro_auc", "balanced_accuracy"), Metric(None, "too_few"))
    labels_B = labels_B.astype(np.int64)
    predicted_B = probabilities_BC.argmax(axis=1) if predicted_B is None else predicted_B
    confusion_CC = _confusion(labels_B, predicted_B, len(class_names))
    correct_C, true_C, predicted_C = confusion_CC.diagonal(), confusion_CC.sum(axis=1), confusion_CC.sum(axis=0)
    accuracy = Metric(float(correct_C.sum() / len(labels_B)))
    present_C, met_C = true_C > 0, true_C + predicted_C > 0
    if present_C.sum() == 1:
        undefined = Metric(None, "one_class")
        return {
            "accuracy": accuracy,
            "macro_f1": undefined,
            "macro_auc": undefined,
            "balanced_accuracy": undefined,
        }
    warning = None if present_C.all() else "absent_class"
    f1 = np.mean(2 * correct_C[met_C] / (true_C + predicted_C)[met_C])
    recall = np.mean(correct_C[present_C] / true_C[present_C])
    return {
        "accuracy": accuracy,
        "macro_f1": Metric(float(f1), warning),
        "macro_auc": Metric(None, warning) if warning else Metric(_macro_auc(probabilities_BC, labels_B)),
        "balanced_accuracy": Metric(float(recall), warning),
    }


def classification_details(
    probabilities_BC: np.ndarray,
    labels_B: np.ndarray,
    class_names: Sequence[str],
    *,
    predicted_B: np.ndarray | None = None,
) -> dict[str, Metric]:
    """What stands in a result beside `classification_metrics`; each without a value, but with a reason, if undefined.

    Args:
        probabilities_BC: Probability of each class, finite.
        labels_B: Index of the true class.
        class_names: The C classes.
        predicted_B: Index of the class that was answered; None takes the most probable one.

    Returns:
        `kappa` (Cohen's, unweighted), `log_loss`, `brier` and `ece` (of the most probable class), then by class
        `f1[name]` and `precision[name]`; of two classes `sensitivity` (recall of class 1) and `specificity` (of class
        0), of more `recall[name]` and `auc[name]` (against the rest). Reasons: `too_few` without bags, `absent_class`
        without bags of the class, `never_predicted`, and `one_class` where a comparison of classes needs others.
    """
    predicted_B = probabilities_BC.argmax(axis=1) if predicted_B is None else predicted_B
    if len(labels_B) == 0:
        names = (
            "kappa",
            "log_loss",
            "brier",
            "ece",
            *_class_figures(probabilities_BC, labels_B, predicted_B, class_names),
        )
        return dict.fromkeys(names, Metric(None, "too_few"))
    correct_B = probabilities_BC.argmax(axis=1) == labels_B
    one_class = len(np.unique(labels_B)) == 1
    return {
        "kappa": Metric(None, "one_class") if one_class else Metric(float(cohen_kappa_score(labels_B, predicted_B))),
        "log_loss": Metric(log_loss(probabilities_BC, labels_B)),
        "brier": Metric(brier_score(probabilities_BC, labels_B)),
        "ece": Metric(calibration_error(probabilities_BC.max(axis=1), correct_B)),
        **_class_figures(probabilities_BC, labels_B, predicted_B, class_names),
    }


def _class_figures(
    probabilities_BC: np.ndarray, labels_B: np.ndarray, predicted_B: np.ndarray, class_names: Sequence[str]
) -> dict[str, Metric]:
    """Precision, recall, F1 and, of more than two classes, the AUC of each class."""
    indices = range(len(class_names))
    if len(labels_B):
        precision_C, recall_C, f1_C, _ = precision_recall_fscore_support(
            labels_B, predicted_B, labels=indices, zero_division=np.nan
        )
    else:
        precision_C = recall_C = f1_C = np.full(len(class_names), np.nan)
    binary = len(class_names) == 2
    found = {}
    for index, name in enumerate(class_names):
        recall_name = ("specificity", "sensitivity")[index] if binary else f"recall[{name}]"
        found[f"f1[{name}]"] = _defined(f1_C[index], "absent_class")
        found[f"precision[{name}]"] = _defined(precision_C[index], "never_predicted")
        found[recall_name] = _defined(recall_C[index], "absent_class")
        if not binary:
            found[f"auc[{name}]"] = area_under_roc(probabilities_BC[:, index], labels_B == index)
    return found


def _defined(value: float, reason: str) -> Metric:
    return Metric(None, reason) if np.isnan(value) else Metric(float(value))


def area_under_roc(score_B: np.ndarray, positive_B: np.ndarray) -> Metric:
    """Area under the ROC curve; none with the reason `absent_class` without positives, `one_class` without others."""
    if not positive_B.any():
        return Metric(None, "absent_class")
    return Metric(None, "one_class") if positive_B.all() else Metric(_auc(score_B, positive_B))


def _confusion(labels_B: np.ndarray, predicted_B: np.ndarray, num_classes: int) -> np.ndarray:
    """Number of bags of each true class (rows) by predicted class (columns)."""
    cells = np.bincount(labels_B * num_classes + predicted_B, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def _macro_auc(probabilities_BC: np.ndarray, labels_B: np.ndarray) -> float:
    num_classes = probabilities_BC.shape[1]
    ranked = (1,) if num_classes == 2 else range(num_classes)
    return float(np.mean([_auc(probabilities_BC[:, c], labels_B == c) for c in ranked]))


def _auc(score_B: np.ndarray, positive_B: np.ndarray) -> float:
    """Mann-Whitney: the share of positive-negative pairs in the right order, ties counting one half."""
    positives = int(positive_B.sum())
    wins = rankdata(score_B)[positive_B].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * (len(positive_B) - positives)))


def refuse_not_finite(probabilities_BC: np.ndarray, bag_ids: Sequence[str] | None) -> None:
    """Refuse predictions of a model that diverged, naming the bags, by row number without ids.

    Raises:
        DataError: A probability is NaN or infinite.
    """
    names = np.arange(len(probabilities_BC)) if bag_ids is None else np.asarray(bag_ids)
    broken_B = ~np.isfinite(probabilities_BC).all(axis=1)
    if broken_B.any():
        raise DataError(
            f"probabilities are not finite for {broken_B.sum()} of {len(names)} bags "
            f"({', '.join(map(str, names[broken_B][:5]))}); the model diverged, lower train.lr or use float32 precision"
        )


def _check(
    probabilities_BC: np.ndarray, labels_B: np.ndarray, class_names: Sequence[str], bag_ids: Sequence[str] | None
) -> None:
    num_classes = len(class_names)
    expected = (len(labels_B), num_classes)
    if num_classes < 2 or probabilities_BC.shape != expected:
        raise DataError(
            f"class probabilities have shape {probabilities_BC.shape}; {len(labels_B)} labels and the classes "
            f"{list(class_names)} need shape {expected} with at least two classes"
        )
    refuse_not_finite(probabilities_BC, bag_ids)
    unknown = ~np.isin(labels_B, np.arange(num_classes))
    if unknown.any():
        names = np.arange(len(labels_B)) if bag_ids is None else np.asarray(bag_ids)
        raise DataError(
            f"bag {names[unknown][0]} has label {labels_B[unknown][0]}; expected an index from 0 to {num_classes - 1} "
            f"into the classes {list(class_names)}"
        )
