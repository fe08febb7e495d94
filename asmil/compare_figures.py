"""Every comparison of one run with another: over patients, over folds and over seeds, metric by metric.

All figures are formed on each test part by itself, averaged over seeds and then over folds, as `asmil.run` prints them;
nothing is pooled over folds, not even counts: a pooled F1 is not the mean F1 that is reported, and scores of different
models have no common order. A fold on which a metric is undefined is left out of that metric for both runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from asmil.compare_runs import FinishedRun
from asmil.crossval import Part
from asmil.data.config import ProtocolConfig
from asmil.engine.jobs import Job
from asmil.evaluation import Evaluation, mean_metrics
from asmil.metrics.compare import (
    ClassPredictions,
    Draws,
    PairedFold,
    RiskPredictions,
    compare_c,
    compare_classes,
    compare_statistic,
    difference_of_means,
)
from asmil.metrics.differences import Difference
from asmil.metrics.survival import null_c_spread
from asmil.metrics.trainings import SeedSpread, compare_folds, compare_seeds, mean_null_c_spread, seed_spread
from asmil.metrics.values import Metric
from asmil.metrics.weighted import WeightedStatistic

__all__ = ["Paired", "compare_runs", "null_spread", "overlap_ratio", "spreads_over_seeds"]

SLOW_RESAMPLES = 1000
"""Most resamples of a metric that has no fast form and is measured anew on each."""


@dataclass(frozen=True)
class Paired:
    """One run compared with the reference.

    Attributes:
        patients: By metric; what other patients would change, for these models.
        folds: What other splits would change; empty with one outer fold.
        seeds: What other training runs would change; empty with one seed.
    """

    patients: Mapping[str, Difference]
    folds: Mapping[str, Difference]
    seeds: Mapping[str, Difference]


def compare_runs(
    reference: FinishedRun, run: FinishedRun, jobs: Sequence[Job], part: Part, *, resamples: int
) -> Paired:
    """Compare a run with the reference.

    Args:
        reference: The first model.
        run: The second model.
        jobs: The trainings, all seeds on every outer fold.
        part: Which part was predicted.
        resamples: Bootstrap resamples.

    Returns:
        Differences, reference minus run.
    """
    pair = (_Measured(reference, jobs), _Measured(run, jobs))
    names = [name for name in pair[0].names if name in pair[1].names]
    places, seeds = pair[0].places, pair[0].seeds
    kept = {name: [place for place in places if all(one.known(name, place) for one in pair)] for name in names}
    ratio = overlap_ratio(reference, jobs, part)
    over_folds: dict[str, Difference] = {}
    if len(places) > 1 and ratio is not None:
        figures = {name: [[one.fold_mean(name, place) for place in places] for one in pair] for name in names}
        over_folds = {name: compare_folds(*figures[name], test_per_train=ratio, metric=name) for name in names}
    over_seeds: dict[str, Difference] = {}
    if len(seeds) > 1:
        by_seed = {name: [one.by_seed(name, kept[name]) for one in pair] for name in names}
        over_seeds = {name: compare_seeds(*by_seed[name], metric=name) for name in names}
    return Paired(_over_patients(pair, names, part, resamples), over_folds, over_seeds)


def spreads_over_seeds(run: FinishedRun, jobs: Sequence[Job]) -> dict[str, SeedSpread]:
    """How far the figures of one run's seeds lie apart, each the mean over the folds where all seeds have one."""
    measured = _Measured(run, jobs)
    found = {}
    for name in measured.names:
        places = [place for place in measured.places if measured.known(name, place)]
        found[name] = seed_spread(list(measured.by_seed(name, places).values()))
    return found


def null_spread(run: FinishedRun, jobs: Sequence[Job]) -> float | None:
    """Standard deviation by chance of the mean C over the folds of one repeat; None if the task has no outcome."""
    first = [job for job in jobs if (job.repeat, job.seed) == (jobs[0].repeat, jobs[0].seed)]
    truths = [run.trainings[job].predictions.truth for job in first]
    if any({"time", "event"} - set(truth) for truth in truths):
        return None
    return mean_null_c_spread([null_c_spread(truth["time"], truth["event"]) for truth in truths])


