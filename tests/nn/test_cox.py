"""Losses over sets of patients against stored reference values and the sums that define them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asmil.nn.cox import cox_loss, ranking_loss


@pytest.fixture(scope="module")
def stored(shared: Path) -> dict:
    return json.loads((shared / "golden/survival/losses_small.json").read_text())


def patients(inputs: dict) -> tuple[Tensor, Tensor, Tensor]:
    theta_B = torch.tensor(inputs["theta"], dtype=torch.float64, requires_grad=True)
    return theta_B, torch.tensor(inputs["time"]), torch.tensor(inputs["e"])


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize(("inputs", "key"), [("inputs", "reference.cox"), ("inputs_ties", "reference.cox.tied")])
def test_stored_sums(stored: dict, inputs: str, key: str, ties: str) -> None:
    theta_B, time_B, event_B = patients(stored[inputs])
    expected = stored["values"][f"{key}.{ties}.f64"]
    assert cox_loss(theta_B, time_B, event_B, ties=ties).sum().item() == pytest.approx(expected["sum"], abs=1e-9)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_stored_gradients_with_tied_events(stored: dict, ties: str) -> None:
    theta_B, time_B, event_B = patients(stored["inputs_ties"])
    (grad_B,) = torch.autograd.grad(cox_loss(theta_B, time_B, event_B, ties=ties).sum(), theta_B)
    expected = torch.tensor(stored["values"][f"torchsurv.cox.tied.{ties}.sum"]["grad"], dtype=torch.float64)
    torch.testing.assert_close(grad_B, expected, rtol=5e-6, atol=5e-6)


def test_the_published_breslow_loss_is_the_mean_over_patients(stored: dict) -> None:
    theta_B, time_B, event_B = patients(stored["inputs_ties"])
    expected = stored["values"]["VLSA.SurvPLE.tied"]
    loss = cox_loss(theta_B, time_B, event_B, ties="breslow").mean()
    (grad_B,) = torch.autograd.grad(loss, theta_B)
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-6)
    torch.testing.assert_close(grad_B, torch.tensor(expected["grad"], dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sigma", ["0.1", "0.5"])
def test_stored_ranking_terms_with_their_gradients(stored: dict, sigma: str) -> None:
    inputs = stored["inputs"]
    logits_BK = torch.tensor(inputs["logits"], dtype=torch.float64, requires_grad=True)
    bin_B, event_B = torch.tensor(inputs["t"]), torch.tensor(inputs["e"])
    loss = ranking_loss(logits_BK, bin_B, bin_B, event_B, sigma=float(sigma), tail=True).mean()
    expected = stored["values"][f"pycox.rank_loss_deephit_single.sigma{sigma}.mean"]
    (grad_BK,) = torch.autograd.grad(loss, logits_BK)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-6)
    torch.testing.assert_close(grad_BK, torch.tensor(expected["grad"], dtype=torch.float64), rtol=1e-5, atol=1e-6)


@st.composite
def sets(draw: st.DrawFn) -> tuple[list[float], list[int], list[int]]:
    """Risks, few distinct times, events of up to seven patients."""
    count = draw(st.integers(1, 7))
    theta = draw(st.lists(st.floats(-30, 30), min_size=count, max_size=count))
    time = draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
    return theta, time, draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))


def brute_force(theta: list[float], time: list[int], event: list[int], ties: str) -> float:
    """The definition, event by event, relative to the largest risk."""
    weight = [math.exp(value - max(theta)) for value in theta]
    total = 0.0
    for at in sorted(set(time)):
        tied = [row for row in range(len(time)) if time[row] == at and event[row]]
        risk_set = sum(weight[row] for row in range(len(time)) if time[row] >= at)
        for number, row in enumerate(tied):
            left = number / len(tied) * sum(weight[other] for other in tied) if ties == "efron" else 0.0
            total += math.log(risk_set - left) + max(theta) - theta[row]
    return total


@given(sets(), st.sampled_from(["efron", "breslow"]))
@settings(max_examples=150, deadline=None)
def test_the_sum_is_that_of_the_definition_in_any_order(drawn: tuple[list, list, list], ties: str) -> None:
    theta, time, event = drawn
    given_order = cox_loss(torch.tensor(theta, dtype=torch.float64), torch.tensor(time), torch.tensor(event), ties=ties)
    assert given_order.sum().item() == pytest.approx(brute_force(theta, time, event, ties), rel=1e-7, abs=1e-7)
    assert (given_order[torch.tensor(event) == 0] == 0).all()
    back = list(reversed(range(len(theta))))
    reverse = cox_loss(
        torch.tensor(theta, dtype=torch.float64)[back], torch.tensor(time)[back], torch.tensor(event)[back], ties=ties
    )
    assert reverse.sum().item() == pytest.approx(given_order.sum().item(), rel=1e-9, abs=1e-9)


@given(sets())
@settings(max_examples=50, deadline=None)
def test_gradients_are_finite_and_sum_to_nothing(drawn: tuple[list, list, list]) -> None:
    theta, time, event = drawn
    theta_B = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    (grad_B,) = torch.autograd.grad(cox_loss(theta_B, torch.tensor(time), torch.tensor(event)).sum(), theta_B)
    assert torch.isfinite(grad_B).all()
    assert grad_B.sum().item() == pytest.approx(0, abs=1e-9), "only differences of risks matter"


def test_one_patient_and_no_events_have_nothing_to_compare() -> None:
    assert cox_loss(torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([1])).tolist() == [0.0]
    assert cox_loss(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0]), torch.tensor([0, 0])).tolist() == [0.0, 0.0]


def test_large_risks_stay_finite_and_half_precision_is_widened() -> None:
    loss_B = cox_loss(torch.tensor([1000.0, -1000.0, 0.0]).bfloat16(), torch.tensor([1, 1, 2]), torch.tensor([1, 1, 0]))
    assert loss_B.dtype == torch.float32
    # Efron: the two tied events see a set of (about) one member, then of half of it.
    assert loss_B.sum().item() == pytest.approx(2000 - math.log(2), abs=1e-2)


@given(sets(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_ranking_term_is_the_mean_over_pairs(drawn: tuple[list, list, list], tail: bool) -> None:
    theta, time, event = drawn
    generator = torch.Generator().manual_seed(len(theta))
    logits_BK = torch.randn(len(theta), 4, dtype=torch.float64, generator=generator)
    bins = [value - 1 for value in time]
    rows = [[*row, 0.0] if tail else row for row in logits_BK.tolist()]
    mass = [[math.exp(value) / sum(map(math.exp, row)) for value in row] for row in rows]
    loss = ranking_loss(
        logits_BK, torch.tensor(bins), torch.tensor(time), torch.tensor(event), sigma=0.3, tail=tail
    ).tolist()
    for i, value in enumerate(loss):
        dead = [sum(row[: bins[i] + 1]) for row in mass]
        pairs = [j for j in range(len(time)) if time[i] < time[j] or (time[i] == time[j] and not event[j])]
        terms = [math.exp(-(dead[i] - dead[j]) / 0.3) for j in pairs if event[i]]
        assert value == pytest.approx(sum(terms) / len(time), rel=1e-9, abs=1e-12)
