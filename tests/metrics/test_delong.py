"""DeLong's covariance against the definition by pairs; size and coverage against simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from asmil.errors import DataError
from asmil.metrics.delong import (
    auc_covariance,
    auc_with_interval,
    compare_auc,
    compare_auc_per_class,
    compare_unpaired_auc,
)


def _example(seed: int, *, positives: int = 9, negatives: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """Two correlated scores with many ties, and which rows are positive."""
    generator = np.random.default_rng(seed)
    positive_B = generator.permutation(np.arange(positives + negatives) < positives)
    common_B = positive_B + generator.normal(size=len(positive_B))
    scores_MB = common_B + generator.normal(size=(2, len(positive_B)))
    return np.round(2 * scores_MB) / 2, positive_B


def _by_pairs(scores_MB: np.ndarray, positive_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong et al. 1988: areas and covariance from the kernel of every positive-negative pair."""
    kernel_MPN = np.array(
        [
            [[float(p > n) + 0.5 * float(p == n) for n in score_B[~positive_B]] for p in score_B[positive_B]]
            for score_B in scores_MB
        ]
    )
    positives, negatives = kernel_MPN.shape[1:]
    covariance = np.cov(kernel_MPN.mean(axis=2)) / positives + np.cov(kernel_MPN.mean(axis=1)) / negatives
    return kernel_MPN.mean(axis=(1, 2)), covariance


def _clustered_by_pairs(scores_MB: np.ndarray, positive_B: np.ndarray, groups: list[int]) -> np.ndarray:
    """Obuchowski 1997: sums of centred placements over each patient, in loops."""
    rows_of = {g: [row for row, named in enumerate(groups) if named == g] for g in groups}
    positives, negatives = np.flatnonzero(positive_B), np.flatnonzero(~positive_B)
    total = np.zeros((2, 2))
    for a, b in itertools.product(range(2), repeat=2):
        sums: dict[tuple[int, str], dict[int, float]] = {}
        for model in {a, b}:
            score = scores_MB[model]
            area = np.mean([(score[p] > score[n]) + 0.5 * (score[p] == score[n]) for p in positives for n in negatives])
            for group, rows in rows_of.items():
                for kind, others, mine in (("x", negatives, positives), ("y", positives, negatives)):
                    parts = []
                    for row in (row for row in rows if row in mine):
                        higher, lower = (row, others) if kind == "x" else (others, row)
                        wins = (score[higher] > score[lower]) + 0.5 * (score[higher] == score[lower])
                        parts.append(float(np.mean(wins)) - area)
                    if parts:
                        sums.setdefault((model, kind), {})[group] = sum(parts)
        for kind, size in (("x", len(positives)), ("y", len(negatives))):
            k = len(sums[a, kind])
            total[a, b] += k / (k - 1) * sum(sums[a, kind][g] * sums[b, kind][g] for g in sums[a, kind]) / size**2
        k = len(rows_of)
        cross = sum(
            sums[a, "x"].get(g, 0) * sums[b, "y"].get(g, 0) + sums[b, "x"].get(g, 0) * sums[a, "y"].get(g, 0)
            for g in rows_of
        )
        total[a, b] += k / (k - 1) * cross / (len(positives) * len(negatives))
    return total


@pytest.mark.parametrize("seed", range(5))
def test_covariance_equals_the_definition_by_pairs(seed: int) -> None:
    scores_MB, positive_B = _example(seed)
    area_M, covariance_MM = auc_covariance(scores_MB, positive_B)
    expected_area_M, expected_MM = _by_pairs(scores_MB, positive_B)
    assert area_M == pytest.approx(expected_area_M, abs=1e-14)
    assert area_M == pytest.approx([roc_auc_score(positive_B, score_B) for score_B in scores_MB], abs=1e-14)
    assert covariance_MM == pytest.approx(expected_MM, abs=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_clustered_covariance_equals_obuchowski_by_loops(seed: int) -> None:
    scores_MB, positive_B = _example(seed, positives=12, negatives=18)
    groups = np.random.default_rng(seed).integers(11, size=30).tolist()
    covariance_MM = auc_covariance(scores_MB, positive_B, groups=groups)[1]
    assert covariance_MM == pytest.approx(_clustered_by_pairs(scores_MB, positive_B, groups), abs=1e-15)


def test_copies_of_a_patients_rows_add_no_information() -> None:
    scores_MB, positive_B = _example(7)
    covariance_MM = auc_covariance(scores_MB, positive_B)[1]
    copied = np.tile(scores_MB, 4), np.tile(positive_B, 4)
    by_patient_MM = auc_covariance(*copied, groups=np.tile(np.arange(23), 4).tolist())[1]
    assert by_patient_MM == pytest.approx(covariance_MM, abs=1e-15)
    assert auc_covariance(*copied)[1][0, 0] < 0.3 * covariance_MM[0, 0]


def test_variance_of_a_random_score_averages_to_mann_whitneys() -> None:
    generator = np.random.default_rng(0)
    positives, negatives = 20, 30
    marks = np.arange(positives + negatives) < positives
    found = np.diagonal(auc_covariance(generator.normal(size=(400, 50)), marks)[1])
    assert found.mean() == pytest.approx((positives + negatives + 1) / (12 * positives * negatives), rel=0.06)


def test_interval_covers_the_binormal_area() -> None:
    generator = np.random.default_rng(1)
    marks, true_area, trials = np.arange(100) < 40, float(norm.cdf(1.5 / math.sqrt(2))), 800
    intervals = [auc_with_interval(generator.normal(size=100) + 1.5 * marks, marks).interval for _ in range(trials)]
    covered = np.mean([limits is not None and limits[0] <= true_area <= limits[1] for limits in intervals])
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.05 * 0.95 / trials))


