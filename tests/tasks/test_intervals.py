"""Intervals of a task's metrics: those of the bootstrap over patients, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from asmil.metrics.values import Metric
from tasks.intervals import accuracy_interval, with_intervals
from tests.row_bootstrap import row_bootstrap

VALUES = np.random.default_rng(0).exponential(size=60)
PATIENTS = [f"p{row // 3}" for row in range(60)]


def means(values: np.ndarray) -> Callable[[np.ndarray], Mapping[str, Metric]]:
    return lambda rows: {"mean": Metric(float(values[rows].mean())), "top": Metric(float(values[rows].max()))}


def test_patients_are_drawn_with_all_their_rows_within_their_fold() -> None:
    folds = [int(patient[1:]) % 2 for patient in PATIENTS]
    for strata in (None, folds):
        found = with_intervals(means(VALUES), ["mean"], PATIENTS, strata=strata)["mean"]
        expected = row_bootstrap(lambda rows: float(VALUES[rows].mean()), PATIENTS, strata=strata, resamples=4000)
        assert found.value == pytest.approx(VALUES.mean())
        assert found.interval == pytest.approx(expected, abs=0.1 * np.ptp(expected))
        assert found.reason is None


def test_all_metrics_are_taken_from_the_same_resamples() -> None:
    measured: list[np.ndarray] = []

    def measure(rows: np.ndarray) -> Mapping[str, Metric]:
        measured.append(rows)
        return means(VALUES)(rows)

    one = with_intervals(measure, ["mean"], PATIENTS)
    count = len(measured)
    both = with_intervals(measure, ["mean", "top"], PATIENTS)
    assert len(measured) == 2 * count
    assert both["mean"] == one["mean"]


def test_what_would_mean_nothing_is_not_an_interval() -> None:
    few = with_intervals(means(VALUES), ["mean"], PATIENTS[:12])["mean"]
    assert (few.interval, few.reason) == (None, "too_few_patients")
    constant = with_intervals(means(np.ones(60)), ["mean"], PATIENTS)["mean"]
    assert constant == Metric(1.0, "no_spread")

    def often_undefined(rows: np.ndarray) -> Mapping[str, Metric]:
        return {"mean": Metric(VALUES[rows].mean()) if 0 in rows else Metric(None, "no_events")}

    assert with_intervals(often_undefined, ["mean"], PATIENTS)["mean"].reason == "undefined_resamples"
    undefined = with_intervals(lambda rows: {"mean": Metric(None, "no_events")}, ["mean"], PATIENTS)["mean"]
    assert undefined == Metric(None, "no_events")


def test_a_warning_of_the_metric_stays() -> None:
    warned = with_intervals(lambda rows: {"c": Metric(0.5, "collapsed")}, ["c"], PATIENTS)["c"]
    assert (warned.interval, warned.reason) == (None, "collapsed")


def test_accuracy_of_dependent_bags_needs_five_patients() -> None:
    correct_B = np.arange(60) % 4 > 0
    expected = row_bootstrap(lambda rows: float(correct_B[rows].mean()), PATIENTS, resamples=4000)
    assert accuracy_interval(correct_B, PATIENTS) == pytest.approx(expected, abs=1.01 / 60), "quantiles step by one bag"
    assert accuracy_interval(correct_B[:12], PATIENTS[:12]) is None
    assert accuracy_interval(correct_B[:0], []) is None
