"""Censoring-weighted metrics against stored reference values, brute force and the required failure behaviour."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from asmil.errors import DataError
from asmil.metrics.ipcw import Followup, auc_over_time, brier_over_time, d_calibration, time_grid, uno_c


@pytest.fixture(scope="module")
def small(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden/survival/metrics_small.json").read_text())["ipcw_cases"]


@pytest.fixture(scope="module")
def datasets(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden/survival/real_datasets.json").read_text())["datasets"]


def arrays(stored: dict[str, Any], *names: str) -> list[np.ndarray]:
    return [np.array(stored[name], dtype=float) for name in names]


def followup(stored: dict[str, Any]) -> Followup:
    return Followup(*arrays(stored, "time", "event"))


@pytest.mark.parametrize(("key", "tau"), [("tau_9", 9.0), ("tau_5", 5.0), ("tau_none", 12.0)])
def test_uno_c_of_the_stored_cases(small: dict[str, Any], key: str, tau: float) -> None:
    time, event, risk = arrays(small["test"], "time", "event", "risk")
    assert uno_c(followup(small["train"]), time, event, risk, tau=tau).value == pytest.approx(
        small[f"uno.{key}"][0], abs=1e-12
    )


def test_followup_ends_where_the_censoring_curve_reaches_nothing(small: dict[str, Any]) -> None:
    assert followup(small["train"]).end == 12.0
    assert followup(small["train_last_censored"]).end == 10.0
    assert followup(small["train"]).tau == pytest.approx(np.quantile(small["train"]["time"], 0.9))
    assert followup(small["train_last_censored"]).tau == 10.0


def test_an_event_beyond_the_follow_up_is_clipped_instead_of_an_error(small: dict[str, Any]) -> None:
    train = followup(small["train"])
    time, event, risk = arrays(small["test"], "time", "event", "risk")
    time[3] = 13.0
    clipped, seen, count = train.clip(time, event)
    assert (clipped[3], seen[3], count) == (12.0, False, 1)
    assert (np.delete(clipped, 3) == np.delete(time, 3)).all()
    assert (np.delete(seen, 3) == np.delete(event, 3)).all()
    expected = small["uno.test_event_beyond_train_max.tau_12"][0]
    assert uno_c(train, time, event, risk, tau=99.0).value == pytest.approx(expected, abs=1e-12)


def test_the_stored_auc_and_brier_scores(small: dict[str, Any]) -> None:
    train, times = followup(small["train"]), np.array([3.0, 5.0, 9.0])
    time, event, risk = arrays(small["test"], "time", "event", "risk")
    auc = auc_over_time(train, time, event, risk, times)
    stored = small["cdauc.times_3_5_9"]
    np.testing.assert_allclose([*auc.scores, auc.summary.value], stored, atol=1e-12)
    brier = brier_over_time(train, time, event, np.array(small["S_at_3_5_9"]), times)
    np.testing.assert_allclose(brier.scores, small["brier.3_5_9"], atol=1e-12)
    assert brier.summary.value == pytest.approx(small["ibs.3_5_9"], abs=1e-12)


@pytest.mark.parametrize("name", ["veterans", "whas500"])
def test_real_datasets_with_clipping(datasets: dict[str, Any], name: str) -> None:
    stored = datasets[name]
    train, expected = followup(stored["train"]), stored["tau_clipped_breslow"]
    time, event, risk = arrays(stored["breslow"]["test"], "time", "event", "risk")
    assert train.end == expected["tau"]
    assert train.clip(time, event)[2] == expected["n_clipped"]
    assert uno_c(train, time, event, risk, tau=expected["tau"]).value == pytest.approx(expected["uno"], abs=1e-9)
    times = np.array(expected["times"])
    auc = auc_over_time(train, time, event, risk, times)
    np.testing.assert_allclose(auc.scores, expected["cd_auc"], atol=1e-9)
    assert auc.summary.value == pytest.approx(expected["cd_auc_mean"], abs=1e-9)
    brier = brier_over_time(train, time, event, np.array(expected["S_at_times"]), times)
    np.testing.assert_allclose(brier.scores, expected["brier"], atol=1e-9)
    assert brier.summary.value == pytest.approx(expected["ibs"], abs=1e-9)
    baseline = brier_over_time(train, time, event, None, times)
    assert baseline.summary.value == pytest.approx(expected["ibs_train_km"], abs=1e-9)
    counts, p_value = d_calibration(np.array(expected["d_cal"]["S_at_own_time"]), event)
    np.testing.assert_allclose(counts[::-1], expected["d_cal"]["histogram"], atol=1e-9)
    if p_value.value is not None:
        assert p_value.value == pytest.approx(expected["d_cal"]["p"], abs=1e-9)


@pytest.mark.parametrize("name", ["veterans", "whas500"])
def test_uno_c_at_quantiles_of_real_training_times(datasets: dict[str, Any], name: str) -> None:
    stored = datasets[name]
    time, event, risk = arrays(stored["breslow"]["test"], "time", "event", "risk")
    checked = 0
    for key in ("0.5", "0.75", "0.9"):
        expected = stored["breslow"][f"uno.tau=train_q{key}"]
        value = uno_c(followup(stored["train"]), time, event, risk, tau=expected["tau"]).value
        assert value == pytest.approx(expected["value"], abs=1e-9)
        checked += 1
    assert checked == 3


def censoring_curve(time: np.ndarray, event: np.ndarray, at: float) -> float:
    """Reverse Kaplan-Meier by its product; at ties events leave before censorings."""
    value = 1.0
    for step in sorted(set(time[event == 0])):
        if step <= at:
            at_risk = ((time > step) | ((time == step) & (event == 0))).sum()
            value *= 1 - ((time == step) & (event == 0)).sum() / at_risk
    return value


@pytest.mark.parametrize("seed", range(6))
def test_uno_c_and_brier_by_their_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    train_time, test_time = rng.integers(1, 15, 40).astype(float), rng.integers(1, 15, 25).astype(float)
    train_event, test_event = rng.integers(0, 2, 40), rng.integers(0, 2, 25)
    risk = rng.integers(0, 6, 25).astype(float)
    train = Followup(train_time, train_event)
    tau = train.tau
    gained = total = 0.0
    clipped, seen, _ = train.clip(test_time, test_event)
    for i in range(25):
        for j in range(25):
            later = clipped[i] < clipped[j] or (clipped[i] == clipped[j] and not seen[j])
            if seen[i] and clipped[i] < tau and later:
                weight = censoring_curve(train_time, train_event, clipped[i]) ** -2
                total += weight
                gained += weight * (1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0)
    assert uno_c(train, test_time, test_event, risk).value == pytest.approx(gained / total, abs=1e-12)

    times = time_grid(train, test_time)
    assert len(times) >= 2
    survival = rng.random((25, len(times)))
    expected = []
    for column, at in enumerate(times):
        terms = []
        for i in range(25):
            s = survival[i, column]
            if clipped[i] <= at and seen[i]:
                terms.append(s**2 / censoring_curve(train_time, train_event, clipped[i]))
            elif clipped[i] > at:
                terms.append((1 - s) ** 2 / censoring_curve(train_time, train_event, at))
            else:
                terms.append(0.0)
        expected.append(np.mean(terms))
    np.testing.assert_allclose(
        brier_over_time(train, test_time, test_event, survival, times).scores, expected, atol=1e-12
    )


@pytest.mark.parametrize(
    ("time", "event", "risk", "tau", "reason"),
    [
        ([5.0], [1], [1.0], None, "too_few"),
        ([2.5, 4.0, 6.0], [0, 0, 0], [1.0, 2.0, 3.0], None, "no_events"),
        ([2.5, 4.0, 6.0], [1, 1, 1], [1.0, 2.0, 3.0], 1.0, "tau_too_small"),
        ([5.0, 5.0], [1, 1], [1.0, 2.0], None, "no_comparable_pairs"),
        ([2.0, 3.0, 5.0], [0, 0, 1], [1.0, 2.0, 3.0], None, "no_comparable_pairs"),
        ([90.0, 91.0], [1, 1], [1.0, 2.0], None, "tau_too_small"),
    ],
)
def test_what_cannot_be_computed_has_a_reason(
    small: dict[str, Any],
    time: Sequence[float],
    event: Sequence[int],
    risk: Sequence[float],
    tau: float | None,
    reason: str,
) -> None:
    found = uno_c(followup(small["train"]), np.array(time), np.array(event), np.array(risk), tau=tau)
    assert (found.value, found.reason) == (None, reason)


def test_equal_training_times_reach_nowhere_once_anybody_is_censored(small: dict[str, Any]) -> None:
    time, event, risk = arrays(small["test"], "time", "event", "risk")
    for train_time, train_event, end in (
        ([5.0] * 3, [1, 0, 0], 0.0),
        ([0.0] * 3, [1, 0, 0], 0.0),
        ([5.0] * 3, [1, 1, 1], 5.0),
    ):
        train = Followup(np.array(train_time), np.array(train_event))
        assert (train.end, train.tau) == (end, end)
    train = Followup(np.full(3, 5.0), np.array([1, 0, 0]))
    times = time_grid(train, time)
    assert uno_c(train, time, event, risk).reason == "tau_too_small"
    assert auc_over_time(train, time, event, risk, times).summary.reason == "no_events"
    assert brier_over_time(train, time, event, None, times).summary.reason == "too_few_times"


@pytest.mark.parametrize(("train_time", "end"), [([3.0, 4.0, 9.0], 4.0), ([0.0, 3.0, 3.0], 0.0), ([5.0], 0.0)])
def test_without_training_events_every_score_says_so(
    small: dict[str, Any], train_time: Sequence[float], end: float
) -> None:
    time, event, risk = arrays(small["test"], "time", "event", "risk")
    train, times = Followup(np.array(train_time), np.zeros(len(train_time))), np.array([3.0, 5.0])
    assert train.end == end
    for found in (
        uno_c(train, time, event, risk, tau=9.0),
        auc_over_time(train, time, event, risk, times).summary,
        brier_over_time(train, time, event, np.ones((5, 2)), times).summary,
        brier_over_time(train, time, event, None, time_grid(train, time)).summary,
    ):
        assert (found.value, found.reason) == (None, "no_training_events")


def test_equal_risks_are_a_coin_with_a_warning(small: dict[str, Any]) -> None:
    time, event = arrays(small["test"], "time", "event")
    found = uno_c(followup(small["train"]), time, event, np.zeros(5))
    assert (found.value, found.reason) == (0.5, "collapsed")


def test_the_grid_lies_inside_the_follow_up_of_both_parts(small: dict[str, Any]) -> None:
    train = followup(small["train_last_censored"])
    grid = time_grid(train, np.array([4.0, 8.0, 30.0]))
    assert len(grid) > 1
    assert (grid >= 4.0).all()
    assert (grid < train.end).all()
    assert len(time_grid(train, np.array([11.0, 12.0]))) == 0


def test_curves_without_a_grid_or_of_another_shape(small: dict[str, Any]) -> None:
    train = followup(small["train"])
    time, event, risk = arrays(small["test"], "time", "event", "risk")
    assert brier_over_time(train, time, event, np.ones((5, 1)), np.array([3.0])).summary.reason == "too_few_times"
    assert auc_over_time(train, time, event, risk, np.empty(0)).summary.reason == "no_times"
    assert auc_over_time(train, time, 0 * event, risk, np.array([3.0])).summary.reason == "no_events"
    assert brier_over_time(train, time, 0 * event, np.ones((5, 2)), np.array([3.0, 4.0])).summary.reason == "no_events"
    with pytest.raises(DataError, match=r"shape \(5, 3\); 5 bags at 2 times"):
        brier_over_time(train, time, event, np.ones((5, 3)), np.array([3.0, 5.0]))


def test_times_before_the_first_event_have_no_cases(small: dict[str, Any]) -> None:
    time, event, risk = arrays(small["test"], "time", "event", "risk")
    event[0] = 0
    found = auc_over_time(followup(small["train"]), time, event, risk, np.array([3.0, 5.0, 9.0]))
    assert found.times == (5.0, 9.0)
    assert all(np.isfinite(found.scores))


def test_training_without_censoring_weighs_everybody_the_same(small: dict[str, Any]) -> None:
    time, event, risk = arrays(small["test"], "time", "event", "risk")
    train = Followup(np.array(small["train"]["time"]), np.ones(8))
    assert uno_c(train, time, event, risk, tau=12.0).value == pytest.approx(small["uno.all_train_events"][0], abs=1e-12)


def test_d_calibration_of_the_stored_example(shared: Path) -> None:
    stored = json.loads((shared / "golden/survival/curves_small.json").read_text())["d_calibration"]
    survival, event = arrays(stored, "S_at_own_time", "event")
    counts, p_value = d_calibration(survival, event)
    np.testing.assert_allclose(counts[::-1], stored["histogram"], atol=1e-9)
    assert p_value.value == pytest.approx(stored["p_value"], abs=1e-9)


def test_d_calibration_counts_every_patient_once_whatever_its_value() -> None:
    survival = np.concatenate([np.linspace(0, 1, 41), [0.0, 1.0, 0.1, 0.3]])
    for event in (np.ones(45), np.zeros(45)):
        counts, _ = d_calibration(survival, event)
        assert sum(counts) == pytest.approx(45)
    assert d_calibration(np.array([1.0]), np.array([0]))[0] == pytest.approx([0.1] * 10)
    assert d_calibration(np.array([0.25]), np.array([0]))[0][:3] == pytest.approx([0.4, 0.4, 0.2])
    assert d_calibration(np.ones(49), np.ones(49))[1].reason == "too_few"
    assert d_calibration(np.ones(50), np.ones(50))[1].value == pytest.approx(chi2.sf(450, 9))
    with pytest.raises(DataError, match=r"outside \[0, 1\]"):
        d_calibration(np.array([1.2]), np.array([1]))
