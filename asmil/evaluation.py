"""Trained models on parts of a split: what each predicted, and figures over seeds and folds with intervals."""

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
from asmil.metrics.values import Metric
from asmil.storage import publish_bytes
from tasks.intervals import with_intervals

__all__ = [
    "Comparison",
    "Evaluation",
    "against_baseline",
    "comparison_tree",
    "intervals_tree",
    "load_predictions",
    "mean_details",
    "mean_metrics",
    "mean_with_intervals",
    "metrics_tree",
    "save_predictions",
]

OUTPUT, TRUTH = "output.", "truth."


@dataclass(frozen=True)
class Evaluation:
    """One trained model on a part of the split.

    Attributes:
        seed: Its training seed.
        prepared: Its fitted task.
        predictions: Its predictions.
        attention_jsd: Epoch and divergence of the attention from the epoch before.
    """

    seed: int
    prepared: PreparedTask
    predictions: Predictions
    attention_jsd: tuple[tuple[int, float], ...] = ()


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
        ours = mean_metrics(_mean_over_seeds(e, part) for e, part in zip(folds, per_fold, strict=True))
        if not minus:
            return ours
        theirs = mean_metrics(_mean_over_seeds(e, part) for e, part in zip(minus, per_fold, strict=True))
        return {name: _subtract(ours[name], theirs[name]) for name in ours}

    names = list(measure(np.arange(len(groups))))
    return with_intervals(measure, names, groups, strata=None if pooled else fold_R.tolist())


@dataclass(frozen=True)
class Comparison:
    """Models beside a simpler method on the same bags.

    Attributes:
        name: The method.
        metrics: Its figures, as `mean_with_intervals` gives them.
        difference: The models' figures minus its own, patients resampled for both.
    """

    name: str
    metrics: Mapping[str, Metric]
    difference: Mapping[str, Metric]


def against_baseline(folds: Sequence[Sequence[Evaluation]], *, pooled: bool) -> Comparison | None:
    """The models beside the baseline their task brings along; None if it has none in some fold.

    Args:
        folds: Per outer fold, one evaluation per seed.
        pooled: As in `mean_with_intervals`.
    """
    found = [evaluations[0].prepared.baseline(evaluations[0].predictions) for evaluations in folds]
    known = [baseline for baseline in found if baseline is not None]
    if len(known) < len(found):
        return None
    simple = [
        [replace(evaluations[0], predictions=baseline.predictions)]
        for evaluations, baseline in zip(folds, known, strict=True)
    ]
    return Comparison(
        known[0].name,
        mean_with_intervals(simple, pooled=pooled),
        mean_with_intervals(folds, minus=simple, pooled=pooled),
    )


def comparison_tree(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON."""
    return {
        "name": comparison.name,
        "metrics": metrics_tree(comparison.metrics),
        "intervals": intervals_tree(comparison.metrics),
        "difference": metrics_tree(comparison.difference),
        "difference_intervals": intervals_tree(comparison.difference),
    }


def metrics_tree(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Metrics as JSON: the value, or null with the reason beside it."""
    tree: dict[str, Any] = {name: metric.value for name, metric in metrics.items()}
    reasons = {name: metric.reason for name, metric in metrics.items() if metric.reason}
    return {**tree, "reasons": reasons} if reasons else tree


def intervals_tree(metrics: Mapping[str, Metric]) -> dict[str, list[float] | None]:
    """Intervals of metrics as JSON: lower and upper limit, or null."""
    return {name: None if metric.interval is None else list(metric.interval) for name, metric in metrics.items()}


def mean_details(folds: Sequence[Sequence[Evaluation]]) -> dict[str, Metric]:
    """Means over seeds and folds of the metrics of the task's record; null, with the reason, if one has no value."""
    per_fold = [mean_metrics(one.prepared.details(one.predictions) for one in evaluations) for evaluations in folds]
    return mean_metrics(per_fold)


def _mean_over_seeds(evaluations: Sequence[Evaluation], rows: np.ndarray) -> dict[str, Metric]:
    return mean_metrics(one.prepared.evaluate(one.predictions.take(rows)) for one in evaluations)


def mean_metrics(each: Iterable[Mapping[str, Metric]]) -> dict[str, Metric]:
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
