"""Classes of slides or patients: one of two or more by cross-entropy on C logits, or several yes-no labels at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from asmil.data.config import LabelColumns
from asmil.engine.protocols import BagReader, Monitor, Task
from asmil.errors import DataError
from tasks.classification_fitted import FittedClasses, PreparedClassification
from tasks.labels import class_indices, class_list, class_names, configured
from tasks.multilabel import Multilabel
from tasks.settings import TaskSettings

__all__ = ["Classification", "ClassificationConfig", "PreparedClassification"]

ClassName = Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]


class ClassificationConfig(TaskSettings):
    """One of several classes per bag, or with `multilabel` several labels that are each present or not.

    Attributes:
        classes: The classes in the order of the outputs; of two, the second is the positive one. None takes those of
            the training part, numbers in order, then text in order.
        merge: Label in the table to the class it belongs to; labels that are not listed stay as they are.
        multilabel: Columns of labels that are 0, 1 or missing, in place of `data.labels.target`, `classes` and `merge`.
        class_weights: `balanced` weighs each class by the inverse of its share of the training bags; with `multilabel`
            presence and absence of each label.
        threshold: `fixed` answers the most probable class (a label where its probability is above 0.5); `validation`
            the positive of two classes, or a label, above the threshold with the best F1 on the validation part.
        temperature: `validation` divides the logits by the temperature with the least log loss on the validation part.
        monitor: Validation metric that selects epochs and configurations; the sum is the ASMIL authors' choice.

    What is fitted on the validation part is fitted once, after a refit that did not train on that part, whatever the
    epoch rule; validation figures themselves, and thus all selection, are without it.
    """

    kind: Literal["classification"] = "classification"
    classes: tuple[ClassName, ...] | None = Field(default=None, min_length=2)
    merge: dict[ClassName, ClassName] | None = None
    multilabel: tuple[ClassName, ...] | None = Field(default=None, min_length=1)
    class_weights: Literal["none", "balanced"] = "none"
    threshold: Literal["fixed", "validation"] = "fixed"
    temperature: Literal["none", "validation"] = "none"
    monitor: Literal["macro_auc", "macro_f1", "macro_f1+macro_auc", "balanced_accuracy", "accuracy"] = "macro_auc"

    @property
    def needs_validation(self) -> bool:
        """Something is fitted on the validation part."""
        return "validation" in (self.threshold, self.temperature)

    @model_validator(mode="after")
    def _classes_agree(self) -> ClassificationConfig:
        if self.classes is None:
            return self
        _refuse_repeated("classes", self.classes)
        unknown = sorted(set((self.merge or {}).values()) - set(self.classes))
        if unknown:
            raise ValueError(f"merge leads to {', '.join(unknown)}, which classes does not list")
        if self.threshold == "validation" and len(self.classes) > 2:
            raise ValueError(
                f"threshold: validation needs two classes, got {len(self.classes)}; of more, the most probable one is "
                "answered, so leave threshold at fixed"
            )
        return self

    @model_validator(mode="after")
    def _one_of_two_kinds(self) -> ClassificationConfig:
        if self.multilabel is None:
            return self
        _refuse_repeated("multilabel", self.multilabel)
        if self.classes is not None or self.merge is not None:
            raise ValueError("multilabel names columns of 0 and 1, which have no classes and no merge: leave those out")
        return self

    def build(self, columns: LabelColumns) -> Task:
        """The task on these label columns."""
        if self.multilabel is not None:
            return Multilabel(self, self.multilabel)
        return Classification(self, columns)


@dataclass(frozen=True, order=True)
class _Stratum:
    """A class as a stratum; of a patient's slides the class that comes last counts."""

    rank: int
    name: str = field(compare=False)

    def __repr__(self) -> str:
        return repr(self.name)


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
        self.needs_validation = config.needs_validation
        self._config = config
        self._column = configured(columns.target, "target", config.kind)

    def check(self, labels: pd.DataFrame) -> None:
        """Refuse labels that are missing, outside the configured classes, or all of one class."""
        names = self._names(labels)
        _refuse_one_class(names, self._column, "the cohort")
        class_indices(labels, names, self._classes(names))

    def strata(self, labels: pd.DataFrame) -> Sequence[_Stratum]:
        """Splits keep the shares of the classes, which are ordered as the outputs are."""
        names = self._names(labels)
        rank = {name: index for index, name in enumerate(self._config.classes or class_list(names))}
        return [_Stratum(rank[name], name) for name in names]

    def prepare(self, train_labels: pd.DataFrame, train_bags: BagReader) -> PreparedClassification:
        """Fit class list and class weights on the training part; features are not read.

        Raises:
            DataError: Wrong labels, one class, or a configured class without training bags.
        """
        names = self._names(train_labels)
        _refuse_one_class(names, self._column, "the training fold")
        classes = self._classes(names)
        counts = np.bincount(class_indices(train_labels, names, classes), minlength=len(classes))
        absent = [name for name, count in zip(classes, counts, strict=True) if count == 0]
        if absent:
            raise DataError(
                f"no bag of class {', '.join(map(repr, absent))} in the training fold ({len(names)} bags); it cannot "
                f"be learned: use fewer folds, or drop or merge the class under task.classes and task.merge"
            )
        weights = len(names) / (len(classes) * counts) if self._config.class_weights == "balanced" else None
        return PreparedClassification(self._config, self._column, FittedClasses(classes, weights))

    def restore(self, state: Mapping[str, Any]) -> PreparedClassification:
        """The prepared task of a checkpoint; its own classes hold, not those configured now."""
        config = ClassificationConfig.model_validate(state["config"])
        return PreparedClassification(config, self._column, FittedClasses.from_state(state))

    def _names(self, labels: pd.DataFrame) -> list[str]:
        return class_names(labels, self._column, self._config.merge)

    def _classes(self, names: Sequence[str]) -> tuple[str, ...]:
        """The configured classes, or those that occur.

        Raises:
            DataError: A threshold is to be fitted and there are more than two.
        """
        classes = self._config.classes or class_list(names)
        if self._config.threshold == "validation" and len(classes) > 2:
            raise DataError(
                f"label column {self._column!r} has the classes {', '.join(map(repr, classes))}, but task.threshold: "
                "validation needs two; set it to fixed, which answers the most probable class, or merge classes"
            )
        return classes


def _refuse_repeated(field_name: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError(f"{field_name} {', '.join(names)} are not distinct")


def _refuse_one_class(names: Sequence[str], column: str, where: str) -> None:
    counts = Counter(names)
    if len(counts) < 2:
        raise DataError(
            f"label column {column!r} has one class in {where} ({', '.join(map(repr, counts)) or 'no bags'}); "
            f"expected at least two: check data.labels.target and task.merge, or use fewer folds"
        )