def overlap_ratio(run: FinishedRun, jobs: Sequence[Job], part: Part) -> float | None:
    """Number of predicted patients over the number of training patients, for the test over folds.

    The protocol gives the shares; where the split was imported, the patients of all predicted parts of a repeat are
    taken for the whole cohort, which if anything overestimates the ratio.

    Returns:
        The ratio; None where the predicted parts are the whole cohort, so that it is unknown.
    """
    protocol = run.protocol
    held_out = protocol.inner.holdout or 1 / (protocol.inner.folds or 2)
    if part == "validation":
        return held_out / (1 - held_out)
    share = _test_share(protocol) or _share_of_known_patients(run, jobs)
    train = (1 - share) * (1 - held_out if protocol.epoch_rule == "best_validation" else 1)
    return share / train if train > 0 else None


def _test_share(protocol: ProtocolConfig) -> float | None:
    return {"kfold": 1 / protocol.folds, "holdout": protocol.test_fraction}.get(protocol.scheme)


def _share_of_known_patients(run: FinishedRun, jobs: Sequence[Job]) -> float:
    parts = [set(run.trainings[job].predictions.groups) for job in jobs if job.repeat == jobs[0].repeat]
    return float(np.mean([len(part) for part in parts])) / len(set().union(*parts))


class _Measured:
    """The figures of one run's trainings."""

    def __init__(self, run: FinishedRun, jobs: Sequence[Job]) -> None:
        self.trainings = {job: run.trainings[job] for job in jobs}
        self.places = list(dict.fromkeys((job.repeat, job.fold) for job in jobs))
        self.seeds = list(dict.fromkeys(job.seed for job in jobs))
        self._figures = {job: one.prepared.evaluate(one.predictions) for job, one in self.trainings.items()}
        self.names = list(self._figures[jobs[0]])

    def of_fold(self, place: tuple[int, int]) -> list[Evaluation]:
        """The trainings of a fold, one per seed."""
        return [self.trainings[Job(*place, seed)] for seed in self.seeds]

    def figures(self, name: str, place: tuple[int, int]) -> list[Metric]:
        """A metric under each seed."""
        return [self._figures[Job(*place, seed)][name] for seed in self.seeds]

    def known(self, name: str, place: tuple[int, int]) -> bool:
        """Whether every seed has a value on this fold."""
        return all(metric.value is not None for metric in self.figures(name, place))

    def fold_metric(self, name: str, place: tuple[int, int]) -> Metric:
        """The mean over seeds on one fold."""
        return mean_metrics([{name: metric} for metric in self.figures(name, place)])[name]

    def fold_mean(self, name: str, place: tuple[int, int]) -> float | None:
        """The value of that mean."""
        return self.fold_metric(name, place).value

    def by_seed(self, name: str, places: Sequence[tuple[int, int]]) -> dict[int, float | None]:
        """The mean over some folds under each seed."""
        found: dict[int, float | None] = {}
        for seed in self.seeds:
            values = [self._figures[Job(*place, seed)][name].value for place in places]
            known = [value for value in values if value is not None]
            found[seed] = float(np.mean(known)) if known else None
        return found


def _over_patients(
    pair: tuple[_Measured, _Measured], names: Sequence[str], part: Part, resamples: int
) -> dict[str, Difference]:
    """The fast forms where the outputs have one, and every other metric measured anew on each resample."""
    rows = _Rows(pair[0])
    pooled = part == "validation" or len({repeat for repeat, _ in pair[0].places}) > 1
    outputs = set(pair[0].of_fold(pair[0].places[0])[0].predictions.outputs)
    found: dict[str, Difference] = {}
    if {"probabilities"} <= outputs or {"probability"} <= outputs:
        models = [_class_predictions(one, rows) for one in pair]
        if all(model is not None for model in models):
            first, second = (model for model in models if model is not None)
            found = _named(compare_classes(first, second, pooled=pooled, resamples=resamples), names)
    elif "risk" in outputs and "c_index" in names:
        ours, theirs = (_risk_predictions(one, rows) for one in pair)
        found = {"c_index": compare_c(ours, theirs, pooled=pooled, resamples=resamples)}
    draws = Draws(rows.groups, rows.folds, pooled, min(resamples, SLOW_RESAMPLES))
    measured = {name: found[name] if name in found else _by_measuring(pair, name, rows, draws) for name in names}
    return measured | {name: difference for name, difference in found.items() if name.startswith("auc[")}


