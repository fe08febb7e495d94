"""Time bins against the stored bins of 25 TCGA folds, and their corner cases."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asmil.errors import DataError
from tasks.bins import BinsConfig, TimeBins, fit_bins

COHORTS = ("blca", "brca", "luad", "ucec", "gbmlgg")


def fitted(times: list[float], events: list[int], **settings: object) -> TimeBins:
    return fit_bins(np.array(times), np.array(events), BinsConfig.model_validate(settings))


@pytest.mark.parametrize("cohort", COHORTS)
def test_bins_and_labels_of_the_stored_folds(shared: Path, cohort: str) -> None:
    stored = json.loads((shared / "golden/survival/tcga_bins.json").read_text())["cohorts"][cohort]
    patients = pd.read_csv(shared / f"data/tcga_survival/tcga_{cohort}_patients.csv")
    assert len(stored) == 5
    for fold in stored:
        test = patients["fold"] == fold["fold"]
        time, event = (patients.loc[~test, name].to_numpy() for name in ("os_months", "event"))
        bins = fit_bins(time, event, BinsConfig())
        assert bins.count == fold["K"]
        assert bins.cuts[0] == 0
        assert bins.cuts[1:] == pytest.approx(fold["uniform_inner_edges"], abs=1e-9)
        assert list(bins.train_counts) == fold["train_counts"]
        assert list(bins.train_events) == fold["train_event_counts"]
        assert bins.end == time.max()
        labels = bins.label(patients.loc[test, "os_months"].to_numpy())
        assert np.bincount(labels, minlength=bins.count).tolist() == fold["test_counts"]
        quartiles = fit_bins(time, event, BinsConfig(rule="quantile", count=4))
        assert quartiles.cuts[1:] == pytest.approx(fold["quantile4_train_inner"], abs=1e-9)


def test_no_events_cannot_be_binned() -> None:
    with pytest.raises(DataError, match=r"no events in the training fold \(2 bags"):
        fitted([1.0, 2.0], [0, 0])


def test_fewer_events_than_bins_and_equal_quantiles_shrink_k_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="tasks.bins"):
        assert fitted([1.0, 2.0, 3.0, 9.0], [1, 1, 1, 0], count=8).cuts == (0.0, 1.0, 2.0)
        assert fitted([5.0, 5.0, 5.0, 5.0, 8.0], [1, 1, 1, 1, 1], rule="quantile", count=4).cuts == (0.0, 5.0)
    assert [record.getMessage() for record in caplog.records] == [
        "3 time bins instead of 8: 3 training events",
        "2 time bins instead of 4: 5 training events",
    ]


def test_a_bin_without_events_stays() -> None:
    bins = fitted([1.0] * 8 + [9.0], [1] * 9)
    assert (bins.count, bins.train_events) == (3, (8, 0, 1))


@given(
    st.lists(st.tuples(st.floats(0.01, 300), st.integers(0, 1)), min_size=1, max_size=60),
    st.sampled_from(["uniform", "quantile"]),
    st.one_of(st.just("sqrt_events"), st.integers(2, 12)),
)
@settings(max_examples=80, deadline=None)
def test_every_time_lies_in_its_bin(outcomes: list[tuple[float, int]], rule: str, count: object) -> None:
    time, event = (np.array(column) for column in zip(*outcomes, strict=True))
    if not event.any():
        return
    bins = fit_bins(time, event, BinsConfig.model_validate({"rule": rule, "count": count}))
    labels = bins.label(time)
    edges = np.array([*bins.cuts, np.inf])
    assert (np.diff(edges) > 0).all()
    assert ((edges[labels] <= time) & (time < edges[labels + 1])).all()
    assert sum(bins.train_counts) == len(time)
    assert sum(bins.train_events) == event.sum()
    assert bins.count <= event.sum()
    assert bins.label(np.array([1e9])).tolist() == [bins.count - 1]
    assert TimeBins.from_state(json.loads(json.dumps(bins.to_state()))) == bins
