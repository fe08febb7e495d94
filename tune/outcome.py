"""What a finished search says: figures over seeds and folds with intervals, `result.json` and the report."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from asmil.data.sealed import read_ledger
from asmil.engine.protocols import Predictions, PreparedTask
from asmil.experiment import Experiment, metrics_tree, versions
from asmil.metrics.values import Metric
from asmil.report.content import (
    HeadlineRow,
    Reference,
    ReportContent,
    Scale,
    SearchSummary,
    StabilityCurve,
    TrialRow,
)
from asmil.report.page import write_report
from asmil.storage import publish_json
from tasks.intervals import with_intervals
from tasks.spec import Choices, Complement, ParamSpec
from tune.rundir import OuterFold
from tune.space import parameter_name
from tune.study import OVERRIDES, REASON, VALIDATION, Counts, SearchStudy

__all__ = ["Evaluation", "FoldOutcome", "mean_with_intervals", "oracle_metrics", "write_outcome"]

DIFFERENCE = "difference"


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


def write_outcome(
    out: Path, experiment: Experiment, outcomes: Sequence[FoldOutcome], *, title: str, refit_seconds: float
) -> None:
    """Write `result.json` and `report.html`.

    Args:
        out: Where to.
        experiment: The searched experiment.
        outcomes: Its outer folds.
        title: What the report is about.
        refit_seconds: Wall time of the refits.
    """
    figures = _Figures(experiment, outcomes)
    seconds = figures.seconds()
    publish_json(
        out / "result.json", {**figures.result(), "seconds": seconds, "refit_seconds": round(refit_seconds, 1)}
    )
    write_report(out / "report.html", figures.report(title, seconds))


class _Figures:
    """Everything computed from the outcomes, once."""

    def __init__(self, experiment: Experiment, outcomes: Sequence[FoldOutcome]) -> None:
        self.experiment, self.outcomes = experiment, outcomes
        self.metric = experiment.task.monitor.metric
        self.ledger = read_ledger(experiment.ledger)
        best = [outcome.best for outcome in outcomes]
        plain = [outcome.plain for outcome in outcomes]
        self.test = mean_with_intervals(best, pooled=experiment.plan.repeats > 1)
        self.plain: Mapping[str, Metric] = {}
        self.difference: Mapping[str, Metric] = {}
        if all(plain):
            self.plain = mean_with_intervals(plain, pooled=experiment.plan.repeats > 1)
            self.difference = mean_with_intervals(best, minus=plain, pooled=experiment.plan.repeats > 1)
        self.validation = _mean_validation(outcomes)
        self.oracle = oracle_metrics(experiment, outcomes)

    def seconds(self) -> float:
        """Wall time since the first trial began."""
        starts = [trial.datetime_start for outcome in self.outcomes for trial in outcome.study.study.trials]
        first = min((start.timestamp() for start in starts if start is not None), default=time.time())
        return round(time.time() - first, 1)

    def counts(self) -> Counts:
        """Trials of all studies by state."""
        each = [asdict(outcome.study.counts()) for outcome in self.outcomes]
        return Counts(**{state: sum(counts[state] for counts in each) for state in each[0]})

    def result(self) -> dict[str, Any]:
        """The content of `result.json` but for the times."""
        experiment = self.experiment
        return {
            "task": experiment.spec.task.kind,
            "config": experiment.spec.tree(),
            "metrics": {"validation": metrics_tree(self.validation), "test": metrics_tree(self.test)},
            "intervals": {"validation": None, "test": _intervals(self.test)},
            "without_anchor": {
                "metrics": metrics_tree(self.plain),
                "intervals": _intervals(self.plain),
                "difference": metrics_tree(self.difference),
                "difference_intervals": _intervals(self.difference),
            },
            "oracle": metrics_tree(self.oracle) or None,
            "references": [dict(known) for known in experiment.spec.references],
            "seeds": [evaluation.seed for evaluation in self.outcomes[0].best],
            "trials": asdict(self.counts()),
            "best": [self._best(outcome) for outcome in self.outcomes],
            "study": [self._study(outcome) for outcome in self.outcomes],
            "simulated": experiment.cohort.simulated,
            "data_id": experiment.cohort.dataset_id,
            "split": experiment.plan.hash,
            "spec_hash": experiment.spec.hash(),
            "ledger": self.ledger,
            "versions": versions(),
        }

    def _best(self, outcome: FoldOutcome) -> dict[str, Any]:
        best = outcome.study.best()
        assert best is not None
        return {
            "study": outcome.fold.name,
            "number": best.number,
            "validation": best.value,
            "overrides": best.user_attrs[OVERRIDES],
        }

    def _study(self, outcome: FoldOutcome) -> dict[str, Any]:
        return {
            "name": outcome.study.name,
            "trials": asdict(outcome.study.counts()),
            "importance": asdict(outcome.study.importance()),
            "failures": [{"number": number, "reason": reason} for number, reason in outcome.study.failures()],
        }

    def report(self, title: str, seconds: float) -> ReportContent:
        """The content of the report."""
        experiment = self.experiment
        simulated = "Simulated data: bags and labels are made up; no figure on this page is about patients."
        return ReportContent(
            title=title,
            notices=(simulated,) if experiment.cohort.simulated else (),
            facts=tuple(self._facts(seconds)),
            protocol=tuple(self._protocol()),
            headline=tuple(self._headline()),
            figures=self.outcomes[0]
            .best[0]
            .prepared.figures([outcome.best[0].predictions for outcome in self.outcomes]),
            searches=tuple(self._summary(outcome) for outcome in self.outcomes),
            stability=tuple(_stability(self.outcomes[0])),
            ledger=tuple(self.ledger),
            configuration=yaml.safe_dump(experiment.spec.tree(), sort_keys=False),
        )

    def _facts(self, seconds: float) -> Iterator[tuple[str, str]]:
        experiment, counts = self.experiment, self.counts()
        yield "data", f"{len(experiment.cohort.bag_ids)} bags, id {experiment.cohort.dataset_id[:16]}"
        yield "split", experiment.plan.hash
        yield "experiment", experiment.spec.hash()
        yield "trials", f"{counts.complete} complete, {counts.pruned} stopped early, {counts.fail} failed"
        yield "time", f"{seconds / 60:.1f} min"
        yield "written", datetime.now(UTC).isoformat(timespec="seconds")
        yield from versions().items()

    def _protocol(self) -> Iterator[str]:
        spec, num_folds = self.experiment.spec, len(self.outcomes)
        yield self.experiment.plan.describe()
        yield (
            f"Nested search: {num_folds} outer fold(s), each with a study of its own scored on inner validation bags; "
            f"{spec.search.trials} trials per study, sampler {spec.search.sampler}"
            + (", ASHA stops poor trials early." if spec.search.asha else ".")
        )
        yield (
            f"The best complete trial was refitted with {spec.search.refit_seeds} seeds (epoch rule: "
            f"{spec.protocol.epoch_rule}) after its study was closed; only then was the test part opened."
        )
        yield "Test figures are means over seeds, then over outer folds; intervals resample patients within folds."

    def _headline(self) -> Iterator[HeadlineRow]:
        num_seeds, num_folds = len(self.outcomes[0].best), len(self.outcomes)
        note = f"mean of {num_seeds} seed(s) on each of {num_folds} test part(s)"
        names = sorted(self.test, key=lambda name: name != self.metric)
        for name in names:
            yield HeadlineRow(f"{name} on test", self.test[name], tuple(self._references(name)), note)
        if self.metric in self.difference:
            yield HeadlineRow(
                f"{self.metric} gained over the same model without anchor and token drop",
                self.difference[self.metric],
                note="paired: the same patients are resampled for both",
            )
        yield from self._recovered()

    def _recovered(self) -> Iterator[HeadlineRow]:
        """How much of what a simulation lets one know the model found; nothing for real data."""
        chance = self.experiment.cohort.store.info.facts.get("chance", {}).get(self.metric)
        ours, truth = self.test[self.metric].value, self.oracle.get(self.metric, Metric(None)).value
        if None not in (chance, ours, truth) and truth != chance:
            share = Metric((ours - chance) / (truth - chance))
            yield HeadlineRow(f"share of the way from {chance} to the {self.metric} of the simulation's truth", share)

    def _references(self, name: str) -> Iterator[Reference]:
        if name in self.validation:
            yield Reference("best trials on validation (selected on it)", self.validation[name])
        if name in self.plain:
            yield Reference("without anchor and token drop", self.plain[name])
        if name in self.oracle:
            yield Reference("the simulation's own truth as prediction, same bags", self.oracle[name])
        for known in self.experiment.spec.references:
            if known.metric == name:
                yield Reference(known.name, Metric(known.value))

    def _summary(self, outcome: FoldOutcome) -> SearchSummary:
        params = self.experiment.spec.search.params
        paths = {parameter_name(path, param): path for path, param in params.items()}
        values = outcome.study.importance().values
        return SearchSummary(
            name=f"outer fold {outcome.fold.fold}",
            metric=self.metric,
            direction=outcome.study.direction,
            trials=tuple(self._trial_rows(outcome.study)),
            scales={path: _scale(param) for path, param in params.items()},
            importance=None if values is None else {paths[name]: share for name, share in values.items()},
        )

    def _trial_rows(self, study: SearchStudy) -> Iterator[TrialRow]:
        for trial in study.study.trials:
            last = max(trial.intermediate_values, default=None)
            value = trial.intermediate_values[last] if trial.value is None and last is not None else trial.value
            yield TrialRow(
                number=trial.number,
                state=trial.state.name,
                value=None if trial.state.name == "FAIL" else value,
                params=trial.user_attrs.get(OVERRIDES, {}),
                epochs=last,
                note=trial.user_attrs.get(REASON),
            )


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


def _mean_validation(outcomes: Sequence[FoldOutcome]) -> dict[str, Metric]:
    """Validation metrics of the best trials, averaged over outer folds."""
    trials = [best for outcome in outcomes if (best := outcome.study.best()) is not None]
    names = trials[0].user_attrs[VALIDATION]
    return _mean({name: Metric(trial.user_attrs[VALIDATION].get(name)) for name in names} for trial in trials)


def _stability(outcome: FoldOutcome) -> Iterator[StabilityCurve]:
    for anchored, evaluations in ((True, outcome.best), (False, outcome.plain)):
        for one in evaluations:
            if one.attention_jsd:
                epochs, jsd = zip(*one.attention_jsd, strict=True)
                yield StabilityCurve(anchored=anchored, seed=one.seed, epochs=epochs, jsd=jsd)


def _scale(param: ParamSpec) -> Scale:
    if isinstance(param, Choices):
        return "choice"
    if isinstance(param, Complement):
        return "complement_log" if param.complement.log else "linear"
    return "log" if param.log else "linear"


def _intervals(metrics: Mapping[str, Metric]) -> dict[str, list[float] | None]:
    return {name: None if metric.interval is None else list(metric.interval) for name, metric in metrics.items()}
