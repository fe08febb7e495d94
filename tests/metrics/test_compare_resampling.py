"""Weighted metrics against the metrics of drawn rows; bootstrap and permutation against scipy and enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from asmil.errors import DataError
from asmil.metrics import resampling
from asmil.metrics.classification import classification_metrics
from asmil.metrics.resampling import bootstrap, paired_permutation, sign_flip_p
from asmil.metrics.survival import TIED_RISK, harrell_c
from asmil.metrics.weighted import class_statistics, concordance, confusion_statistics
from tests.row_bootstrap import row_bootstrap


def _mean(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda weights_RB: weights_RB @ values / weights_RB.sum(axis=1)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_weighted_class_metrics_equal_those_of_the_drawn_rows(num_classes: int) -> None:
    generator = np.random.default_rng(num_classes)
    names = [f"c{c}" for c in range(num_classes)]
    labels_B = generator.integers(num_classes, size=9)
    probabilities_BC = np.round(generator.random((9, num_classes)), 1)
    drawn_RB = generator.integers(9, size=(200, 9))
    drawn_RB[0] = drawn_RB[0, 0]  # one class
    weights_RB = np.stack([np.bincount(rows, minlength=9) for rows in drawn_RB]).astype(float)
    undefined = 0
    for name, statistic in class_statistics(probabilities_BC, labels_B).items():
        for rows, value in zip(drawn_RB, statistic(weights_RB), strict=True):
            expected = classification_metrics(probabilities_BC[rows], labels_B[rows], names)[name].value
            undefined += expected is None
            assert value == pytest.approx(np.nan if expected is None else expected, nan_ok=True, abs=1e-12), name
    assert undefined > 0


def test_metrics_of_many_predictions_equal_one_by_one() -> None:
    generator = np.random.default_rng(5)
    labels_B, predicted_RB = generator.integers(3, size=12), generator.integers(3, size=(50, 12))
    for name, statistic in confusion_statistics(labels_B, 3).items():
        expected = [classification_metrics(np.eye(3)[row], labels_B, "abc")[name].value for row in predicted_RB]
        assert statistic(predicted_RB) == pytest.approx(expected, abs=1e-12), name


def test_weighted_concordance_equals_harrells_c_of_the_drawn_rows() -> None:
    generator = np.random.default_rng(6)
    time_B = generator.integers(1, 8, size=14).astype(float)
    event_B = generator.random(14) < 0.4
    risk_B = np.round(generator.normal(size=14))
    drawn_RB = generator.integers(14, size=(200, 14))
    drawn_RB[0] = np.flatnonzero(~event_B)[0]
    weights_RB = np.stack([np.bincount(rows, minlength=14) for rows in drawn_RB]).astype(float)
    found_R = concordance(time_B, event_B, risk_B, tied=TIED_RISK)(weights_RB)
    expected = [harrell_c(time_B[rows], event_B[rows], risk_B[rows]).value for rows in drawn_RB]
    assert expected[0] is None
    assert found_R == pytest.approx([np.nan if c is None else c for c in expected], nan_ok=True, abs=1e-12)


def test_bootstrap_agrees_with_scipys_percentile_interval() -> None:
    values = np.random.default_rng(1).exponential(size=80)
    found = bootstrap(_mean(values), range(80), resamples=20_000)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    assert found.interval == pytest.approx(tuple(expected), abs=0.03 * np.ptp(expected))
    assert (found.value, found.undefined, found.num_patients) == (pytest.approx(values.mean()), 0, 80)


def test_bootstrap_draws_whole_patients_within_strata() -> None:
    generator = np.random.default_rng(2)
    patients, values = np.repeat(np.arange(30), 3), generator.normal(size=30).repeat(3) + generator.normal(size=90)
    folds = patients % 2
    found = bootstrap(_mean(values), patients.tolist(), strata=folds.tolist(), resamples=20_000)
    by_rows = row_bootstrap(
        lambda rows: float(values[rows].mean()), patients.tolist(), strata=folds.tolist(), resamples=4000
    )
    assert found.interval == pytest.approx(by_rows, abs=0.06 * np.ptp(by_rows))
    seen: list[np.ndarray] = []

    def watched(weights_RB: np.ndarray) -> np.ndarray:
        seen.append(weights_RB)
        return weights_RB @ values

    bootstrap(watched, patients.tolist(), strata=folds.tolist(), resamples=50)
    for weights_RB in seen[1:]:
        assert (weights_RB[:, folds == 0].sum(axis=1) == 45).all()
        assert (weights_RB.reshape(-1, 30, 3) == weights_RB.reshape(-1, 30, 3)[:, :, :1]).all()


def test_bootstrap_covers_and_holds_its_size() -> None:
    generator = np.random.default_rng(3)
    trials, covered, rejected = 400, 0, 0
    for trial in range(trials):
        values = generator.normal(size=40).repeat(2)
        found = bootstrap(_mean(values), np.arange(40).repeat(2).tolist(), resamples=400, seed=trial)
        assert found.interval is not None
        assert found.p_value is not None
        covered += found.interval[0] <= 0 <= found.interval[1]
        rejected += found.p_value < 0.05
    # A percentile interval of 40 patients is a normal interval with n in place of n - 1: it covers 93.9 %.
    expected = 1 - 2 * stats.t.sf(1.959964 * math.sqrt(39 / 40), 39)
    assert covered / trials == pytest.approx(expected, abs=3 * math.sqrt(0.06 * 0.94 / trials))
    assert rejected / trials == pytest.approx(1 - expected, abs=3 * math.sqrt(0.06 * 0.94 / trials))


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).normal(size=(2, 12))

    def statistic(signed_RB: np.ndarray) -> np.ndarray:
        return signed_RB.sum(axis=1)

    whole = bootstrap(_mean(values[0]), range(12), resamples=300), paired_permutation(statistic, *values, range(12))
    monkeypatch.setattr(resampling, "CELLS_AT_ONCE", 100)
    assert (
        bootstrap(_mean(values[0]), range(12), resamples=300),
        paired_permutation(statistic, *values, range(12)),
    ) == whole
    assert bootstrap(_mean(values[0]), range(12), resamples=300, seed=1) != whole[0]


def test_bootstrap_says_why_there_is_no_interval() -> None:
    values = np.arange(10.0)
    few = bootstrap(_mean(values[:4]), range(4))
    assert (few.interval, few.reason, few.value) == (None, "too_few_patients", 1.5)
    in_strata = bootstrap(_mean(values[:6]), range(6), strata=[0, 0, 1, 1, 2, 2])
    assert in_strata.reason == "too_few_patients"
    assert bootstrap(_mean(np.ones(10)), range(10)).reason == "no_spread"
    assert bootstrap(lambda weights_RB: np.full(len(weights_RB), np.nan), range(10)).reason == "undefined"
    assert bootstrap(_mean(np.empty(0)), []).reason == "undefined"


def test_resamples_without_a_value_are_counted_and_too_many_refused() -> None:
    def without_first(weights_RB: np.ndarray, needed: int) -> np.ndarray:
        has_all = (weights_RB[:, :needed].sum(axis=1)) > 0
        return np.where(has_all, weights_RB @ np.arange(30.0), np.nan)

    some = bootstrap(lambda weights_RB: without_first(weights_RB, 4), range(30), resamples=5000)
    assert some.undefined == pytest.approx(5000 * (26 / 30) ** 30, rel=0.25)
    assert some.interval is not None
    many = bootstrap(lambda weights_RB: without_first(weights_RB, 1), range(30), resamples=5000)
    assert (many.interval, many.p_value, many.reason) == (None, None, "undefined_resamples")
    assert many.undefined == pytest.approx(5000 * (29 / 30) ** 30, rel=0.06)


def test_a_patient_in_two_strata_is_refused() -> None:
    with pytest.raises(DataError, match="group 'a' lies in strata 0 and 1"):
        bootstrap(_mean(np.ones(2)), ["a", "a"], strata=[0, 1])
    with pytest.raises(DataError, match="2 groups but 1 strata"):
        bootstrap(_mean(np.ones(2)), ["a", "b"], strata=[0])


def test_exact_permutation_equals_enumeration_by_patient() -> None:
    generator = np.random.default_rng(8)
    labels_B, groups = generator.integers(2, size=20), np.repeat(np.arange(10), 2)
    first_B = np.where(generator.random(20) < 0.85, labels_B, 1 - labels_B)
    second_B = np.where(generator.random(20) < 0.5, labels_B, 1 - labels_B)

    def difference(one_B: np.ndarray, other_B: np.ndarray) -> float:
        values = [classification_metrics(np.eye(2)[p], labels_B, "ab")["macro_f1"].value for p in (one_B, other_B)]
        return values[0] - values[1]

    observed = difference(first_B, second_B)
    swapped = []
    for swap in itertools.product([False, True], repeat=10):
        mask = np.asarray(swap)[groups]
        swapped.append(difference(np.where(mask, second_B, first_B), np.where(mask, first_B, second_B)))
    expected = np.mean(np.abs(swapped) >= abs(observed) - 1e-12)
    statistic = confusion_statistics(labels_B, 2)["macro_f1"]
    found = paired_permutation(statistic, first_B, second_B, groups.tolist())
    assert (found.is_exact, found.value) == (True, pytest.approx(observed))
    assert found.p_value == pytest.approx(expected)
    assert 0 < expected < 1
    drawn = paired_permutation(statistic, first_B, second_B, groups.tolist(), permutations=60)
    assert (drawn.is_exact, drawn.permutations) == (False, 60)
    assert drawn.p_value * 61 == pytest.approx(round(drawn.p_value * 61))


def test_monte_carlo_permutation_approaches_the_exact_p_and_is_never_0() -> None:
    values = np.random.default_rng(9).normal(0.5, 1, size=15)
    exact = sign_flip_p(values)
    assert sign_flip_p(values, permutations=20_000) == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))
    assert sign_flip_p(np.arange(1.0, 41.0), permutations=99) == 1 / 100


def test_sign_flips_agree_with_scipy() -> None:
    values = np.random.default_rng(10).normal(0.6, 1, size=10)
    expected = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p(values) == pytest.approx(expected)
    assert sign_flip_p(np.zeros(3)) == 1.0
    assert sign_flip_p(np.array([])) == 1.0
    assert sign_flip_p(1e-9 * values) == pytest.approx(expected)


def test_permutation_test_holds_its_size() -> None:
    generator = np.random.default_rng(11)
    trials, rejected = 400, 0
    for trial in range(trials):
        labels_B = generator.integers(3, size=60)
        first_B, second_B = np.where(generator.random((2, 60)) < 0.7, labels_B, generator.integers(3, size=(2, 60)))
        test = paired_permutation(
            confusion_statistics(labels_B, 3)["macro_f1"], first_B, second_B, range(60), permutations=199, seed=trial
        )
        assert test.p_value is not None
        rejected += test.p_value <= 0.05
    assert rejected / trials == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / trials))


def test_equal_predictions_are_exchangeable_and_shapes_must_agree() -> None:
    statistic = confusion_statistics(np.array([0, 1, 1]), 2)["macro_f1"]
    same = paired_permutation(statistic, np.array([0, 1, 0]), np.array([0, 1, 0]), range(3))
    assert (same.value, same.p_value, same.is_exact, same.permutations) == (0.0, 1.0, True, 1)
    one_class = confusion_statistics(np.zeros(3, dtype=int), 2)["macro_f1"]
    assert paired_permutation(one_class, np.zeros(3, int), np.ones(3, int), range(3)).reason == "undefined"
    with pytest.raises(DataError, match="same rows"):
        paired_permutation(statistic, np.zeros(3, int), np.zeros(2, int), range(3))
