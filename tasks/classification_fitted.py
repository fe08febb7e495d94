"""The classification task fitted on one training part: loss, predictions, and the figures of a result.

Classes and weights come from the training part, a temperature and a threshold from the inner validation part, if they
are asked for; all of it travels with the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from sklearn.metrics import auc, confusion_matrix, roc_curve
from torch import Tensor
from torch.nn import functional

from asmil.bags import BagBatch
from asmil.engine.protocols import Figure, Predictions, PreparedTask
from asmil.metrics.calibration import FittedNumber, best_temperature, best_threshold, log_loss
from asmil.metrics.classification import classification_details, classification_metrics
from asmil.metrics.values import Metric
from asmil.nn.heads import HeadSpec
from tasks.intervals import accuracy_interval, with_intervals
from tasks.labels import class_indices, class_names

if TYPE_CHECKING:
    from tasks.classification import ClassificationConfig

__all__ = ["FittedClasses", "PreparedClassification", "roc_curves", "with_sum"]

F1_AND_AUC = "macro_f1+macro_auc"
MEANINGS = {
    "kappa": "Cohen's kappa",
    "log_loss": "log loss of the probabilities (less is better)",
    "brier": "Brier score of the probabilities (less is better)",
    "ece": "expected calibration error, 15 bins (less is better)",
    "temperature": "temperature, fitted on validation bags",
    "threshold": "threshold on the positive class, fitted on validation bags",
}


@dataclass(frozen=True)
class FittedClasses:
    """What the training part determines, and what the validation part does.

    Attributes:
        classes: The C classes.
        weights: Weight of each class in the loss; None for none.
        temperature: What logits are divided by, or the default with the reason why none was fitted; None for 1.
        threshold: Likewise, of the positive of two classes; None answers the most probable class.
    """

    classes: tuple[str, ...]
    weights: np.ndarray | None = None
    temperature: FittedNumber | None = None
    threshold: FittedNumber | None = None

    def to_state(self) -> dict[str, Any]:
        """As JSON-serialisable data."""
        return {
            "classes": list(self.classes),
            "class_weights": None if self.weights is None else self.weights.tolist(),
            "temperature": self.temperature and vars(self.temperature),
            "threshold": self.threshold and vars(self.threshold),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> FittedClasses:
        """What `to_state` gave."""
        weights = None if state["class_weights"] is None else np.asarray(state["class_weights"], dtype=np.float64)
        temperature, threshold = (state[name] and FittedNumber(**state[name]) for name in ("temperature", "threshold"))
        return cls(tuple(state["classes"]), weights, temperature, threshold)


class PreparedClassification(PreparedTask):
    """The classification task fitted on one training part.

    Args:
        config: The `task` section.
        column: Label column.
        fitted: What was fitted.
    """

    def __init__(self, config: ClassificationConfig, column: str, fitted: FittedClasses) -> None:
        self.head = HeadSpec(len(fitted.classes))
        self.fitted = fitted
        self.meanings = {**MEANINGS, **_class_meanings(fitted.classes)}
        self._config = config
        self._column = column

    @property
    def classes(self) -> tuple[str, ...]:
        """The C classes."""
        return self.fitted.classes

    def target(self, labels: pd.DataFrame) -> dict[str, Tensor]:
        """`label` int64 [B]."""
        return {"label": torch.from_numpy(self.truth(labels)["label"])}

    def transform(self, batch: BagBatch) -> BagBatch:
        """The batch as it is."""
        return batch

    def loss(self, logits_BC: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of each bag, times the weight of its class."""
        weights = None if self.fitted.weights is None else logits_BC.new_tensor(self.fitted.weights).float()
        return functional.cross_entropy(logits_BC.float(), target["label"], weight=weights, reduction="none")

    def predict(self, logits_BC: Tensor) -> dict[str, Tensor]:
        """Probabilities and answers.

        Returns:
            `probabilities` [B, C]; `predicted` [B], the index of the answered class, where a threshold was fitted
            (else it is the most probable one); `logits` [B, C] while a temperature is still to be fitted to them.
        """
        temperature, threshold = self.fitted.temperature, self.fitted.threshold
        scaled_BC = logits_BC.double() / (1.0 if temperature is None else temperature.value)
        found = {"probabilities": scaled_BC.softmax(dim=1)}
        if threshold is not None:
            found["predicted"] = (found["probabilities"][:, 1] > threshold.value).double()
        if temperature is None and self._config.temperature == "validation":
            found["logits"] = logits_BC.double()
        return found

    def truth(self, labels: pd.DataFrame) -> dict[str, np.ndarray]:
        """`label`: index of each bag's class.

        Raises:
            DataError: A class that the training part did not have (bags named).
        """
        return {"label": class_indices(labels, class_names(labels, self._column, self._config.merge), self.classes)}

    def evaluate(self, predictions: Predictions) -> dict[str, Metric]:
        """`accuracy`, `macro_f1`, `macro_auc`, `balanced_accuracy`, and the monitored sum if there is one.

        Raises:
            DataError: Non-finite probabilities (bags named).
        """
        return with_sum(self._measure(predictions, np.arange(len(predictions.bag_ids))), self._config.monitor)

    def intervals(self, predictions: Predictions) -> dict[str, Metric]:
        """`accuracy`, `macro_auc` and `macro_f1` with 95 % intervals."""
        correct_B = _predicted(predictions) == predictions.truth["label"]
        accuracy = self.evaluate(predictions)["accuracy"]
        resampled = with_intervals(
            lambda rows: self._measure(predictions, rows), ["macro_auc", "macro_f1"], predictions.groups
        )
        limits = accuracy_interval(correct_B, predictions.groups)
        return {"accuracy": Metric(accuracy.value, accuracy.reason, limits), **resampled}

    def details(self, predictions: Predictions) -> dict[str, Metric]:
        """Agreement, calibration and the figures of each class, and what was fitted on validation bags.

        Returns:
            What `classification_details` lists, and `temperature` and `threshold` where they were fitted.
        """
        fitted = {"temperature": self.fitted.temperature, "threshold": self.fitted.threshold}
        return {
            **classification_details(
                predictions.outputs["probabilities"],
                predictions.truth["label"],
                self.classes,
                predicted_B=_predicted(predictions),
            ),
            **{name: number.metric for name, number in fitted.items() if number is not None},
        }

    def figures(self, predictions: Sequence[Predictions]) -> tuple[Figure, ...]:
        """ROC curves of each fold (scores of different models are not pooled) and the confusion matrix of all."""
        if not predictions:
            return ()
        counts_CC = sum(self._confusion(fold) for fold in predictions)
        confusion = {"labels": list(self.classes), "counts": np.asarray(counts_CC).tolist()}
        shown = (1,) if len(self.classes) == 2 else range(len(self.classes))
        scores = [
            {
                self.classes[index]: (fold.outputs["probabilities"][:, index], fold.truth["label"] == index)
                for index in shown
            }
            for fold in predictions
        ]
        return (
            Figure("roc", "Receiver operating characteristic", {"curves": roc_curves(scores)}),
            Figure("confusion", "Confusion of classes", confusion),
        )

    def calibrate_on_validation(self, validation: Predictions) -> PreparedClassification:
        """The task with temperature and threshold, as far as they are asked for.

        A validation part of one class tells neither: they stay 1 and 0.5 with the reason `one_class`.
        """
        fitted, label_B = self.fitted, validation.truth["label"]
        probabilities_BC = validation.outputs["probabilities"]
        if self._config.temperature == "validation":
            logits_BC, one_class = validation.outputs["logits"], len(np.unique(label_B)) < 2
            temperature = (
                FittedNumber(1.0, "one_class")
                if one_class
                else best_temperature(lambda value: log_loss(softmax(logits_BC / value, axis=1), label_B))
            )
            fitted = replace(fitted, temperature=temperature)
            probabilities_BC = softmax(logits_BC / temperature.value, axis=1)
        if self._config.threshold == "validation":
            threshold = best_threshold(probabilities_BC[:, 1], label_B == 1, "macro_f1")
            fitted = replace(fitted, threshold=threshold)
        return PreparedClassification(self._config, self._column, fitted)

    def to_state(self) -> dict[str, Any]:
        """Everything fitted, and the settings that give outputs their meaning."""
        return {
            "kind": self._config.kind,
            "config": self._config.model_dump(mode="json"),
            **self.fitted.to_state(),
        }

    def _measure(self, predictions: Predictions, rows: np.ndarray) -> dict[str, Metric]:
        return classification_metrics(
            predictions.outputs["probabilities"][rows],
            predictions.truth["label"][rows],
            self.classes,
            predicted_B=_predicted(predictions)[rows],
            bag_ids=[predictions.bag_ids[row] for row in rows],
        )

    def _confusion(self, fold: Predictions) -> np.ndarray:
        labels = range(len(self.classes))
        return np.asarray(confusion_matrix(fold.truth["label"], _predicted(fold), labels=labels))


