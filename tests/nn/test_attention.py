"""Normalizers over packed bags, against closed forms and their plain definitions."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asmil.nn.attention import (
    entmax,
    log_nsf,
    log_softmax,
    log_softmax_nsf_mixture,
    sum_over_instances,
    weighted_sums,
)
from tests.nn.strategies import lengths, seeds


def scores_of(sizes: list[int], seed: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    return scale * torch.randn(int(offsets[-1]), 3, generator=generator, dtype=torch.float64), offsets


@given(lengths, seeds)
@settings(max_examples=30, deadline=None)
def test_softmax_and_nsf_equal_their_definitions_bag_by_bag(sizes: list[int], seed: int) -> None:
    scores, offsets = scores_of(sizes, seed)
    for normalized, raw in (
        (log_softmax(scores, offsets, temperature=0.5).exp(), (scores / 0.5).exp()),
        (log_nsf(scores, offsets, temperature=0.2).exp(), torch.sigmoid(scores / 0.2)),
    ):
        for start, end in pairwise(offsets.tolist()):
            expected = raw[start:end] / raw[start:end].sum(dim=0)
            torch.testing.assert_close(normalized[start:end], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [1000.0, -1000.0])
def test_extreme_scores_stay_distributions(dtype: torch.dtype, value: float) -> None:
    scores = torch.tensor([[value], [value], [0.0]], dtype=dtype).float()
    offsets = torch.tensor([0, 2, 3])
    for log_weights in (
        log_softmax(scores, offsets),
        log_nsf(scores, offsets),
        log_nsf(scores, offsets, temperature=0.07),
    ):
        torch.testing.assert_close(log_weights.exp(), torch.tensor([[0.5], [0.5], [1.0]]))


def test_a_single_instance_gets_all_the_weight() -> None:
    scores, offsets = torch.tensor([[-87.3, 4.0]]), torch.tensor([0, 1])
    for weights in (
        log_softmax(scores, offsets).exp(),
        log_nsf(scores, offsets).exp(),
        entmax(scores, offsets, alpha=1.5),
        log_softmax_nsf_mixture(scores, offsets, torch.tensor(0.3)).exp(),
    ):
        torch.testing.assert_close(weights, torch.ones(1, 2))


def test_nsf_eps_is_added_to_the_sum_of_sigmoids() -> None:
    scores, offsets = torch.full((4, 1), -30.0, dtype=torch.float64), torch.tensor([0, 4])
    sigmoid = torch.sigmoid(torch.tensor(-30.0, dtype=torch.float64))
    expected = float(4 * sigmoid / (4 * sigmoid + 1e-8))
    assert log_nsf(scores, offsets, eps=1e-8).exp().sum() == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(3.7e-5, rel=0.02)


@given(
    st.floats(0.1, 5),
    st.floats(0.05, 2),
    st.lists(st.floats(-8, 8), min_size=2, max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_theorem_1_bounds_nsf_weights(a: float, tau: float, values: list[float]) -> None:
    scores = torch.tensor([*values, a, -a - 1e-6], dtype=torch.float64)[:, None]
    log_weights = log_nsf(scores, torch.tensor([0, len(scores)]), temperature=tau)
    high = log_weights[scores >= a]
    low = log_weights[scores < -a]
    assert high.max() - high.min() <= math.log1p(math.exp(-a / tau)) + 1e-9
    assert low.max() - high.min() <= -a / tau + 1e-9


@given(st.floats(0.1, 4), st.floats(0.1, 2), st.floats(0.01, 3))
@settings(max_examples=60, deadline=None)
def test_theorem_1_no_softmax_temperature_meets_both_bounds(a: float, tau: float, above: float) -> None:
    b = a + 2 * tau * math.log1p(math.exp(-a / tau)) + above
    spread_allows = (b - a) / math.log1p(math.exp(-a / tau))
    separation_needs = 2 * a / (a / tau)
    assert spread_allows > separation_needs
    scores = torch.tensor([[-a], [a], [b]], dtype=torch.float64)
    for temperature in torch.logspace(-2, 2, 40).tolist():
        log_weights = log_softmax(scores, torch.tensor([0, 3]), temperature=temperature)[:, 0]
        tight = log_weights[2] - log_weights[1] <= math.log1p(math.exp(-a / tau))
        separated = log_weights[0] - log_weights[1] <= -a / tau
        assert not (tight and separated)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=9), st.sampled_from([1.25, 1.5, 2.0]))
@settings(max_examples=60, deadline=None)
def test_entmax_solves_its_optimality_condition(values: list[float], alpha: float) -> None:
    scores = torch.tensor(values, dtype=torch.float64)[:, None]
    weights = entmax(scores, torch.tensor([0, len(values)]), alpha=alpha)[:, 0]
    assert float(weights.sum()) == pytest.approx(1, abs=1e-9)
    threshold = (alpha - 1) * scores[:, 0] - weights ** (alpha - 1)
    inside = weights > 0
    tau = threshold[inside].mean()
    torch.testing.assert_close(threshold[inside], tau.expand(int(inside.sum())), atol=1e-6, rtol=0)
    assert ((alpha - 1) * scores[~inside, 0] <= tau + 1e-6).all()


def test_sparsemax_closed_form() -> None:
    weights = entmax(torch.tensor([[0.3], [0.1], [-2.0]]), torch.tensor([0, 3]), alpha=2.0)[:, 0]
    torch.testing.assert_close(weights, torch.tensor([0.6, 0.4, 0.0]))


def test_mixture_interpolates_softmax_and_nsf() -> None:
    scores, offsets = scores_of([4, 2], seed=3)
    share = torch.sigmoid(torch.tensor(0.7, dtype=torch.float64))
    expected = share * log_softmax(scores, offsets).exp() + (1 - share) * log_nsf(scores, offsets).exp()
    mixed = log_softmax_nsf_mixture(scores, offsets, torch.tensor(0.7, dtype=torch.float64)).exp()
    torch.testing.assert_close(mixed, expected)


@given(lengths, seeds)
@settings(max_examples=30, deadline=None)
def test_sums_equal_a_loop_over_instances(sizes: list[int], seed: int) -> None:
    weights, offsets = scores_of(sizes, seed)
    features, _ = scores_of(sizes, seed + 1)
    pooled = torch.zeros(len(sizes), 3, 3, dtype=torch.float64)
    totals = torch.zeros(len(sizes), 3, dtype=torch.float64)
    for bag, (start, end) in enumerate(pairwise(offsets.tolist())):
        for row in range(start, end):
            pooled[bag] += weights[row][:, None] * features[row][None, :]
            totals[bag] += weights[row]
    torch.testing.assert_close(weighted_sums(weights, features, offsets), pooled)
    torch.testing.assert_close(sum_over_instances(weights, offsets), totals)
