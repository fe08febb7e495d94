"""The classic MIL sets (MUSK, FOX, TIGER, ELEPHANT): small binary problems on standardized instance features.

The honest protocol of these sets: features standardized with the training instances alone, one logit, unweighted
binary cross-entropy, threshold 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from asmil.bags import BagBatch
from asmil.data.config import LabelColumns
from asmil.engine.protocols import BagReader, Figure, Monitor, Predictions, PreparedTask, Task
from asmil.errors import DataError
from asmil.metrics.classification import classification_metrics
from asmil.metrics.values import Metric
from asmil.nn.heads import HeadSpec
from tasks.intervals import accuracy_interval
from tasks.labels import class_indices, class_list, class_names, configured
from tasks.settings import TaskSettings

__all__ = ["Benchmark", "BenchmarkConfig", "PreparedBenchmark", "Scaling", "fit_scaling"]


class BenchmarkConfig(TaskSettings):
    """Positive or negative bags of a classic set.

    Attributes:
        monitor: Validation metric that selects epochs and configurations. The sets report accuracy, but a validation
            part has one or two dozen bags: most configurations tie on accuracy, the AUC has few steps and none at all
            on a part of one class, and one confidently wrong bag decides the log-likelihood. The Brier score is
            continuous, bounded, defined on every part, and best at the true probabilities, which is what the
            threshold of 0.5 needs.
    """

    kind: Literal["benchmark"] = "benchmark"
    monitor: Literal["brier", "accuracy", "auc"] = "brier"

    def build(self, columns: LabelColumns) -> Benchmark:
        """The task on these label columns."""
        return Benchmark(self, columns)


@dataclass(frozen=True)
class Scaling:
    """How features are standardized.

    Attributes:
        mean_D: What is subtracted from each column.
        deviation_D: What each column is divided by after that.
    """

    mean_D: np.ndarray
    deviation_D: np.ndarray


class Benchmark(Task):
    """The benchmark task, not fitted.

    Args:
        config: The `task` section.
        columns: Meaning of the label columns; `target` is needed.

    Raises:
        ConfigError: The column is not named.
    """

    def __init__(self, config: BenchmarkConfig, columns: LabelColumns) -> None:
        self.monitor = Monitor(config.monitor, "min" if config.monitor == "brier" else "max")
        self._config = config
        self._column = configured(columns.target, "target", config.kind)

    def check(self, labels: pd.DataFrame) -> None:
        """Refuse labels that are missing or not of exactly two classes."""
        self._two_classes(labels, "the cohort")

    def strata(self, labels: pd.DataFrame) -> Sequence[str]:
        """Splits keep the share of positive bags."""
        return class_names(labels, self._column)

    def prepare(self, train_labels: pd.DataFrame, train_bags: BagReader) -> PreparedBenchmark:
        """Fit the scaling on the instances of the training bags.

        Raises:
            DataError: Wrong labels, one class, or a feature column that is the label.
        """
        classes = self._two_classes(train_labels, "the training fold")
        positive_B = class_indices(train_labels, class_names(train_labels, self._column), classes).astype(bool)
        scaling = fit_scaling(train_bags, [str(bag_id) for bag_id in train_labels.index], positive_B)
        return PreparedBenchmark(self._config, self._column, classes, scaling)

    def restore(self, state: Mapping[str, Any]) -> PreparedBenchmark:
        """The prepared task of a checkpoint."""
        negative, positive = state["classes"]
        scaling = Scaling(*(np.asarray(state[name], dtype=np.float64) for name in ("mean", "deviation")))
        return PreparedBenchmark(
            BenchmarkConfig.model_validate(state["config"]), self._column, (negative, positive), scaling
        )

    def _two_classes(self, labels: pd.DataFrame, where: str) -> tuple[str, str]:
        classes = class_list(class_names(labels, self._column))
        if len(classes) != 2:
            raise DataError(
                f"label column {self._column!r} has the classes {', '.join(map(repr, classes)) or 'none'} in {where}; "
                f"expected two, negative and positive: use fewer folds, or task.kind classification for more classes"
            )
        return classes[0], classes[1]


class PreparedBenchmark(PreparedTask):
    """The benchmark task fitted on one training part.

    Args:
        config: The `task` section.
        column: Label column.
        classes: Negative and positive class.
        scaling: Standardization of the features.
    """

    def __init__(self, config: BenchmarkConfig, column: str, classes: tuple[str, str], scaling: Scaling) -> None:
        self.head = HeadSpec(1)
        self.classes = classes
        self.scaling = scaling
        self._config = config
        self._column = column
        self._mean_D = torch.from_numpy(scaling.mean_D).float()
        self._deviation_D = torch.from_numpy(scaling.deviation_D).float()

    def target(self, labels: pd.DataFrame) -> dict[str, Tensor]:
        """`label` float32 [B], 1 for positive bags."""
        return {"label": torch.from_numpy(self.truth(labels)["label"]).float()}

    def transform(self, batch: BagBatch) -> BagBatch:
        """The batch with standardized float32 features."""
        device = batch.features_MD.device
        centred_MD = batch.features_MD.float() - self._mean_D.to(device)
        return batch.with_features(centred_MD / self._deviation_D.to(device))

    def loss(self, logits_BC: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Binary cross-entropy of each bag, unweighted."""
        return functional.binary_cross_entropy_with_logits(
            logits_BC.squeeze(1).float(), target["label"], reduction="none"
        )

    def predict(self, logits_BC: Tensor) -> dict[str, Tensor]:
        """`probability` [B] that the bag is positive."""
        return {"probability": logits_BC.double().squeeze(1).sigmoid()}

    def truth(self, labels: pd.DataFrame) -> dict[str, np.ndarray]:
        """`label`: 1 for positive bags, 0 for negative ones."""
        return {"label": class_indices(labels, class_names(labels, self._column), self.classes)}

    def evaluate(self, predictions: Predictions) -> dict[str, Metric]:
        """`accuracy` at threshold 0.5, `auc`, and `brier`, the mean squared error of the probability.

        Raises:
            DataError: Non-finite probabilities (bags named).
        """
        positive_B, label_B = predictions.outputs["probability"], predictions.truth["label"]
        metrics = classification_metrics(
            np.stack([1 - positive_B, positive_B], axis=1), label_B, self.classes, bag_ids=predictions.bag_ids
        )
        brier = Metric(float(np.square(positive_B - label_B).mean())) if len(label_B) else Metric(None, "too_few")
        return {"accuracy": metrics["accuracy"], "auc": metrics["macro_auc"], "brier": brier}

    def intervals(self, predictions: Predictions) -> dict[str, Metric]:
        """`accuracy` with Wilson's interval."""
        accuracy = self.evaluate(predictions)["accuracy"]
        correct_B = (predictions.outputs["probability"] > 0.5) == predictions.truth["label"]
        return {"accuracy": Metric(accuracy.value, accuracy.reason, accuracy_interval(correct_B, predictions.groups))}

    def figures(self, predictions: Sequence[Predictions]) -> tuple[Figure, ...]:
        """The accuracy of each fold; the title says what always answering the more frequent class would give."""
        folds = [fold for fold in predictions if fold.bag_ids]
        if not folds:
            return ()
        share = np.concatenate([fold.truth["label"] for fold in folds]).mean()
        data = {
            "labels": [f"fold {number}" for number in range(len(folds))],
            "values": [self.evaluate(fold)["accuracy"].value for fold in folds],
        }
        return (Figure("bars", f"Accuracy of each test fold (majority class: {max(share, 1 - share):.3f})", data),)

    def calibrate(self, train: Predictions) -> PreparedBenchmark:
        """This task: nothing is fitted on predictions."""
        return self

    def to_state(self) -> dict[str, Any]:
        """Classes and scaling, and the settings."""
        return {
            "kind": self._config.kind,
            "config": self._config.model_dump(mode="json"),
            "classes": list(self.classes),
            "mean": self.scaling.mean_D.tolist(),
            "deviation": self.scaling.deviation_D.tolist(),
        }


