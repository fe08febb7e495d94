"""What a finished search says: the content of `result.json` and of the report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from asmil.data.sealed import read_ledger
from asmil.engine.protocols import Figure
from asmil.evaluation import (
    against_baseline,
    comparison_tree,
    intervals_tree,
    mean_details,
    mean_with_intervals,
    metrics_tree,
)
from asmil.experiment import Experiment, versions
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
from asmil.report.tables import format_metric
from asmil.storage import publish_json
from tasks.spec import Choices, Complement, ParamSpec
from tune.evaluation import FoldOutcome, mean_validation, oracle_metrics, single_models
from tune.space import parameter_name
from tune.study import CLOSED, OVERRIDES, REASON, Counts, SearchStudy

__all__ = ["write_outcome"]


def write_outcome(
    out: Path, experiment: Experiment, outcomes: Sequence[FoldOutcome], *, title: str, refit_seconds: float
) -> list[str]:
    """Write `report.html` and, last, `result.json`: where that file is, the search is over.

    Args:
        out: Where to.
        experiment: The searched experiment.
        outcomes: Its outer folds.
        title: What the report is about.
        refit_seconds: Wall time of the refits.

    Returns:
        The headline of the report, a line per figure.
    """
    figures = _Figures(experiment, outcomes)
    seconds = figures.seconds()
    times = {"seconds": seconds, "refit_seconds": round(refit_seconds, 1)}
    content = figures.report(title, seconds)
    write_report(out / "report.html", content)
    publish_json(out / "result.json", {**figures.result(), **times})
    return [f"{row.metric}: {format_metric(row.result)}" for row in content.headline]


class _Figures:
    """Everything computed from the outcomes, once."""

    def __init__(self, experiment: Experiment, outcomes: Sequence[FoldOutcome]) -> None:
        self.experiment, self.outcomes = experiment, outcomes
        self.metric = experiment.task.monitor.metric
        self.ledger = read_ledger(experiment.ledger)
        best = [outcome.best for outcome in outcomes]
        plain = [outcome.plain for outcome in outcomes]
        self.pooled = experiment.plan.repeats > 1
        self.test = mean_with_intervals(best, pooled=self.pooled)
        self.plain: Mapping[str, Metric] = {}
        self.difference: Mapping[str, Metric] = {}
        if all(plain):
            self.plain = mean_with_intervals(plain, pooled=self.pooled)
            self.difference = mean_with_intervals(best, minus=plain, pooled=self.pooled)
        self.details = mean_details(best)
        self.meanings = outcomes[0].best[0].prepared.meanings
        self.baseline = against_baseline(best, pooled=self.pooled)
        self.per_fold = [one for outcome in outcomes for one in single_models(outcome.fold, outcome.best)]
        self.openings = sum(_early_openings(self.ledger, experiment, outcome) for outcome in outcomes)
        self.validation = mean_validation(outcomes)
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
            "intervals": {"validation": None, "test": intervals_tree(self.test)},
            "per_fold": self.per_fold,
            "without_anchor": {
                "metrics": metrics_tree(self.plain),
                "intervals": intervals_tree(self.plain),
                "difference": metrics_tree(self.difference),
                "difference_intervals": intervals_tree(self.difference),
                "per_fold": [one for outcome in self.outcomes for one in single_models(outcome.fold, outcome.plain)],
            },
            "details": metrics_tree(self.details),
            "baseline": None if self.baseline is None else comparison_tree(self.baseline),
            "oracle": metrics_tree(self.oracle) or None,
            "references": [dict(known) for known in experiment.spec.references],
            "seeds": [evaluation.seed for evaluation in self.outcomes[0].best],
            "trials": asdict(self.counts()),
            "best": [self._best(outcome) for outcome in self.outcomes],
            "study": [self._study(outcome) for outcome in self.outcomes],
            "simulated": experiment.cohort.simulated,
            "data_id": experiment.cohort.dataset_id,
            "labels_id": experiment.cohort.labels_id,
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
        return ReportContent(
            title=title,
            notices=tuple(self._notices()),
            facts=tuple(self._facts(seconds)),
            protocol=tuple(self._protocol()),
            headline=tuple(self._headline()),
            further=tuple((self.meanings.get(name, name), metric) for name, metric in self.details.items()),
            figures=self._figures(),
            searches=tuple(self._summary(outcome) for outcome in self.outcomes),
            stability=tuple(_stability(self.outcomes[0])),
            ledger=tuple(self.ledger),
            configuration=yaml.safe_dump(experiment.spec.tree(), sort_keys=False),
        )

    def _notices(self) -> Iterator[str]:
        if self.experiment.cohort.simulated:
            yield "Simulated data: bags and labels are made up; no figure on this page is about patients."
        if self.openings:
            yield f"The test part was opened {self.openings} time(s) before this search ended; see the ledger."

    def _figures(self) -> tuple[Figure, ...]:
        """The task's figures for one model per fold of one repeat, in which each bag occurs once."""
        first = self.outcomes[0]
        shown = [outcome.best[0] for outcome in self.outcomes if outcome.fold.repeat == first.fold.repeat]
        which = f"seed {shown[0].seed}" + (f", repeat {first.fold.repeat}" if self.pooled else "")
        figures = shown[0].prepared.figures([one.predictions for one in shown])
        return tuple(replace(figure, title=f"{figure.title} ({which})") for figure in figures)

    def _facts(self, seconds: float) -> Iterator[tuple[str, str]]:
        experiment, counts = self.experiment, self.counts()
        yield "data", f"{len(experiment.cohort.bag_ids)} bags, id {experiment.cohort.dataset_id[:16]}"
        yield "split", experiment.plan.hash
        yield "experiment", experiment.spec.hash()
        yield "trials", f"{counts.complete} complete, {counts.pruned} stopped early, {counts.fail} failed"
        yield "time since first trial", f"{seconds / 60:.1f} min"
        yield "written", datetime.now(UTC).isoformat(timespec="seconds")
        yield from versions().items()

    def _protocol(self) -> Iterator[str]:
        spec, num_folds, finished = self.experiment.spec, len(self.outcomes), self.counts().finished
        yield self.experiment.plan.describe()
        yield (
            f"Nested search: {num_folds} outer fold(s), each with a study of its own scored on inner validation bags; "
            f"{finished} trials counted in all, sampler {spec.search.sampler}"
            + (", ASHA stops poor trials early." if spec.search.asha else ".")
        )
        yield (
            f"The best complete trial was refitted with {spec.search.refit_seeds} seeds (epoch rule: "
            f"{spec.protocol.epoch_rule}) after its study was closed"
            + ("." if self.openings else "; only then was the test part opened.")
        )
        unit = "patients with their rows of all repeats" if self.pooled else "patients within folds"
        yield (
            f"Test figures are means over seeds, then over outer folds. Intervals resample {unit} and hold for the "
            "fitted models: how much another training would differ shows in the range of the single models."
        )

    def _headline(self) -> Iterator[HeadlineRow]:
        names = sorted(self.test, key=lambda name: ("+" in name, name not in self.metric.split("+")))
        for name in names:
            yield HeadlineRow(f"{name} on test", self.test[name], tuple(self._references(name)), self._note(name))
        if self.metric in self.difference:
            difference = self.difference[self.metric]
            yield HeadlineRow(
                f"{self.metric}: difference to the plain model",
                _negated(difference) if self.experiment.task.monitor.direction == "min" else difference,
                note="plain: the same settings with softmax attention, without anchor and token drop, not tuned again; "
                "positive: ours is better; paired: the same patients are resampled for both",
            )
        yield from self._beyond_baseline()
        yield from self._recovered()

    def _beyond_baseline(self) -> Iterator[HeadlineRow]:
        """The difference to the task's own simpler method."""
        if self.baseline is None:
            return
        difference = self.baseline.difference[self.metric]
        yield HeadlineRow(
            f"{self.metric}: difference to {self.baseline.name}",
            _negated(difference) if self.experiment.task.monitor.direction == "min" else difference,
            note="the clinical baseline, fitted on the same training parts; positive: ours is better; paired: the same "
            "patients are resampled for both",
        )

    def _note(self, name: str) -> str:
        """How a test figure was formed, and how far the models it is the mean of lie apart."""
        note = f"mean of {len(self.outcomes[0].best)} seed(s) on each of {len(self.outcomes)} test part(s)"
        values = [one["metrics"][name] for one in self.per_fold]
        if len(values) == 1 or None in values:
            return note
        return f"{note}; single models {min(values):.3f} to {max(values):.3f}"

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
            yield Reference("softmax, without anchor and token drop", self.plain[name])
        if self.baseline is not None and name in self.baseline.metrics:
            yield Reference(f"{self.baseline.name} (clinical baseline, same folds)", self.baseline.metrics[name])
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
        continued = study.continued()
        for trial in study.study.trials:
            if trial.number in continued:
                continue
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


def _early_openings(ledger: Sequence[Mapping[str, Any]], experiment: Experiment, outcome: FoldOutcome) -> int:
    """How often the fold's test part was opened in a second before the one its study was closed in."""
    part = {
        "dataset_id": experiment.cohort.dataset_id,
        "split": experiment.plan.hash,
        "repeat": outcome.fold.repeat,
        "fold": outcome.fold.fold,
    }
    closed = int(outcome.study.study.user_attrs[CLOSED]["time"])
    same = [entry for entry in ledger if part.items() <= entry.items()]
    return sum(datetime.fromisoformat(entry["time"]).timestamp() < closed for entry in same)


def _negated(metric: Metric) -> Metric:
    value, interval = metric.value, metric.interval
    return Metric(
        None if value is None else -value, metric.reason, None if interval is None else (-interval[1], -interval[0])
    )


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
