"""Attention diagnostics against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asmil.metrics.attention import jensen_shannon, mean_jensen_shannon, normalized_entropy, top_mass

WEIGHTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=8).filter(
    lambda rows: all(sum(column) > 0 for column in zip(*rows, strict=True))
)


def test_jensen_shannon_of_two_coins() -> None:
    a, b = 0.9, 0.4
    m = (a + b) / 2
    kl_a = a * math.log(a / m) + (1 - a) * math.log((1 - a) / (1 - m))
    kl_b = b * math.log(b / m) + (1 - b) * math.log((1 - b) / (1 - m))
    assert jensen_shannon([a, 1 - a], [b, 1 - b]) == pytest.approx((kl_a + kl_b) / 2, abs=1e-15)


def test_jensen_shannon_of_disjoint_and_of_half_overlapping_supports() -> None:
    assert jensen_shannon([0.5, 0.5, 0, 0], [0, 0, 0.25, 0.75]) == pytest.approx(math.log(2), abs=1e-15)
    assert jensen_shannon([0.5, 0.5, 0], [0, 0.5, 0.5]) == pytest.approx(math.log(2) / 2, abs=1e-15)


@given(WEIGHTS)
@settings(max_examples=80)
def test_jensen_shannon_is_entropy_of_the_mixture_minus_mean_entropy(rows: list[tuple[int, int]]) -> None:
    p, q = (np.array(column) / sum(column) for column in zip(*rows, strict=True))

    def entropy(w: np.ndarray) -> float:
        return -sum(x * math.log(x) for x in w if x > 0)

    expected = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    assert jensen_shannon(p, q) == pytest.approx(expected, abs=1e-12)
    assert jensen_shannon(p, q) == pytest.approx(jensen_shannon(q, p), abs=1e-15)
    assert jensen_shannon(p, p) == 0.0


def test_mean_over_columns_and_tensors() -> None:
    p_NK = torch.softmax(torch.tensor([[0.0, 3.0], [1.0, -1.0], [2.0, 0.5]]), dim=0)
    q_NK = torch.softmax(torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 1.0]]), dim=0)
    columns = [jensen_shannon(p_NK[:, k], q_NK[:, k]) for k in range(2)]
    assert mean_jensen_shannon(p_NK, q_NK) == pytest.approx(np.mean(columns), abs=1e-15)


def test_rounding_of_low_precision_weights_is_rescaled() -> None:
    p = torch.full((1000,), 1 / 1000).to(torch.float16)
    assert abs(float(p.double().sum()) - 1) > 1e-5
    assert normalized_entropy(p) == pytest.approx(1.0, abs=1e-12)
    assert top_mass(p, share=1.0) == pytest.approx(1.0, abs=1e-12)


def test_normalized_entropy_of_a_biased_coin_and_extremes() -> None:
    expected = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8)) / math.log(2)
    assert normalized_entropy([0.2, 0.8]) == pytest.approx(expected, abs=1e-15)
    assert normalized_entropy([0.0, 1.0, 0.0]) == 0.0
    assert normalized_entropy([1.0]) is None


@pytest.mark.parametrize(("n", "share", "count"), [(10, 0.01, 1), (100, 0.01, 1), (101, 0.01, 2), (100, 0.07, 7)])
def test_top_mass_rounds_up_to_whole_instances(n: int, share: float, count: int) -> None:
    weights = np.arange(1, n + 1) / (n * (n + 1) / 2)
    expected = sum(range(n - count + 1, n + 1)) / (n * (n + 1) / 2)
    assert top_mass(np.random.default_rng(0).permutation(weights), share) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weights", [[0.5, 0.4], [1.5, -0.5], [math.nan, 1.0]])
def test_what_is_no_distribution_is_refused(weights: list[float]) -> None:
    with pytest.raises(AssertionError, match="attention weights"):
        normalized_entropy(weights)
