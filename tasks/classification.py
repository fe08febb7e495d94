"""Classes of slides or patients: two or more, cross-entropy on C logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from sklearn.metrics import auc, confusion_matrix, roc_curve
from torch import Tensor
from torch.nn import functional

from asmil.bags import BagBatch
from asmil.data.config import LabelColumns
from asmil.engine.protocols import BagReader, Figure, Monitor, Predictions, PreparedTask, Task
from asmil.errors import DataError
from asmil.metrics.classification import classification_metrics
from asmil.metrics.values import Metric
from asmil.nn.heads import HeadSpec
from tasks.intervals import accuracy_interval, with_intervals
from tasks.labels import class_indices, class_list, class_names, configured
from tasks.settings import TaskSettings

__all__ = ["Classification", "ClassificationConfig", "PreparedClassification"]

F1_AND_AUC = "macro_f1+macro_auc"
ClassName = Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]


class ClassificationConfig(TaskSettings):
    """One of several classes per bag.

    Attributes:
        classes: The classes in the order of the outputs; of two, the second is the positive one. None takes those of
            the training part, numbers in order, then text in order.
        merge: Label in the table to the class it belongs to; labels that are not listed stay as they are.
        class_weights: `balanced` weighs each class by the inverse of its share of the training bags.
        monitor: Validation metric that selects epochs and configurations; the sum is the ASMIL authors' choice.
    """

    kind: Literal["classification"] = "classification"
    classes: tuple[ClassName, ...] | None = Field(default=None, min_length=2)
    merge: dict[ClassName, ClassName] | None = None
    class_weights: Literal["none", "balanced"] = "none"
    monitor: Literal["macro_auc", "macro_f1", "macro_f1+macro_auc", "balanced_accuracy", "accuracy"] = "macro_auc"

    @model_validator(mode="after")
    def _classes_agree(self) -> ClassificationConfig:
        if self.classes is None:
            return self
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {', '.join(self.classes)} are not distinct")
        unknown = sorted(set((self.merge or {}).values()) - set(self.classes))
        if unknown:
            raise ValueError(f"merge leads to {', '.join(unknown)}, which classes does not list")
        return self

    def build(self, columns: LabelColumns) -> Classification:
        """The task on these label columns."""
        return Classification(self, columns)


class Classification(Task):
    """The classification task, not fitted.

    Args:
        config: The `task` section.
        columns: Meaning of the label columns; `target` is needed.

    Raises:
        ConfigError: The column is not named.
    """

    def __init__(self, config: ClassificationConfig, columns: LabelColumns) -> None:
        self.monitor = Monitor(config.monitor, "max")
        self._config = config
        self._column = configured(columns.target, "target", config.kind)

    def check(self, labels: pd.DataFrame) -> None:
        """Refuse labels that are missing, outside the configured classes, or all of one class."""
        names = self._names(labels)
        _refuse_one_class(names, self._column, "the cohort")
        if self._config.classes is not None:
            class_indices(labels, names, self._config.classes)

    def strata(self, labels: pd.DataFrame) -> Sequence[str]:
        """Splits keep the shares of the classes."""
        return self._names(labels)

    def prepare(self, train_labels: pd.DataFrame, train_bags: BagReader) -> PreparedClassification:
        """Fit class list and class weights on the training part; features are not read.

        Raises:
            DataError: Wrong labels, one class, or a configured class without training bags.
        """
        names = self._names(train_labels)
        _refuse_one_class(names, self._column, "the training fold")
        classes = self._config.classes or class_list(names)
        counts = np.bincount(class_indices(train_labels, names, classes), minlength=len(classes))
        absent = [name for name, count in zip(classes, counts, strict=True) if count == 0]
        if absent:
            raise DataError(
                f"no bag of class {', '.join(map(repr, absent))} in the training fold ({len(names)} bags); it cannot "
                f"be learned: use fewer folds, or drop or merge the class under task.classes and task.merge"
            )
        weights = len(names) / (len(classes) * counts) if self._config.class_weights == "balanced" else None
        return PreparedClassification(self._config, self._column, classes, weights)

    def restore(self, state: Mapping[str, Any]) -> PreparedClassification:
        """The prepared task of a checkpoint; its own classes hold, not those configured now."""
        weights = state["class_weights"]
        return PreparedClassification(
            ClassificationConfig.model_validate(state["config"]),
            self._column,
            tuple(state["classes"]),
            None if weights is None else np.asarray(weights, dtype=np.float64),
        )

    def _names(self, labels: pd.DataFrame) -> list[str]:
        return class_names(labels, self._column, self._config.merge)


class PreparedClassification(PreparedTask):
    """The classification task fitted on one training part.

    Args:
        config: The `task` section.
        column: Label column.
        classes: The C classes.
        class_weights: Weight of each class in the loss; None for none.
    """

    def __init__(
        self, config: ClassificationConfig, column: str, classes: tuple[str, ...], class_weights: np.ndarray | None
    ) -> None:
        self.head = HeadSpec(len(classes))
        self.classes = classes
        self._config = config
        self._column = column
        self._class_weights = class_weights

    def target(self, labels: pd.DataFrame) -> dict[str, Tensor]:
        """`label` int64 [B]."""
        return {"label": torch.from_numpy(self.truth(labels)["label"])}

    def transform(self, batch: BagBatch) -> BagBatch:
        """The batch as it is."""
        return batch

    def loss(self, logits_BC: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of each bag, times the weight of its class."""
        weights = None if self._class_weights is None else logits_BC.new_tensor(self._class_weights).float()
        return functional.cross_entropy(logits_BC.float(), target["label"], weight=weights, reduction="none")

    def predict(self, logits_BC: Tensor) -> dict[str, Tensor]:
        """`probabilities` [B, C]."""
        return {"probabilities": logits_BC.double().softmax(dim=1)}

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
        metrics = self._measure(predictions, np.arange(len(predictions.bag_ids)))
        if self._config.monitor == F1_AND_AUC:
            metrics[F1_AND_AUC] = _sum(metrics["macro_f1"], metrics["macro_auc"])
        return metrics

    def intervals(self, predictions: Predictions) -> dict[str, Metric]:
        """`accuracy`, `macro_auc` and `macro_f1` with 95 % intervals."""
        correct_B = predictions.outputs["probabilities"].argmax(axis=1) == predictions.truth["label"]
        accuracy = self.evaluate(predictions)["accuracy"]
        resampled = with_intervals(
            lambda rows: self._measure(predictions, rows), ["macro_auc", "macro_f1"], predictions.groups
        )
        limits = accuracy_interval(correct_B, predictions.groups)
        return {"accuracy": Metric(accuracy.value, accuracy.reason, limits), **resampled}

    def figures(self, predictions: Sequence[Predictions]) -> tuple[Figure, ...]:
        """ROC curves of each fold (scores of different models are not pooled) and the confusion matrix of all."""
        if not predictions:
            return ()
        counts_CC = sum(self._confusion(fold) for fold in predictions)
        confusion = {"labels": list(self.classes), "counts": np.asarray(counts_CC).tolist()}
        curves = [
            curve
            for number, fold in enumerate(predictions)
            for curve in self._curves(fold, f", fold {number}" if len(predictions) > 1 else "")
        ]
        return (
            Figure("roc", "Receiver operating characteristic", {"curves": curves}),
            Figure("confusion", "Confusion of classes", confusion),
        )

    def calibrate(self, train: Predictions) -> PreparedClassification:
        """This task: nothing is fitted on predictions."""
        return self

    def to_state(self) -> dict[str, Any]:
        """Class list and weights, and the settings that give outputs their meaning."""
        return {
            "kind": self._config.kind,
            "config": self._config.model_dump(mode="json"),
            "classes": list(self.classes),
            "class_weights": None if self._class_weights is None else self._class_weights.tolist(),
        }

    def _measure(self, predictions: Predictions, rows: np.ndarray) -> dict[str, Metric]:
        return classification_metrics(
            predictions.outputs["probabilities"][rows],
            predictions.truth["label"][rows],
            self.classes,
            bag_ids=[predictions.bag_ids[row] for row in rows],
        )

    def _confusion(self, fold: Predictions) -> np.ndarray:
        predicted_B = fold.outputs["probabilities"].argmax(axis=1)
        return np.asarray(confusion_matrix(fold.truth["label"], predicted_B, labels=range(len(self.classes))))

    def _curves(self, fold: Predictions, suffix: str) -> list[dict[str, Any]]:
        """One curve per class that some but not all bags have; of two classes, the positive one's."""
        curves = []
        for index in (1,) if len(self.classes) == 2 else range(len(self.classes)):
            is_class_B = fold.truth["label"] == index
            if is_class_B.any() and not is_class_B.all():
                false_rate, true_rate, _ = roc_curve(is_class_B, fold.outputs["probabilities"][:, index])
                curve = {
                    "fpr": false_rate.tolist(),
                    "tpr": true_rate.tolist(),
                    "auc": float(auc(false_rate, true_rate)),
                }
                curves.append({"name": f"{self.classes[index]}{suffix}", **curve})
        return curves


def _refuse_one_class(names: Sequence[str], column: str, where: str) -> None:
    counts = Counter(names)
    if len(counts) < 2:
        raise DataError(
            f"label column {column!r} has one class in {where} ({', '.join(map(repr, counts)) or 'no bags'}); "
            f"expected at least two: check data.labels.target and task.merge, or use fewer folds"
        )


def _sum(first: Metric, second: Metric) -> Metric:
    if first.value is None or second.value is None:
        return Metric(None, first.reason if first.value is None else second.reason)
    return Metric(first.value + second.value, first.reason or second.reason)
