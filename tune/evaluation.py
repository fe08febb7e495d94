"""What the outer folds of a search gave, as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from asmil.evaluation import Evaluation, mean_metrics, metrics_tree
from asmil.experiment import Experiment
from asmil.metrics.values import Metric
from tune.rundir import OuterFold
from tune.study import VALIDATION, SearchStudy

__all__ = ["FoldOutcome", "mean_validation", "oracle_metrics", "single_models"]


@dataclass(frozen=True)
class FoldOutcome:
    """What one outer fold gave.

    Attributes:
        fold: The outer fold.
        study: Its closed study.
        best: The best configuration, one evaluation per seed.
        plain: The same without anchor; empty if the best configuration has none.
    """

    fold: OuterFold
    study: SearchStudy
    best: tuple[Evaluation, ...]
    plain: tuple[Evaluation, ...]


def single_models(fold: OuterFold, evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """The metrics of each model of an outer fold by itself, as JSON."""
    return [
        {
            "repeat": fold.repeat,
            "fold": fold.fold,
            "seed": one.seed,
            "metrics": metrics_tree(one.prepared.evaluate(one.predictions)),
            "details": metrics_tree(one.prepared.details(one.predictions)),
        }
        for one in evaluations
    ]


def oracle_metrics(experiment: Experiment, outcomes: Sequence[FoldOutcome]) -> Mapping[str, Metric]:
    """Metrics of a simulation's truth in place of the predictions, on the same test bags; empty for real data."""
    columns = experiment.cohort.store.info.facts.get("oracle_outputs", {})
    each = []
    for outcome in outcomes if columns else ():
        one = outcome.best[0]
        frame = experiment.cohort.frame(one.predictions.bag_ids)
        truth = {name: frame[column].to_numpy(dtype=np.float64) for name, column in columns.items()}
        each.append(one.prepared.evaluate(replace(one.predictions, outputs={**one.predictions.outputs, **truth})))
    return mean_metrics(each) if each else {}


def mean_validation(outcomes: Sequence[FoldOutcome]) -> dict[str, Metric]:
    """Validation metrics of the best trials, averaged over outer folds."""
    trials = [best for outcome in outcomes if (best := outcome.study.best()) is not None]
    names = trials[0].user_attrs[VALIDATION]
    return mean_metrics({name: Metric(trial.user_attrs[VALIDATION].get(name)) for name in names} for trial in trials)
