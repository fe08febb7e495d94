"""Figures of features against NumPy over all values at once, and affine dependence against exact ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sympy

from asmil.data.inspection.duplicates import same_features
from asmil.data.inspection.features import draw_bags, is_affinely_dependent, scan_features
from asmil.data.store import BagStore
from tests.data import stores


def exactly_dependent(values_ND: np.ndarray) -> bool:
    """By the definition, in rational numbers: the rank of h_n - h_1 over all n is less than N - 1."""
    differences = sympy.Matrix((values_ND[1:] - values_ND[0]).astype(int).tolist())
    return bool(differences.rank() < len(values_ND) - 1)


@pytest.mark.parametrize("seed", range(40))
def test_affine_dependence_is_that_of_exact_arithmetic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_features = int(rng.integers(2, 7))
    values_ND = rng.integers(-1, 2, size=(int(rng.integers(2, num_features + 2)), num_features)).astype(float)
    assert is_affinely_dependent(values_ND) == exactly_dependent(values_ND)


def test_both_answers_occur_among_the_exact_cases() -> None:
    rng = np.random.default_rng(0)
    found = {exactly_dependent(rng.integers(-1, 2, size=(4, 4)).astype(float)) for _ in range(40)}
    assert found == {True, False}


@pytest.mark.parametrize(
    ("values", "dependent"),
    [
        ([[1, 2]], False),
        ([[1, 2], [1, 2]], True),
        ([[0, 0], [5, 5]], False),
        ([[0, 0], [1, 1], [2, 2]], True),  # on a line
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], False),
        ([[0, 0, 0], [2, 0, 0], [0, 4, 0], [1, 2, 0]], True),  # the middle of the second and third
        ([[0, 0], [1, 0], [0, 1], [7, 3]], True),  # more than D + 1 points
        ([[1, 1], [2, 2]], False),  # linearly dependent, but affinely not
    ],
)
def test_affine_dependence_of_small_sets(values: list[list[int]], dependent: bool) -> None:
    assert is_affinely_dependent(np.array(values, dtype=float)) is dependent


@pytest.mark.parametrize(("height", "dependent"), [(1.0, False), (2.0**-24, False), (1e-12, False), (0.0, True)])
def test_nearly_dependent_rows_are_independent(height: float, dependent: bool) -> None:
    assert is_affinely_dependent(np.array([[0, 0, 0], [1, 0, 0], [2, 0, height]])) is dependent


@pytest.mark.parametrize("num_instances", [60, 64, 65])
def test_correlated_features_of_many_rows(num_instances: int) -> None:
    """A spectrum over six orders of magnitude, with and without a row that is a mean of two others."""
    rng = np.random.default_rng(num_instances)
    values_ND = (rng.standard_normal((num_instances, 64)) * np.logspace(0, -6, 64)).astype(np.float32)
    assert not is_affinely_dependent(values_ND)
    values_ND = values_ND.astype(np.float16).astype(np.float64)
    values_ND[5] = (values_ND[7] + values_ND[11]) / 2
    assert is_affinely_dependent(values_ND)


@pytest.fixture
def figures_store(tmp_path: Path) -> tuple[BagStore, dict[str, np.ndarray]]:
    """Bags shorter and longer than one piece of the scan, with a constant column, zero rows and repeated rows."""
    bags = stores.draw_bags([1, 3, 5, 2_500, 4, 4], num_features=4)
    for values_ND in bags.values():
        values_ND[:] = values_ND.astype(np.float16)
        values_ND[:, 2] = 0.5
    bags["S1"][2] = bags["S1"][0]
    bags["S2"][3] = 0
    bags["S2"][3, 2] = 0.5
    bags["S5"] = np.arange(16, dtype=np.float32).reshape(4, 4) ** 2
    bags["S5"][:, 2] = 0.5
    return BagStore.open(str(stores.write_store(tmp_path / "s", bags))), bags


def test_moments_and_extremes_are_those_of_all_values_together(
    figures_store: tuple[BagStore, dict[str, np.ndarray]],
) -> None:
    store, bags = figures_store
    values_MD = np.concatenate(list(bags.values())).astype(np.float64)
    found = scan_features(store, store.slide_ids)
    assert (found.bags, found.instances, found.is_complete) == (6, len(values_MD), True)
    assert found.mean == pytest.approx(values_MD.mean(), rel=1e-12)
    assert found.sd == pytest.approx(values_MD.std(), rel=1e-12)
    assert found.largest == np.abs(values_MD).max()
    assert found.zero_share == (values_MD == 0).mean()
    assert found.constant_columns == (2,)


def test_repeated_and_zero_rows_are_counted_by_bag(tmp_path: Path) -> None:
    bags = stores.draw_bags([4, 4, 4], num_features=3)
    bags["S0"][1:] = bags["S0"][0]
    bags["S1"][[0, 3]] = 0
    store = BagStore.open(str(stores.write_store(tmp_path / "s", bags)))
    found = scan_features(store, store.slide_ids)
    assert (found.bags_with_repeated_rows, found.repeated_rows) == (("S0", "S1"), 4)
    assert (found.bags_with_zero_rows, found.zero_rows) == (("S1",), 2)


def test_share_of_dependent_bags_counts_long_ones_and_checks_the_others(
    figures_store: tuple[BagStore, dict[str, np.ndarray]],
) -> None:
    store, bags = figures_store
    found = scan_features(store, store.slide_ids).dependence
    long = [name for name, values_ND in bags.items() if len(values_ND) > 5]
    short = [is_affinely_dependent(values_ND.astype(float)) for name, values_ND in bags.items() if name not in long]
    assert (found.by_count, found.checked, found.dependent) == (1, 5, sum(short))
    assert found.dependent >= 2
    assert found.share == pytest.approx((1 + sum(short)) / 6)
    assert not found.is_estimate


def test_share_of_a_sample_is_an_estimate(tmp_path: Path) -> None:
    bags = stores.draw_bags([2] * 8 + [20] * 2, num_features=3)
    for name in ("S0", "S1", "S2"):
        bags[name][1] = bags[name][0]
    store = BagStore.open(str(stores.write_store(tmp_path / "s", bags)))
    found = scan_features(store, ("S0", "S3", "S4", "S5"))
    assert not found.is_complete
    assert (found.dependence.by_count, found.dependence.checked, found.dependence.dependent) == (2, 4, 1)
    assert found.dependence.is_estimate
    assert found.dependence.share == pytest.approx((2 + 8 * 1 / 4) / 10)
    long_only = scan_features(store, ("S8",)).dependence
    assert (long_only.share, long_only.is_estimate) == (None, True)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_all_dtypes_are_read(tmp_path: Path, dtype: str) -> None:
    values_ND = np.array([[0.5, -2.0], [0.25, 4.0]], dtype=np.float32)
    bits = (values_ND.view(np.uint32) >> 16).astype(np.uint16)
    bag_ND = bits if dtype == "bfloat16" else values_ND
    store = BagStore.open(str(stores.write_store(tmp_path / "s", {"a": bag_ND}, dtype=dtype)))
    found = scan_features(store, ("a",))
    assert (found.mean, found.largest, found.repeated_rows) == (values_ND.mean(), 4.0, 0)


def test_sample_is_the_same_each_time_and_in_stored_order() -> None:
    names = [f"b{number}" for number in range(100)]
    drawn = draw_bags(names, 10)
    assert drawn == draw_bags(names, 10)
    assert len(set(drawn)) == 10
    assert list(drawn) == sorted(drawn, key=names.index)
    assert draw_bags(names, 100) == draw_bags(names, 1000) == tuple(names)


def test_same_features_are_found_whatever_the_coordinates(tmp_path: Path) -> None:
    bags = stores.draw_bags([3, 3, 4, 3])
    bags["S3"] = bags["S0"]
    store = BagStore.open(str(stores.write_store(tmp_path / "s", bags)))
    assert same_features([store]) == [("S0", "S3")]
