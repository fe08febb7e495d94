"""Calibration figures against scikit-learn and hand counts; fitted temperatures and thresholds against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, f1_score
from sklearn.metrics import log_loss as sklearn_log_loss

from asmil.metrics.calibration import (
    FittedNumber,
    best_temperature,
    best_threshold,
    brier_score,
    calibration_error,
    log_loss,
)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_scores_equal_scikit_learns(num_classes: int) -> None:
    generator = np.random.default_rng(num_classes)
    labels = generator.integers(num_classes, size=50)
    probabilities = generator.dirichlet(np.ones(num_classes), 50)
    classes = list(range(num_classes))
    shown = probabilities[:, 1] if num_classes == 2 else probabilities
    assert log_loss(probabilities, labels) == pytest.approx(sklearn_log_loss(labels, probabilities, labels=classes))
    assert brier_score(probabilities, labels) == pytest.approx(brier_score_loss(labels, shown, labels=classes))


def test_a_sure_and_wrong_answer_costs_a_finite_loss() -> None:
    assert log_loss(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(52 * math.log(2))


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.90, 0.92, 0.70, 0.72, 1.0])
    correct = np.array([True, True, False, True, False])
    expected = (abs(0.90 + 0.92 - 2) + abs(0.70 + 0.72 - 1) + abs(1.0 - 0)) / 5
    assert calibration_error(confidence, correct) == pytest.approx(expected)


def test_the_temperature_is_where_the_slope_of_the_loss_is_zero() -> None:
    generator = np.random.default_rng(0)
    logits = 4 * generator.normal(size=(200, 3))
    labels = np.array([generator.choice(3, p=softmax(row / 2.5)) for row in logits])
    found = best_temperature(lambda value: log_loss(softmax(logits / value, axis=1), labels))

    def slope(inverse: float) -> float:
        expected = (softmax(logits * inverse, axis=1) * logits).sum(axis=1)
        return float((expected - logits[np.arange(200), labels]).mean())

    assert found == FittedNumber(pytest.approx(1 / brentq(slope, 0.01, 10), rel=1e-4))
    assert 2 < found.value < 3


def test_a_temperature_without_optimum_says_so() -> None:
    logits, labels = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1, 0])
    found = best_temperature(lambda value: log_loss(softmax(logits / value, axis=1), labels))
    assert found == FittedNumber(pytest.approx(0.05, rel=1e-2), "at_bound")


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=12))
@settings(max_examples=100)
def test_no_other_threshold_has_a_better_f1(rows: list[tuple[int, bool]]) -> None:
    score, positive = np.array([row[0] / 9 for row in rows]), np.array([row[1] for row in rows])
    for figure, average in (("f1", "binary"), ("macro_f1", "macro")):
        found = best_threshold(score, positive, figure)
        if positive.all() or not positive.any():
            assert found == FittedNumber(0.5, "one_class")
            continue
        values = {
            cut: f1_score(positive, score > cut, average=average, zero_division=0.0)
            for cut in {0.5, *((np.unique(score)[1:] + np.unique(score)[:-1]) / 2).tolist()}
        }
        assert values[found.value] == pytest.approx(max(values.values()))
        equals = [cut for cut, value in values.items() if value > max(values.values()) - 1e-9]
        assert abs(found.value - 0.5) == pytest.approx(min(abs(cut - 0.5) for cut in equals))
