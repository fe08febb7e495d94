"""Wilson's interval against its equation."""

from __future__ import annotations

import math

import pytest

from asmil.errors import DataError
from asmil.metrics.intervals import wilson_interval

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
