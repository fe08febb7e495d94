"""Several labels per bag, each present, absent or unknown: binary cross-entropy on one logit per label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn import functional

from asmil.bags import BagBatch
from asmil.engine.protocols import BagReader, Figure, Monitor, Predictions, PreparedTask, Task
from asmil.errors import DataError
from asmil.metrics.calibration import DEFAULT_THRESHOLD, FittedNumber, best_temperature, best_threshold, log_loss
from asmil.metrics.multilabel import multilabel_details, multilabel_metrics
from asmil.metrics.values import Metric
from asmil.nn.heads import HeadSpec
from tasks.classification_fitted import MEANINGS, roc_curves, with_sum
from tasks.intervals import with_intervals
from tasks.labels import label_column, name_some

if TYPE_CHECKING:
    from tasks.classification import ClassificationConfig

__all__ = ["Multilabel", "PreparedMultilabel"]

LEAST_GROUPS = 10


class Multilabel(Task):
    """The multilabel task, not fitted.

    Args:
        config: The `task` section.
        columns: Columns of the labels.
    """

    def __init__(self, config: ClassificationConfig, columns: Sequence[str]) -> None:
        self.monitor = Monitor(config.monitor, "max")
        self.needs_validation = config.needs_validation
        self._config = config
        self._columns = tuple(columns)

    def check(self, labels: pd.DataFrame) -> None:
        """Refuse values other than 0, 1 and missing, bags without a known label, and labels that never vary."""
        values_BL = read_labels(labels, self._columns)
        unknown_B = np.isnan(values_BL).all(axis=1)
        if unknown_B.any():
            raise DataError(
                f"task.multilabel: {name_some(labels.index, unknown_B)} has none of the labels "
                f"{', '.join(self._columns)}; remove these rows, nothing can be learned or measured on them"
            )
        _refuse_constant(values_BL, self._columns, "the cohort")

    def strata(self, labels: pd.DataFrame) -> Sequence[int]:
        """Splits keep the shares of bags by the rarest label they have, labels of few groups counting as the next.

        Returns:
            0 for bags without a label, else the place of the label from the most common one, 1, on.
        """
        present_BL = read_labels(labels, self._columns) == 1
        order = np.argsort(-present_BL.sum(axis=0), kind="stable")
        rank_B = (present_BL[:, order] * np.arange(1, len(order) + 1)).max(axis=1)
        for rank in range(len(order), 0, -1):
            if labels["group"][rank_B == rank].nunique() < LEAST_GROUPS:
                rank_B[rank_B == rank] = rank - 1
        if labels["group"][rank_B == 0].nunique() < LEAST_GROUPS and (rank_B > 0).any():
            rank_B[rank_B == 0] = rank_B[rank_B > 0].min()
        return [int(rank) for rank in rank_B]

    def prepare(self, train_labels: pd.DataFrame, train_bags: BagReader) -> PreparedMultilabel:
        """Fit the weights of presence and absence on the training part; features are not read.

        Raises:
            DataError: Wrong labels, or one that never varies in the training part.
        """
        values_BL = read_labels(train_labels, self._columns)
        _refuse_constant(values_BL, self._columns, "the training fold")
        weights = None
        if self._config.class_weights == "balanced":
            counts_2L = np.stack([(values_BL == value).sum(axis=0) for value in (0, 1)])
            weights = counts_2L.sum(axis=0) / (2 * counts_2L)
        return PreparedMultilabel(self._config, FittedLabels(self._columns, weights))

    def restore(self, state: Mapping[str, Any]) -> PreparedMultilabel:
        """The prepared task of a checkpoint."""
        return PreparedMultilabel(type(self._config).model_validate(state["config"]), FittedLabels.from_state(state))


@dataclass(frozen=True)
class FittedLabels:
    """What the training part determines, and what the validation part does.

    Attributes:
        names: The L labels, which are columns of the label table.
        weights_2L: Weight in the loss where a label is absent, and where it is present; None for none.
        temperature: What all logits are divided by; None for 1.
        thresholds: Of each label; None for 0.5.
    """

    names: tuple[str, ...]
    weights_2L: np.ndarray | None = None
    temperature: FittedNumber | None = None
    thresholds: tuple[FittedNumber, ...] | None = None

    def to_state(self) -> dict[str, Any]:
        """As JSON-serialisable data."""
        return {
            "labels": list(self.names),
            "label_weights": None if self.weights_2L is None else self.weights_2L.tolist(),
            "temperature": self.temperature and vars(self.temperature),
            "thresholds": self.thresholds and [vars(threshold) for threshold in self.thresholds],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> FittedLabels:
        """What `to_state` gave."""
        weights, thresholds = state["label_weights"], state["thresholds"]
        return cls(
            names=tuple(state["labels"]),
            weights_2L=None if weights is None else np.asarray(weights, dtype=np.float64),
            temperature=state["temperature"] and FittedNumber(**state["temperature"]),
            thresholds=thresholds and tuple(FittedNumber(**threshold) for threshold in thresholds),
        )


class PreparedMultilabel(PreparedTask):
    """The multilabel task fitted on one training part.

    Args:
        config: The `task` section.
        fitted: What was fitted.
    """

    def __init__(self, config: ClassificationConfig, fitted: FittedLabels) -> None:
        self.head = HeadSpec(len(fitted.names))
        self.fitted = fitted
        self.meanings = _meanings(fitted.names)
        self._config = config

    def target(self, labels: pd.DataFrame) -> dict[str, Tensor]:
        """`label` float32 [B, L], 0 where it is unknown, and `known` bool [B, L]."""
        values_BL = torch.from_numpy(self.truth(labels)["label"])
        return {"label": values_BL.nan_to_num(0.0).float(), "known": ~values_BL.isnan()}

    def transform(self, batch: BagBatch) -> BagBatch:
        """The batch as it is."""
        return batch

    def loss(self, logits_BC: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Binary cross-entropy of each bag: sum over its known labels, weighted, divided by the number of all labels.

        Every known entry thus counts the same, whichever bag it belongs to.
        """
        label_BL, known_BL = target["label"], target["known"].float()
        weight_BL = known_BL
        if self.fitted.weights_2L is not None:
            absent_L, present_L = logits_BC.new_tensor(self.fitted.weights_2L).float()
            weight_BL = known_BL * torch.where(label_BL > 0, present_L, absent_L)
        loss_BL = functional.binary_cross_entropy_with_logits(logits_BC.float(), label_BL, reduction="none")
        return (loss_BL * weight_BL).mean(dim=1)

    def predict(self, logits_BC: Tensor) -> dict[str, Tensor]:
        """Probabilities and answers.

        Returns:
            `probabilities` [B, L]; `predicted` [B, L], 1 or 0; `logits` [B, L] while a temperature is still to be
            fitted to them.
        """
        temperature = self.fitted.temperature
        probabilities_BL = (logits_BC.double() / (1.0 if temperature is None else temperature.value)).sigmoid()
        cuts_L = [cut.value for cut in self.fitted.thresholds or [FittedNumber(DEFAULT_THRESHOLD)] * self.head.out_dim]
        found = {
            "probabilities": probabilities_BL,
            "predicted": (probabilities_BL > probabilities_BL.new_tensor(cuts_L)).double(),
        }
        if temperature is None and self._config.temperature == "validation":
            found["logits"] = logits_BC.double()
        return found

    def truth(self, labels: pd.DataFrame) -> dict[str, np.ndarray]:
        """`label` [B, L]: 1, 0 or NaN where it is unknown."""
        return {"label": read_labels(labels, self.fitted.names)}

    def evaluate(self, predictions: Predictions) -> dict[str, Metric]:
        """What `multilabel_metrics` gives, and the monitored sum if there is one.

        Raises:
            DataError: Non-finite probabilities (bags named).
        """
        return with_sum(self._measure(predictions, np.arange(len(predictions.bag_ids))), self._config.monitor)

    def intervals(self, predictions: Predictions) -> dict[str, Metric]:
        """`accuracy`, `macro_auc` and `macro_f1` with 95 % intervals; labels of a bag are resampled together."""
        return with_intervals(
            lambda rows: self._measure(predictions, rows), ["accuracy", "macro_auc", "macro_f1"], predictions.groups
        )

    def details(self, predictions: Predictions) -> dict[str, Metric]:
        """What `multilabel_details` lists, and `temperature` and `threshold[label]` where they were fitted."""
        found = multilabel_details(*_arrays(predictions), self.fitted.names)
        if self.fitted.temperature is not None:
            found["temperature"] = self.fitted.temperature.metric
        cuts = zip(self.fitted.names, self.fitted.thresholds or (), strict=False)
        return found | {f"threshold[{name}]": cut.metric for name, cut in cuts}

    def figures(self, predictions: Sequence[Predictions]) -> tuple[Figure, ...]:
        """ROC curves of each fold and label, and the F1 of each label over all folds."""
        if not predictions:
            return ()
        names = self.fitted.names
        scores = [{name: _known(fold, column) for column, name in enumerate(names)} for fold in predictions]
        pooled = [np.concatenate(parts) for parts in zip(*map(_arrays, predictions), strict=True)]
        found = multilabel_details(pooled[0], pooled[1], pooled[2], names)
        bars = {"labels": list(names), "values": [found[f"f1[{name}]"].value for name in names]}
        return (
            Figure("roc", "Receiver operating characteristic of each label", {"curves": roc_curves(scores)}),
            Figure("bars", "F1 of each label", bars),
        )

    def calibrate_on_validation(self, validation: Predictions) -> PreparedMultilabel:
        """The task with one temperature and the thresholds, as far as they are asked for.

        A label that is all present or all absent there keeps 0.5, and the temperature 1 if all known entries agree.
        """
        fitted, label_BL = self.fitted, validation.truth["label"]
        known_BL, probabilities_BL = np.isfinite(label_BL), validation.outputs["probabilities"]
        if self._config.temperature == "validation":
            temperature = _fit_temperature(validation.outputs["logits"][known_BL], label_BL[known_BL].astype(np.int64))
            fitted = replace(fitted, temperature=temperature)
            probabilities_BL = expit(validation.outputs["logits"] / temperature.value)
        if self._config.threshold == "validation":
            cuts = tuple(
                best_threshold(score_B[known_B], label_B[known_B] == 1, "f1")
                for score_B, label_B, known_B in zip(probabilities_BL.T, label_BL.T, known_BL.T, strict=True)
            )
            fitted = replace(fitted, thresholds=cuts)
        return PreparedMultilabel(self._config, fitted)

    def to_state(self) -> dict[str, Any]:
        """Everything fitted, and the settings that give outputs their meaning."""
        return {
            "kind": self._config.kind,
            "config": self._config.model_dump(mode="json"),
            **self.fitted.to_state(),
        }

    def _measure(self, predictions: Predictions, rows: np.ndarray) -> dict[str, Metric]:
        bag_ids = [predictions.bag_ids[row] for row in rows]
        return multilabel_metrics(*(array[rows] for array in _arrays(predictions)), bag_ids=bag_ids)


