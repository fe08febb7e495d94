"""Survival curves, times and risk scores against stored values and identities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.curves import (
    mean_time_left_edge,
    median_time,
    restricted_mean,
    risk_score,
    survival_from_hazards,
    survival_from_incidence,
)


@pytest.fixture(scope="module")
def stored(shared: Path) -> dict:
    return json.loads((shared / "golden/survival/curves_small.json").read_text())


@pytest.fixture(scope="module")
def losses(shared: Path) -> dict:
    return json.loads((shared / "golden/survival/losses_small.json").read_text())


def assert_equal(actual: Tensor, expected: object, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance)


@pytest.mark.parametrize("head", ["pmf", "hazard"])
def test_curves_times_and_risks_as_stored(stored: dict, losses: dict, head: str) -> None:
    logits_BK = torch.tensor(losses["inputs"]["logits"], dtype=torch.float64)
    curve_BK = survival_from_incidence(logits_BK) if head == "pmf" else survival_from_hazards(logits_BK)
    edges, values = stored["edges"], stored[head]
    assert_equal(curve_BK, stored[f"S_{head}_end_of_bin"])
    assert_equal(restricted_mean(curve_BK, edges), values["restricted_mean_linear"])
    assert_equal(median_time(curve_BK, edges), values["median_linear"])
    assert_equal(mean_time_left_edge(curve_BK, edges[:-1]), values["vlsa_mean_time"], 1e-6)
    assert_equal(risk_score(curve_BK, edges, "neg_sum_S"), values["risk_neg_sum_S"])
    assert_equal(risk_score(curve_BK, edges, "neg_rmst"), [-time for time in values["restricted_mean_linear"]])
    assert_equal(risk_score(curve_BK, edges, "vlsa_mean_time"), [-time for time in values["vlsa_mean_time"]], 1e-6)


def test_the_closed_form_of_the_published_mean_time(stored: dict) -> None:
    curve_BK = torch.tensor(stored["S_pmf_end_of_bin"], dtype=torch.float64)
    assert_equal(mean_time_left_edge(curve_BK, stored["edges"][:-1]), stored["vlsa_mean_time_closed_form_pmf"])


def test_the_tail_takes_mass_beyond_the_last_bin(losses: dict) -> None:
    logits_BK = torch.tensor(losses["inputs"]["logits"], dtype=torch.float64)
    stored_BK = torch.tensor(losses["derived"]["pmf_tail_softmax_pad0"], dtype=torch.float64)
    curve_BK = survival_from_incidence(logits_BK, tail=True)
    assert_equal(curve_BK[:, -1], stored_BK[:, -1].tolist())
    assert_equal(curve_BK, (1 - stored_BK.cumsum(1)[:, :-1]).tolist())


def test_a_median_that_is_not_reached_is_infinite() -> None:
    curve_BK = torch.tensor([[0.9, 0.6], [0.9, 0.5], [0.5, 0.1]], dtype=torch.float64)
    assert_equal(median_time(curve_BK, [0.0, 10.0, 30.0]), [float("inf"), 30.0, 10.0])


@given(st.lists(st.lists(st.floats(-6, 6), min_size=4, max_size=4), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_incidence_and_hazard_heads_describe_the_same_curves(rows: list[list[float]]) -> None:
    logits_BK = torch.tensor(rows, dtype=torch.float64)
    mass_BK, curve_BK = logits_BK.softmax(1), survival_from_incidence(logits_BK)
    before_BK = torch.cat([torch.ones(len(rows), 1, dtype=torch.float64), curve_BK[:, :-1]], dim=1)
    torch.testing.assert_close(before_BK - curve_BK, mass_BK)
    hazard_BK = (mass_BK / before_BK)[:, :-1]
    torch.testing.assert_close(survival_from_hazards(hazard_BK.logit()), curve_BK[:, :-1])
    expected_bin_B = (mass_BK * torch.arange(4)).sum(1)
    torch.testing.assert_close(risk_score(curve_BK, [0, 1, 2, 3, 4], "neg_sum_S"), -expected_bin_B)
    midpoints_B = (mass_BK * torch.tensor([1.0, 3.0, 5.5, 8.5])).sum(1)
    torch.testing.assert_close(restricted_mean(curve_BK, [0, 2, 4, 7, 10]), midpoints_B)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_curves_never_rise_and_stay_between_0_and_1(row: list[float]) -> None:
    logits_BK = torch.tensor([row])
    for curve_BK in (
        survival_from_incidence(logits_BK),
        survival_from_incidence(logits_BK, tail=True),
        survival_from_hazards(logits_BK),
    ):
        assert curve_BK.dtype == torch.float64
        assert curve_BK.shape == logits_BK.shape
        assert (curve_BK.diff(dim=1) <= 1e-15).all()
        assert ((curve_BK >= 0) & (curve_BK <= 1 + 1e-15)).all()


def test_a_nearly_collapsed_float32_model_still_ranks() -> None:
    logits_BK = torch.zeros(2, 4)
    logits_BK[1, 3] = 1e-6
    first, second = risk_score(survival_from_incidence(logits_BK), [0, 1, 2, 3, 4], "neg_sum_S").tolist()
    assert first - second == pytest.approx(3.75e-7, rel=1e-2)
