"""What a report says, as plain data; the page and the plots only lay it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from asmil.engine.protocols import Figure
from asmil.metrics.values import Metric

__all__ = [
    "HeadlineRow",
    "Reference",
    "ReportContent",
    "Scale",
    "SearchSummary",
    "Setting",
    "StabilityCurve",
    "TrialRow",
]

Setting = bool | int | float | str | None
"""The value of a hyperparameter."""

Scale = Literal["linear", "log", "complement_log", "choice"]
"""How a parameter was drawn: `complement_log` on a logarithmic scale of one minus its value, `choice` from a list."""


@dataclass(frozen=True)
class Reference:
    """A number that stands beside a result: a clinical baseline, a published figure, a random score.

    Attributes:
        name: What it is, with its source.
        result: Its value, with its interval or spread as the interval.
    """

    name: str
    result: Metric


@dataclass(frozen=True)
class HeadlineRow:
    """One result of the experiment.

    Attributes:
        metric: What was measured, as the reader knows it.
        result: The value with its 95 % interval, or why there is none.
        references: What the value is to be read against.
        note: How it was formed, such as `mean of 5 test folds, 5 seeds each`.
    """

    metric: str
    result: Metric
    references: tuple[Reference, ...] = ()
    note: str | None = None


@dataclass(frozen=True)
class TrialRow:
    """One trial of a search.

    Attributes:
        number: Its number in the study.
        state: `COMPLETE`, `PRUNED`, `FAIL`, `RUNNING` or `WAITING`.
        value: Its objective, or None.
        params: Dotted path to the value tried.
        epochs: Epochs it trained, or None.
        note: Why there is no value.
    """

    number: int
    state: str
    value: float | None
    params: Mapping[str, Setting]
    epochs: int | None = None
    note: str | None = None


@dataclass(frozen=True)
class SearchSummary:
    """One study. Leaderboard, history and parameter panels are all views of its trials.

    Attributes:
        name: Which study, such as `outer fold 0`.
        metric: The objective.
        direction: Whether more or less of it is better.
        trials: The trials, in any order.
        scales: Parameter to how it was drawn, for its axis; `linear` where not given.
        importance: Parameter to its share of the objective's variance, or None where too few trials finished.
    """

    name: str
    metric: str
    direction: Literal["max", "min"]
    trials: tuple[TrialRow, ...]
    scales: Mapping[str, Scale] = field(default_factory=dict)
    importance: Mapping[str, float] | None = None

    def ranked(self) -> list[TrialRow]:
        """Completed trials from best to worst, then stopped ones by value, then those without a value by number."""
        sign = -1.0 if self.direction == "max" else 1.0

        def key(trial: TrialRow) -> tuple[bool, bool, float, int]:
            value = 0.0 if trial.value is None else sign * trial.value
            return trial.value is None, trial.state != "COMPLETE", value, trial.number

        return sorted(self.trials, key=key)

    def best(self) -> TrialRow | None:
        """The best completed trial; a stopped trial never is."""
        return next((t for t in self.ranked() if t.state == "COMPLETE" and t.value is not None), None)

    def parameters(self) -> list[str]:
        """Every parameter some trial tried, the most important first, else in order of appearance."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.params)
        importance = self.importance or {}
        return sorted(names, key=lambda name: -importance.get(name, 0.0))


@dataclass(frozen=True)
class StabilityCurve:
    """How far the attention over fixed training bags moved from epoch to epoch in one run.

    Attributes:
        anchored: Whether the run trained with the anchor.
        seed: The run's seed.
        epochs: Epochs, counted as in training; each compares with the epoch before.
        jsd: Mean Jensen-Shannon divergence at these epochs, in nats.
    """

    anchored: bool
    seed: int
    epochs: tuple[int, ...]
    jsd: tuple[float, ...]


@dataclass(frozen=True)
class ReportContent:
    """Everything on the page. Parts left at their defaults are left out.

    Attributes:
        title: The experiment.
        notices: What no reader may overlook: simulated data, selection on the test split.
        facts: Pairs of label and value that identify the run: data, hashes, versions, time, devices.
        protocol: How the numbers were made, one sentence per line.
        headline: The results, most important first.
        further: Further figures of the same predictions: what each is, and its value.
        figures: The task's own figures.
        searches: The studies, one per outer fold where the search is nested.
        stability: Attention-stability curves.
        ledger: Every opening of the test split; empty says that it was never opened, None leaves the part out.
        configuration: The resolved experiment as YAML.
    """

    title: str
    notices: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    protocol: tuple[str, ...] = ()
    headline: tuple[HeadlineRow, ...] = ()
    further: tuple[tuple[str, Metric], ...] = ()
    figures: tuple[Figure, ...] = ()
    searches: tuple[SearchSummary, ...] = ()
    stability: tuple[StabilityCurve, ...] = ()
    ledger: tuple[Mapping[str, Any], ...] | None = None
    configuration: str | None = None
