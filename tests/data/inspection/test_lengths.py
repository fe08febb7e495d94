"""Bag lengths against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asmil.data.inspection.lengths import summarise_lengths


@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=60))
def test_every_bag_is_in_one_bin_and_the_figures_are_those_of_numpy(lengths: list[int]) -> None:
    found = summarise_lengths(lengths)
    quartiles = [float(np.quantile(lengths, share)) for share in (0.25, 0.5, 0.75)]
    assert [found.quartile_1, found.median, found.quartile_3] == quartiles
    assert (found.shortest, found.longest) == (min(lengths), max(lengths))
    assert found.mean == pytest.approx(sum(lengths) / len(lengths))
    for part in found.bins:
        assert part.bags == sum(part.low <= length <= part.high for length in lengths)
    assert sum(part.bags for part in found.bins) == len(lengths)
    assert found.bins[0].bags > 0
    assert found.bins[-1].bags > 0


def test_edges_are_one_two_and_five_times_powers_of_ten() -> None:
    bins = summarise_lengths([1, 2_000]).bins
    assert [part.low for part in bins] == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000]
    assert bins[-1].high == 4_999
