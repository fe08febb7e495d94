"""Refitted models on their test parts: what each predicted, and figures over seeds and folds with intervals."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from asmil.engine.protocols import Predictions, PreparedTask
from asmil.errors import IntegrityError
from asmil.experiment import Experiment, metrics_tree
from asmil.metrics.values import Metric
from asmil.storage import publish_bytes
from tasks.intervals import with_intervals
from tune.rundir import OuterFold
from tune.study import VALIDATION, SearchStudy

__all__ = [
    "Evaluation",
    "FoldOutcome",
    "load_predictions",
    "mean_validation",
    "mean_with_intervals",
    "oracle_metrics",
    "save_predictions",
    "single_models",
]

OUTPUT, TRUTH = "output.", "truth."


@dataclass(frozen=True)
class Evaluation:
    """One refitted model on the test part of its outer fold.

    Attributes:
        seed: Its training seed.
        prepared: Its fitted task.
        predictions: Its predictions.
        attention_jsd: Epoch and divergence of the attention from the epoch before.
    """

    seed: int
    prepared: PreparedTask
    predictions: Predictions
    attention_jsd: tuple[tuple[int, float], ...]


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


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions as arrays of an `.npz` file: `bag_ids`, `groups`, `output.<name>` and `truth.<name>`."""
    arrays: dict[str, Any] = {
        "bag_ids": np.array(predictions.bag_ids, dtype=str),
        "groups": np.array(predictions.groups, dtype=str),
    }
    arrays |= {OUTPUT + name: values for name, values in predictions.outputs.items()}
    arrays |= {TRUTH + name: values for name, values in predictions.truth.items()}
    assert not any(values.dtype.hasobject for values in arrays.values()), "tasks give numbers"
    content = io.BytesIO()
    np.savez(content, **arrays)
    publish_bytes(path, content.getvalue())


def load_predictions(path: Path) -> Predictions:
    """Read what `save_predictions` wrote.

    Raises:
        IntegrityError: The file is damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        ids, groups = arrays["bag_ids"].tolist(), arrays["groups"].tolist()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{path}: damaged predictions ({error}); restore the file from a copy") from None

    def below(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}

    return Predictions(tuple(ids), tuple(groups), below(OUTPUT), below(TRUTH))


def single_models(fold: OuterFold, evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """The metrics of each model of an outer fold by itself, as JSON."""
    return [
        {
            "repeat": fold.repeat,
            "fold": fold.fold,
            "seed": one.seed,
            "metrics": metrics_tree(one.prepared.evaluate(one.predictions)),
        }
        for one in evaluations
    ]


def mean_with_intervals(
    folds: Sequence[Sequence[Evaluation]], *, minus: Sequence[Sequence[Evaluation]] = (), pooled: bool
) -> dict[str, Metric]:
    """Mean over seeds and folds of every metric, with intervals from resampled patients.

    Args:
        folds: Per outer fold, one evaluation per seed.
        minus: The same for another configuration, whose means are subtracted.
        pooled: Patients occur in several folds (repeats) and are drawn with all their rows; else within their fold.
    """
    firsts = [evaluations[0].predictions for evaluations in folds]
    groups = [group for predictions in firsts for group in predictions.groups]
    fold_R = np.repeat(np.arange(len(firsts)), [len(predictions.groups) for predictions in firsts])
    start_R = np.concatenate([np.arange(len(predictions.groups)) for predictions in firsts])

    def measure(rows: np.ndarray) -> dict[str, Metric]:
        per_fold = [start_R[rows[fold_R[rows] == fold]] for fold in range(len(folds))]
        ours = _mean(_mean_over_seeds(e, part) for e, part in zip(folds, per_fold, strict=True))
        if not minus:
            return ours
        theirs = _mean(_mean_over_seeds(e, part) for e, part in zip(minus, per_fold, strict=True))
        return {name: _subtract(ours[name], theirs[name]) for name in ours}

    names = list(measure(np.arange(len(groups))))
    return with_intervals(measure, names, groups, strata=None if pooled else fold_R.tolist())


def _mean_over_seeds(evaluations: Sequence[Evaluation], rows: np.ndarray) -> dict[str, Metric]:
    return _mean(one.prepared.evaluate(_take(one.predictions, rows)) for one in evaluations)


def _mean(each: Iterable[Mapping[str, Metric]]) -> dict[str, Metric]:
    """Mean of each metric; without a value, and with the reason, if one of them has none."""
    listed = list(each)
    means = {}
    for name in listed[0]:
        values = [metrics[name].value for metrics in listed]
        known = [value for value in values if value is not None]
        reason = next((metrics[name].reason for metrics in listed if metrics[name].reason), None)
        means[name] = Metric(math.fsum(known) / len(known) if len(known) == len(values) else None, reason)
    return means


def _subtract(ours: Metric, theirs: Metric) -> Metric:
    known = ours.value is not None and theirs.value is not None
    return Metric(ours.value - theirs.value if known else None, ours.reason or theirs.reason)  # type: ignore[operator]


def _take(predictions: Predictions, rows: np.ndarray) -> Predictions:
    return Predictions(
        bag_ids=tuple(predictions.bag_ids[row] for row in rows),
        groups=tuple(predictions.groups[row] for row in rows),
        outputs={name: values[rows] for name, values in predictions.outputs.items()},
        truth={name: values[rows] for name, values in predictions.truth.items()},
    )


def oracle_metrics(experiment: Experiment, outcomes: Sequence[FoldOutcome]) -> Mapping[str, Metric]:
    """Metrics of a simulation's truth in place of the predictions, on the same test bags; empty for real data."""
    columns = experiment.cohort.store.info.facts.get("oracle_outputs", {})
    each = []
    for outcome in outcomes if columns else ():
        one = outcome.best[0]
        frame = experiment.cohort.frame(one.predictions.bag_ids)
        truth = {name: frame[column].to_numpy(dtype=np.float64) for name, column in columns.items()}
        each.append(one.prepared.evaluate(replace(one.predictions, outputs={**one.predictions.outputs, **truth})))
    return _mean(each) if each else {}


def mean_validation(outcomes: Sequence[FoldOutcome]) -> dict[str, Metric]:
    """Validation metrics of the best trials, averaged over outer folds."""
    trials = [best for outcome in outcomes if (best := outcome.study.best()) is not None]
    names = trials[0].user_attrs[VALIDATION]
    return _mean({name: Metric(trial.user_attrs[VALIDATION].get(name)) for name in names} for trial in trials)