class _Rows:
    """Bags of all folds, one after another."""

    def __init__(self, measured: _Measured) -> None:
        firsts = [measured.of_fold(place)[0].predictions for place in measured.places]
        self.bag_ids = [bag_id for one in firsts for bag_id in one.bag_ids]
        self.groups = [group for one in firsts for group in one.groups]
        lengths = [len(one.bag_ids) for one in firsts]
        self.folds = [place for place, length in zip(measured.places, lengths, strict=True) for _ in range(length)]
        ends = np.cumsum(lengths)
        self.of_fold = [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        self.truth = {name: np.concatenate([one.truth[name] for one in firsts]) for name in firsts[0].truth}

    def outputs(self, measured: _Measured, name: str) -> np.ndarray:
        """An output under each seed, [S, B, ...]."""
        parts = [np.stack([one.predictions.outputs[name] for one in measured.of_fold(p)]) for p in measured.places]
        return np.concatenate(parts, axis=1)


def _class_predictions(measured: _Measured, rows: _Rows) -> ClassPredictions | None:
    """Class probabilities of one label per bag; None where the task is another."""
    first = measured.of_fold(measured.places[0])[0]
    classes = first.prepared.to_state().get("classes")
    if classes is None or "label" not in rows.truth:
        return None
    if "probability" in first.predictions.outputs:
        positive_SB = rows.outputs(measured, "probability")
        scores_SBC = np.stack([1 - positive_SB, positive_SB], axis=-1)
    else:
        scores_SBC = rows.outputs(measured, "probabilities")
    predicted_SB = rows.outputs(measured, "predicted") if "predicted" in first.predictions.outputs else None
    return ClassPredictions(
        rows.bag_ids, rows.groups, rows.truth["label"], scores_SBC, tuple(classes), rows.folds, predicted_SB
    )


def _risk_predictions(measured: _Measured, rows: _Rows) -> RiskPredictions:
    time_B, event_B = rows.truth["time"], rows.truth["event"]
    return RiskPredictions(rows.bag_ids, rows.groups, rows.folds, time_B, event_B, rows.outputs(measured, "risk"))


def _named(found: Mapping[str, Difference], names: Sequence[str]) -> dict[str, Difference]:
    """Differences by the task's names of its metrics: the one area of two classes is the macro AUC."""
    area = "auc" if "auc" in names else "macro_auc"
    listed = {area if name == "auc" else name: difference for name, difference in found.items()}
    return {
        name: replace(difference, metric=name)
        for name, difference in listed.items()
        if name in names or name.startswith("auc[")
    }


def _by_measuring(pair: tuple[_Measured, _Measured], name: str, rows: _Rows, draws: Draws) -> Difference:
    """Bootstrap of a metric through the task's own `evaluate`."""
    parts = []
    for place, of_fold in zip(pair[0].places, rows.of_fold, strict=True):
        statistics = [[_statistic(training, name) for training in one.of_fold(place)] for one in pair]
        figures = (pair[0].fold_metric(name, place), pair[1].fold_metric(name, place))
        parts.append(PairedFold(of_fold, figures, difference_of_means(*statistics)))
    return compare_statistic(name, parts, draws)


def _statistic(training: Evaluation, name: str) -> WeightedStatistic:
    """A metric of weighted bags, each taken as often as its weight says."""

    def statistic(weights_RB: np.ndarray) -> np.ndarray:
        rows = np.arange(weights_RB.shape[1])
        values = [
            training.prepared.evaluate(training.predictions.take(np.repeat(rows, weights_B.astype(int))))[name].value
            for weights_B in weights_RB
        ]
        return np.array([np.nan if value is None else value for value in values])

    return statistic
