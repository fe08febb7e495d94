"""Intervals against closed forms and full enumeration of resamples."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from asmil.errors import DataError
from asmil.metrics.intervals import clustered_bootstrap, wilson_interval

Z = 1.959963984540054


@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (8, 10), (97, 102), (1, 1)])
def test_wilson_interval_solves_the_score_equation(k: int, n: int) -> None:
    centre = (k / n + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(k / n * (1 - k / n) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    assert wilson_interval(k, n) == pytest.approx((centre - half, centre + half), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_interval_needs_trials(k: int, n: int) -> None:
    with pytest.raises(DataError, match="no proportion"):
        wilson_interval(k, n)


def test_singleton_groups_give_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(size=200)
    low, high = clustered_bootstrap(lambda rows: values[rows].mean(), range(200), resamples=4000, seed=3)
    half = Z * values.std() / math.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.12 * half)


def test_interval_equals_enumeration_over_whole_groups() -> None:
    values, groups = np.array([0.0, 1.0, 5.0, 6.0, 20.0]), ["a", "a", "b", "b", "c"]
    members = [np.array([0, 1]), np.array([2, 3]), np.array([4])]
    means = [values[np.concatenate(draw)].mean() for draw in itertools.product(members, repeat=3)]
    expected = tuple(np.quantile(means, (0.025, 0.975), method="inverted_cdf"))
    assert clustered_bootstrap(lambda rows: values[rows].mean(), groups, resamples=20_000) == pytest.approx(expected)


def test_duplicated_rows_widen_the_interval_only_if_treated_as_independent() -> None:
    values = np.repeat(np.random.default_rng(2).normal(size=50), 4)

    def mean(rows: np.ndarray) -> float:
        return float(values[rows].mean())

    by_patient = clustered_bootstrap(mean, np.repeat(np.arange(50), 4).tolist(), resamples=3000)
    by_row = clustered_bootstrap(mean, range(200), resamples=3000)
    assert np.ptp(by_patient) == pytest.approx(2 * np.ptp(by_row), rel=0.1)


def test_groups_are_drawn_whole_and_within_their_stratum() -> None:
    groups, strata = ["a", "b", "a", "c", "d", "d"], [0, 0, 0, 1, 1, 1]
    seen: list[Counter[int]] = []
    clustered_bootstrap(lambda rows: seen.append(Counter(rows.tolist())), groups, strata=strata, resamples=200)
    assert len(seen) == 200
    for counts in seen:
        assert counts[0] == counts[2]
        assert counts[4] == counts[5]
        assert counts[0] + counts[1] == 2
        assert counts[3] + counts[4] == 2
    assert len({tuple(sorted(counts.items())) for counts in seen}) == 9


def test_same_seed_same_interval() -> None:
    values = np.arange(30.0)
    first, again, other = (
        clustered_bootstrap(lambda rows: values[rows].mean(), range(30), resamples=100, seed=s) for s in (5, 5, 6)
    )
    assert first == again != other


def test_no_interval_where_it_would_mean_nothing() -> None:
    assert clustered_bootstrap(lambda rows: 1.0, ["a", "a", "a"]) is None
    assert clustered_bootstrap(lambda rows: 1.0, []) is None
    assert clustered_bootstrap(lambda rows: None, range(5), resamples=20) is None
    undefined_without_first = clustered_bootstrap(lambda rows: 7.0 if 0 in rows else None, range(5), resamples=200)
    assert undefined_without_first == (7.0, 7.0)
    assert clustered_bootstrap(lambda rows: 7.0 if {0, 1, 2, 3} <= set(rows) else None, range(5)) is None


def test_a_group_in_two_strata_is_refused() -> None:
    with pytest.raises(DataError, match="'a' lies in strata 0 and 1"):
        clustered_bootstrap(lambda rows: 1.0, ["a", "a"], strata=[0, 1])
    with pytest.raises(DataError, match="2 groups but 1 strata"):
        clustered_bootstrap(lambda rows: 1.0, ["a", "b"], strata=[0])
