"""Survival metrics against stored reference values, brute force and the required failure behaviour."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from sksurv.compare import compare_survival
from sksurv.util import Surv

from asmil.errors import DataError
from asmil.metrics.survival import harrell_c, kaplan_meier, log_rank, null_c_spread, number_at_risk
from asmil.metrics.values import Metric

REQUIRED_FAILURES = {
    "all_censored": Metric(None, "no_events"),
    "only_last_event": Metric(None, "no_comparable_pairs"),
    "two_events_same_time": Metric(None, "no_comparable_pairs"),
    "single_sample": Metric(None, "too_few"),
    "all_equal_risk": Metric(0.5, "collapsed"),
    "near_ties_1e-9": Metric(0.5, "collapsed"),
}
REFUSED = {"nan_risk": "risk is not finite for 1 of 4 bags", "negative_time": "follow-up time is negative"}


@pytest.fixture(scope="module")
def corner_cases(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden/survival/metrics_small.json").read_text())["cases"]


@pytest.fixture(scope="module")
def datasets(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden/survival/real_datasets.json").read_text())["datasets"]


def test_every_corner_case_has_the_required_behaviour(corner_cases: dict[str, Any]) -> None:
    assert len(corner_cases) >= 17
    assert {*REQUIRED_FAILURES, *REFUSED} <= set(corner_cases)
    for name, case in corner_cases.items():
        time, event, risk = (np.array(case["inputs"][key], dtype=float) for key in ("time", "event", "risk"))
        if name in REFUSED:
            with pytest.raises(DataError, match=REFUSED[name]):
                harrell_c(time, event, risk)
        elif name in REQUIRED_FAILURES:
            assert harrell_c(time, event, risk) == REQUIRED_FAILURES[name], name
        else:
            result = harrell_c(time, event, risk)
            assert result.reason is None, name
            assert result.value == pytest.approx(case["results"]["sksurv"][0], abs=1e-12), name


def test_harrell_c_of_real_datasets(datasets: dict[str, Any]) -> None:
    assert datasets
    for name, ties in itertools.product(datasets, ("breslow", "efron")):
        stored = datasets[name][ties]
        test = stored["test"]
        value = harrell_c(np.array(test["time"]), np.array(test["event"]), np.array(test["risk"])).value
        assert value == pytest.approx(stored["harrell"]["cindex"], abs=1e-9), (name, ties)
        assert value == pytest.approx(stored["harrell_lifelines"], abs=1e-9), (name, ties)


def test_kaplan_meier_of_real_datasets(datasets: dict[str, Any]) -> None:
    for stored in (dataset["breslow"] for dataset in datasets.values()):
        time, event, risk = (np.array(stored["test"][key]) for key in ("time", "event", "risk"))
        high = risk > stored["km_groups"]["cut"]
        for rows, curve in ((high, stored["km_groups"]["km"]["high"]), (~high, stored["km_groups"]["km"]["low"])):
            times, survival = kaplan_meier(time[rows], event[rows])
            assert (times[0], survival[0]) == (0.0, 1.0)
            at = np.searchsorted(times, stored["times"], side="right") - 1
            np.testing.assert_allclose(survival[at], curve["S_at_times"], atol=1e-9)
            assert times[np.argmax(survival <= 0.5)] == curve["median"]


def test_log_rank_of_real_datasets(datasets: dict[str, Any]) -> None:
    for stored in (dataset["breslow"] for dataset in datasets.values()):
        time, event, risk = (np.array(stored["test"][key]) for key in ("time", "event", "risk"))
        groups = stored["km_groups"]
        p = log_rank(time, event, risk > groups["cut"]).value
        assert p == pytest.approx(groups["lifelines_logrank_p"], rel=1e-9)
        tertile = np.searchsorted(groups["tertiles"]["cuts"], risk)
        assert log_rank(time, event, tertile).value == pytest.approx(groups["tertiles"]["p"], rel=1e-9)


OUTCOMES = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(-3, 3)), min_size=2, max_size=12)


@given(OUTCOMES)
@settings(max_examples=150)
def test_harrell_c_counts_pairs_as_defined(rows: list[tuple[int, bool, int]]) -> None:
    time, event, risk = (np.array(column) for column in zip(*rows, strict=True))
    scores = [
        0.5 if risk[i] == risk[j] else float(risk[i] > risk[j])
        for i, j in itertools.permutations(range(len(rows)), 2)
        if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j]))
    ]
    result = harrell_c(time, event, risk)
    if scores:
        assert result.value == pytest.approx(np.mean(scores), abs=1e-12)
        assert (result.reason == "collapsed") == (len(set(risk.tolist())) == 1)
    else:
        assert result.value is None
        assert result.reason == ("no_comparable_pairs" if event.any() else "no_events")


@given(OUTCOMES)
@settings(max_examples=60)
def test_kaplan_meier_is_the_product_over_event_times(rows: list[tuple[int, bool, int]]) -> None:
    time, event = (np.array(column) for column in list(zip(*rows, strict=True))[:2])
    times, survival = kaplan_meier(time, event)
    assert times[0] == 0
    for t, s in zip(times, survival, strict=True):
        factors = [1 - ((time == u) & event).sum() / (time >= u).sum() for u in np.unique(time[time <= t])]
        assert s == pytest.approx(np.prod(factors), abs=1e-12)


def test_nan_risk_names_the_bags() -> None:
    time, event = np.arange(1.0, 9.0), np.ones(8)
    with pytest.raises(DataError, match=r"2 of 8 bags \(p1, p5\)"):
        harrell_c(
            time, event, np.where(np.isin(np.arange(8), (1, 5)), np.nan, 1.0), bag_ids=[f"p{i}" for i in range(8)]
        )
    with pytest.raises(DataError, match=r"7 of 8 bags \(1, 2, 3, 4, 5 and 2 more\)"):
        harrell_c(time, event, np.where(np.arange(8) > 0, np.inf, 1.0))


@pytest.mark.parametrize(
    ("time", "event", "risk", "message"),
    [
        ([1.0, np.nan], [1, 1], [0.0, 1.0], "follow-up time"),
        ([1.0, 2.0], [1, 2], [0.0, 1.0], "neither 0 nor 1"),
        ([1.0, 2.0], [1], [0.0, 1.0], "one of each per bag"),
        ([1.0, 2.0], [1, 0], [0.0, 1.0, 2.0], "one risk per bag"),
    ],
)
def test_bad_input_is_refused(time: list[float], event: list[int], risk: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        harrell_c(np.array(time), np.array(event), np.array(risk))


def test_number_at_risk_counts_ties_as_still_followed() -> None:
    at_risk = number_at_risk(np.array([3.0, 1.0, 3.0, 5.0]), np.array([0.0, 1.0, 1.5, 3.0, 5.0, 6.0]))
    assert at_risk.tolist() == [4, 4, 3, 3, 1, 0]


def _simulated(seed: int, n: int, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    time = generator.integers(1, 15, n).astype(float)
    return time, generator.random(n) < 0.6, generator.integers(0, groups, n)


@pytest.mark.parametrize(("seed", "groups"), [(0, 2), (1, 3), (2, 4)])
def test_log_rank_equals_scikit_survival(seed: int, groups: int) -> None:
    time, event, group = _simulated(seed, 60, groups)
    _, expected = compare_survival(Surv.from_arrays(event, time), group)
    assert log_rank(time, event, group).value == pytest.approx(expected, rel=1e-10)
    names = np.array(["d", "c", "b", "a"])[group]
    assert log_rank(time, event, names).value == pytest.approx(expected, rel=1e-10)


def test_stratified_log_rank_sums_scores_of_strata() -> None:
    time, event, group = _simulated(3, 90, 2)
    fold = np.arange(90) % 3
    excess, variance = 0.0, 0.0
    for k in range(3):
        rows = fold == k
        *_, table, covariance = compare_survival(Surv.from_arrays(event[rows], time[rows]), group[rows], True)
        excess += table["statistic"].iloc[0]
        variance += covariance[0, 0]
    stratified = log_rank(time, event, group, strata_B=fold).value
    assert stratified == pytest.approx(chi2.sf(excess**2 / variance, 1), rel=1e-10)
    assert stratified != pytest.approx(log_rank(time, event, group).value, rel=1e-3)


def test_stratification_ignores_a_fold_where_one_group_is_missing() -> None:
    time, event, group = _simulated(4, 40, 2)
    alone = np.full(10, 1)
    extended = log_rank(
        np.concatenate((time, time[:10])),
        np.concatenate((event, event[:10])),
        np.concatenate((group, alone)),
        strata_B=np.repeat([0, 1], [40, 10]),
    )
    assert extended.value == pytest.approx(log_rank(time, event, group).value, rel=1e-12)


@pytest.mark.parametrize(
    ("time", "event", "group", "reason"),
    [
        ([1, 2, 3], [1, 1, 0], [0, 0, 0], "one_group"),
        ([], [], [], "one_group"),
        ([1, 2, 3], [0, 0, 0], [0, 1, 0], "no_events"),
        ([1, 2, 3, 4], [0, 0, 1, 1], [0, 0, 1, 1], "no_overlap"),
        ([2, 2], [1, 1], [0, 1], "no_overlap"),
    ],
)
def test_log_rank_gives_a_reason_where_it_is_undefined(
    time: list[float], event: list[int], group: list[int], reason: str
) -> None:
    assert log_rank(np.array(time), np.array(event), np.array(group)) == Metric(None, reason)


def test_null_spread_equals_enumeration_of_all_orders() -> None:
    time = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 3.0, 2.0])
    event = np.array([1, 1, 0, 0, 1, 1, 1])
    values = [harrell_c(time, event, np.array(order)).value for order in itertools.permutations(range(7))]
    assert null_c_spread(time, event) == pytest.approx(np.std(values), rel=1e-10)
    assert null_c_spread(time, np.zeros(7)) is None


def test_null_spread_of_the_tcga_folds_agrees_with_stored_simulations(shared: Path) -> None:
    folds = pd.read_csv(shared / "data/tcga_survival/fold_summary.csv")
    patients = {
        cohort: pd.read_csv(shared / f"data/tcga_survival/tcga_{cohort.lower()}_patients.csv")
        for cohort in folds["cohort"].unique()
    }
    spread = [
        null_c_spread(held_out["os_months"].to_numpy(), held_out["event"].to_numpy())
        for row in folds.itertuples()
        for held_out in [patients[row.cohort][patients[row.cohort]["fold"] == row.fold]]
    ]
    ratio = spread / folds["null_cindex_sd"]
    assert ratio.between(0.88, 1.12).all()
    assert ratio.mean() == pytest.approx(1.0, abs=0.015)