def fit_scaling(bags: BagReader, bag_ids: Sequence[str], positive_B: np.ndarray) -> Scaling:
    """Mean and deviation of each feature over the instances of some bags, in float64 and one pass.

    Columns that are constant over these instances are left alone.

    Args:
        bags: Reads the bags.
        bag_ids: Bags to fit on; no others are read.
        positive_B: Which of them are positive.

    Returns:
        The scaling.

    Raises:
        DataError: A column holds one value in all positive and another in all negative bags: it is the label.
    """
    count, mean_D, squares_D = 0, np.zeros(1), np.zeros(1)
    low_2D, high_2D = np.full((2, 1), np.inf), np.full((2, 1), -np.inf)
    for bag_id, positive in zip(bag_ids, positive_B.astype(int).tolist(), strict=True):
        features_ND = bags.read(bag_id).features_ND.double().numpy()
        if count == 0:
            low_2D, high_2D = (np.repeat(extreme, features_ND.shape[1], axis=1) for extreme in (low_2D, high_2D))
        bag_mean_D, total = features_ND.mean(axis=0), count + len(features_ND)
        step_D = bag_mean_D - mean_D
        squares_D = squares_D + np.square(features_ND - bag_mean_D).sum(axis=0)
        squares_D = squares_D + np.square(step_D) * count * len(features_ND) / total
        mean_D, count = mean_D + step_D * len(features_ND) / total, total
        low_2D[positive] = np.minimum(low_2D[positive], features_ND.min(axis=0))
        high_2D[positive] = np.maximum(high_2D[positive], features_ND.max(axis=0))
    _refuse_label_column(low_2D, high_2D)
    constant_D = low_2D.min(axis=0) == high_2D.max(axis=0)
    deviation_D = np.sqrt(squares_D / count)
    return Scaling(np.where(constant_D, 0.0, mean_D), np.where(constant_D, 1.0, deviation_D))


def _refuse_label_column(low_2D: np.ndarray, high_2D: np.ndarray) -> None:
    is_label_D = (low_2D == high_2D).all(axis=0) & (low_2D[0] != low_2D[1])
    if is_label_D.any():
        column = int(np.flatnonzero(is_label_D)[0])
        raise DataError(
            f"feature column {column} is {low_2D[0, column]:g} in every instance of negative training bags and "
            f"{low_2D[1, column]:g} in every one of positive bags: it is the label; drop it when packing the store"
        )