def read_labels(labels: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Label columns as float64 [B, L]: 1, 0 or NaN where a value is missing.

    Raises:
        DataError: A column is missing, or holds other values (bags named).
    """
    return np.stack([_read_label(labels, column) for column in columns], axis=1)


def _read_label(labels: pd.DataFrame, column: str) -> np.ndarray:
    if column not in labels.columns:
        present = ", ".join(str(name) for name in labels.columns)
        raise DataError(
            f"task.multilabel: the label table has no column {column!r}; it has: {present}. With data.bag: patient it "
            "keeps only the columns that agree on all slides of each patient"
        )
    values = label_column(labels, column, "multilabel")
    missing_B = values.isna().to_numpy(dtype=bool)
    found_B = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    broken_B = ~missing_B & ~np.isin(found_B, (0, 1))
    if broken_B.any():
        raise DataError(
            f"label column {column!r} holds {values[broken_B].tolist()[0]!r} for {name_some(labels.index, broken_B)}; "
            f"task.multilabel expects 1 (present), 0 (absent) or nothing (unknown), so correct these rows"
        )
    return np.asarray(np.where(missing_B, np.nan, found_B))


def _refuse_constant(values_BL: np.ndarray, columns: Sequence[str], where: str) -> None:
    for values_B, column in zip(values_BL.T, columns, strict=True):
        present, absent = int((values_B == 1).sum()), int((values_B == 0).sum())
        if not present or not absent:
            raise DataError(
                f"label column {column!r} has {present} bags with and {absent} without the label in {where}; expected "
                f"some of both: leave it out of task.multilabel, or use fewer folds"
            )


def _fit_temperature(logits_E: np.ndarray, label_E: np.ndarray) -> FittedNumber:
    """Temperature of known entries E."""
    if len(np.unique(label_E)) < 2:
        return FittedNumber(1.0, "one_class")

    def loss(temperature: float) -> float:
        positive_E = expit(logits_E / temperature)
        return log_loss(np.stack([expit(-logits_E / temperature), positive_E], axis=1), label_E)

    return best_temperature(loss)


def _arrays(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, truth and answers, each [B, L]."""
    outputs = predictions.outputs
    return outputs["probabilities"], predictions.truth["label"], outputs["predicted"]


def _known(fold: Predictions, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and truth of a label where it is known."""
    label_B = fold.truth["label"][:, column]
    known_B = np.isfinite(label_B)
    return fold.outputs["probabilities"][known_B, column], label_B[known_B] == 1


def _meanings(names: Sequence[str]) -> dict[str, str]:
    overall = {
        "micro_f1": "F1 of all labels together",
        "micro_auc": "AUC of all labels together",
        "exact_match": "bags with every known label right",
    }
    words = {"f1": "F1", "precision": "precision", "sensitivity": "sensitivity", "specificity": "specificity"}
    words |= {"auc": "AUC", "threshold": "threshold, fitted on validation bags,"}
    return MEANINGS | overall | {f"{key}[{name}]": f"{word} of {name}" for name in names for key, word in words.items()}