def test_paired_test_holds_its_size() -> None:
    generator = np.random.default_rng(2)
    marks, trials, rejected = np.arange(90) < 40, 1000, 0
    for _ in range(trials):
        common_B = marks + generator.normal(size=90)
        first_B, second_B = common_B + generator.normal(size=(2, 90))
        p_value = compare_auc(first_B, second_B, marks).p_value
        rejected += p_value is not None and p_value < 0.05
    assert rejected / trials == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / trials))


def test_paired_difference_follows_from_the_covariance() -> None:
    scores_MB, positive_B = _example(4)
    (first, second), covariance_MM = _by_pairs(scores_MB, positive_B)
    error = math.sqrt(covariance_MM[0, 0] + covariance_MM[1, 1] - 2 * covariance_MM[0, 1])
    found = compare_auc(*scores_MB, positive_B)
    assert (found.first, found.second, found.value) == pytest.approx((first, second, first - second))
    assert found.interval == pytest.approx((first - second - 1.959964 * error, first - second + 1.959964 * error))
    assert found.p_value == pytest.approx(math.erfc(abs(first - second) / error / math.sqrt(2)))
    assert compare_auc(*scores_MB[::-1], positive_B).p_value == pytest.approx(found.p_value)


def test_unpaired_variances_add() -> None:
    scores_MB, positive_B = _example(5)
    covariance_MM = _by_pairs(scores_MB, positive_B)[1]
    found = compare_unpaired_auc((scores_MB[0], positive_B), (scores_MB[1], positive_B))
    assert found.num_units == 46
    assert found.interval is not None
    assert np.ptp(found.interval) == pytest.approx(2 * 1.959964 * math.sqrt(np.trace(covariance_MM)))


def test_patients_in_both_parts_are_no_unpaired_comparison() -> None:
    scores_MB, positive_B = _example(5)
    part = scores_MB[0], positive_B
    with pytest.raises(DataError, match="1 patients occur in both parts"):
        compare_unpaired_auc(part, part, groups=(list(range(23)), list(range(22, 45))))


def test_an_interval_is_refused_where_it_would_mean_nothing() -> None:
    marks = np.arange(20) < 8
    generator = np.random.default_rng(3)
    score_B, other_B = generator.normal(size=(2, 20))
    assert auc_with_interval(score_B, np.ones(20)).reason == "one_class"
    assert auc_with_interval(np.empty(0), np.empty(0)).reason == "too_few"
    few = auc_with_interval(score_B, np.arange(20) < 4)
    assert (few.reason, few.interval) == ("too_few_patients", None)
    assert few.value is not None
    perfect = auc_with_interval(marks + 0.01 * score_B, marks)
    assert (perfect.value, perfect.reason, perfect.interval) == (1.0, "no_spread", None)
    assert compare_auc(score_B, other_B, np.zeros(20)).reason == "one_class"
    same = compare_auc(score_B, np.exp(score_B), marks)
    assert (same.value, same.p_value, same.reason, same.interval) == (0.0, 1.0, "identical", None)
    opposite = compare_auc(marks * 1.0, -1.0 * marks, marks)
    assert (opposite.value, opposite.p_value, opposite.reason) == (1.0, None, "no_spread")
    one_patient_per_class = compare_auc(score_B, other_B, marks, groups=(marks * 1).tolist())
    assert (one_patient_per_class.reason, one_patient_per_class.p_value) == ("too_few_patients", None)


def test_classes_are_named_and_binary_has_one_area() -> None:
    generator = np.random.default_rng(6)
    labels_B = np.arange(60) % 3
    first_BC, second_BC = generator.normal(size=(2, 60, 3)) + np.eye(3)[labels_B]
    found = compare_auc_per_class(first_BC, second_BC, labels_B, ("a", "b", "c"))
    assert list(found) == ["auc[a]", "auc[b]", "auc[c]"] == [difference.metric for difference in found.values()]
    assert found["auc[b]"] == compare_auc(first_BC[:, 1], second_BC[:, 1], labels_B == 1, metric="auc[b]")
    binary = compare_auc_per_class(first_BC[:, :2], second_BC[:, :2], labels_B % 2, ("a", "b"))
    assert list(binary) == ["auc"]
    assert binary["auc"].first == pytest.approx(roc_auc_score(labels_B % 2, first_BC[:, 1]))
    assert found["auc[a]"].first == pytest.approx(roc_auc_score(labels_B == 0, first_BC[:, 0]))


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match=r"first: row 1"):
        auc_with_interval(np.array([0.1, np.nan, 0.3]), np.array([0, 1, 1]))
    with pytest.raises(DataError, match="same rows"):
        compare_auc(np.zeros(3), np.zeros(4), np.zeros(4))
    with pytest.raises(DataError, match="2 groups"):
        auc_with_interval(np.zeros(3), np.array([0, 1, 1]), groups=["a", "b"])
    with pytest.raises(DataError, match="leave this class out"):
        auc_covariance(np.zeros((1, 3)), np.ones(3))
    with pytest.raises(DataError, match="need shape"):
        compare_auc_per_class(np.zeros((3, 2)), np.zeros((3, 3)), np.zeros(3), ("a", "b"))
