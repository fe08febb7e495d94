"""What the training engine asks of a task, and the plain data that passes between engine, tasks and reports.

The engine knows no task by name. A task is fitted on the training part of a split and yields a `PreparedTask`, which
owns everything fitted (bins, class list, weights, scaling) and travels in every checkpoint as plain data.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from torch import Tensor

from asmil.bags import Bag, BagBatch
from asmil.metrics.values import Metric
from asmil.nn.heads import HeadSpec

__all__ = ["BagReader", "Baseline", "Figure", "Monitor", "Predictions", "PreparedTask", "Task"]


@dataclass(frozen=True)
class Monitor:
    """The validation metric that selects epochs and configurations.

    Attributes:
        metric: A key of what `PreparedTask.evaluate` returns.
        direction: Whether more or less of it is better.
    """

    metric: str
    direction: Literal["max", "min"]

    def better(self, value: float, than: float) -> bool:
        """Whether `value` is strictly better than `than`."""
        return value > than if self.direction == "max" else value < than


@dataclass(frozen=True)
class Predictions:
    """Outputs and truth of a set of bags, as arrays whose first axis runs over the bags.

    Attributes:
        bag_ids: The bags.
        groups: Group (patient) of each bag, the unit of resampling.
        outputs: What `PreparedTask.predict` returned, by name.
        truth: Label columns the task evaluates against, by name.
    """

    bag_ids: tuple[str, ...]
    groups: tuple[str, ...]
    outputs: Mapping[str, np.ndarray]
    truth: Mapping[str, np.ndarray]

    def take(self, rows: np.ndarray) -> Predictions:
        """The bags with these row numbers, repeated where a number is."""
        return Predictions(
            bag_ids=tuple(self.bag_ids[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            outputs={name: values[rows] for name, values in self.outputs.items()},
            truth={name: values[rows] for name, values in self.truth.items()},
        )


@dataclass(frozen=True)
class Baseline:
    """What a simpler method that a task brings along predicts for the same bags.

    Attributes:
        name: The method, for tables.
        predictions: Its outputs beside the same truth; they may lack what the method cannot give.
    """

    name: str
    predictions: Predictions


@dataclass(frozen=True)
class Figure:
    """A figure of the report as plain data; `asmil.report.plots` draws it by kind.

    Attributes:
        kind: `kaplan_meier`, `roc`, `confusion` or `bars`.
        title: What the reader sees above it.
        data: JSON-serialisable content, its keys fixed by the kind.
    """

    kind: str
    title: str
    data: Mapping[str, Any]


class BagReader(Protocol):
    """Reads bags by id; what a task may fit feature statistics from."""

    def read(self, bag_id: str) -> Bag:
        """The bag, checked against its checksum."""
        ...


class PreparedTask(Protocol):
    """A task fitted on one training part.

    Attributes:
        head: The head it needs.
        couples_bags: The loss of a bag depends on the other bags of the step: `loss` is given all of them at once.
        meanings: What the names that `details` returns stand for, in the words of a table.
    """

    head: HeadSpec
    couples_bags: bool = False
    meanings: Mapping[str, str] = MappingProxyType({})

    def target(self, labels: pd.DataFrame) -> dict[str, Tensor]:
        """Training targets of the rows of a label frame; tensors whose first axis runs over the rows."""
        ...

    def can_step(self, target: Mapping[str, Tensor]) -> bool:
        """Whether bags with these targets have anything to train on; if not, they join the bags of the next step."""
        return True

    def transform(self, batch: BagBatch) -> BagBatch:
        """The batch the model sees: features scaled as fitted, or unchanged."""
        ...

    def loss(self, logits_BC: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Loss of each bag, shape [B], in float32."""
        ...

    def predict(self, logits_BC: Tensor) -> dict[str, Tensor]:
        """Predictions of each bag, by name; float64 tensors whose first axis runs over the bags."""
        ...

    def truth(self, labels: pd.DataFrame) -> dict[str, np.ndarray]:
        """What `evaluate` compares predictions with, from the rows of a label frame."""
        ...

    def evaluate(self, predictions: Predictions) -> dict[str, Metric]:
        """Metrics of a set of bags."""
        ...

    def intervals(self, predictions: Predictions) -> dict[str, Metric]:
        """The headline metrics again, with 95 % intervals; slower than `evaluate`."""
        ...

    def details(self, predictions: Predictions) -> dict[str, Metric]:
        """Further metrics, for the record of a result; slower than `evaluate`, and never selected on."""
        return {}

    def baseline(self, predictions: Predictions) -> Baseline | None:
        """What the task's own simpler method predicts, fitted on the same training part; None if it has none."""
        return None

    def figures(self, predictions: Sequence[Predictions]) -> tuple[Figure, ...]:
        """The task's own figures, from the predictions of one or several test folds."""
        ...

    def calibrate(self, train: Predictions) -> PreparedTask:
        """The task with what can only be fitted on a trained model's predictions: cuts and thresholds.

        The engine calls it once after training and predicts, stores and exports with the task it returns.

        Args:
            train: Predictions of the bags the model was trained on, and of no others.

        Returns:
            A new prepared task, or this one if there is nothing to fit.
        """
        return self

    def calibrate_on_validation(self, validation: Predictions) -> PreparedTask:
        """The task with what must be fitted on bags that the model was not trained on: temperatures, thresholds.

        Called after `calibrate`, and only if the task says `needs_validation`.

        Args:
            validation: Predictions of the inner validation bags, which the refit then does not train on.

        Returns:
            A new prepared task, or this one if there is nothing to fit.
        """
        return self

    def to_state(self) -> dict[str, Any]:
        """Everything fitted, as JSON-serialisable data."""
        ...


class Task(Protocol):
    """What is predicted. Built from the `task` section and the label columns; knows nothing fitted.

    Attributes:
        monitor: The validation metric that selects.
        needs_validation: Something is fitted on the inner validation part, so a refit leaves that part out.
    """

    monitor: Monitor
    needs_validation: bool = False

    def check(self, labels: pd.DataFrame) -> None:
        """Refuse labels the task cannot work with (missing column, wrong values), naming the bags."""
        ...

    def strata(self, labels: pd.DataFrame) -> Sequence[Hashable]:
        """The stratum of each row, for splitting."""
        ...

    def prepare(self, train_labels: pd.DataFrame, train_bags: BagReader) -> PreparedTask:
        """Fit on the training part."""
        ...

    def restore(self, state: Mapping[str, Any]) -> PreparedTask:
        """The prepared task whose `to_state` gave `state`."""
        ...