def _predicted(predictions: Predictions) -> np.ndarray:
    """Index of the answered class [B]."""
    predicted_B = predictions.outputs.get("predicted")
    if predicted_B is None:
        return np.asarray(predictions.outputs["probabilities"].argmax(axis=1))
    return predicted_B.astype(np.int64)


def _class_meanings(classes: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in classes:
        found |= {
            f"f1[{name}]": f"F1 of {name}",
            f"precision[{name}]": f"precision of {name}",
            f"recall[{name}]": f"recall of {name}",
            f"auc[{name}]": f"AUC of {name} against the rest",
        }
    if len(classes) == 2:
        found |= {"sensitivity": f"sensitivity (recall of {classes[1]})"}
        found |= {"specificity": f"specificity (recall of {classes[0]})"}
    return found


def with_sum(metrics: dict[str, Metric], monitor: str) -> dict[str, Metric]:
    """The metrics, with the sum of macro F1 and macro AUC if that is monitored; none if one of them has no value."""
    if monitor != F1_AND_AUC:
        return metrics
    first, second = metrics["macro_f1"], metrics["macro_auc"]
    if first.value is None or second.value is None:
        return {**metrics, F1_AND_AUC: Metric(None, first.reason if first.value is None else second.reason)}
    return {**metrics, F1_AND_AUC: Metric(first.value + second.value, first.reason or second.reason)}


def roc_curves(folds: Sequence[Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> list[dict[str, Any]]:
    """One curve per fold and class that some but not all bags have.

    Args:
        folds: Per fold the scores [B] and the truth [B] of each class.
    """
    curves = []
    for number, fold in enumerate(folds):
        for name, (score_B, positive_B) in fold.items():
            if not positive_B.any() or positive_B.all():
                continue
            false_rate, true_rate, _ = roc_curve(positive_B, score_B)
            area = float(auc(false_rate, true_rate))
            suffix = f", fold {number}" if len(folds) > 1 else ""
            curve = {"fpr": false_rate.tolist(), "tpr": true_rate.tolist(), "auc": area}
            curves.append({"name": f"{name}{suffix}", **curve})
    return curves
