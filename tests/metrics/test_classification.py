"""Classification metrics against counts and ranks worked out by hand or by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from asmil.errors import DataError
from asmil.metrics.classification import classification_details, classification_metrics
from asmil.metrics.values import Metric

ONE_CLASS = Metric(None, "one_class")


def _auc(score: np.ndarray, positive: np.ndarray) -> float:
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(score[positive], score[~positive])]
    return float(np.mean(pairs))


def test_binary_metrics_by_hand() -> None:
    positive = np.array([0.1, 0.4, 0.6, 0.8, 0.8, 0.3])
    labels = np.array([0, 0, 0, 1, 1, 1])
    metrics = classification_metrics(np.stack((1 - positive, positive), axis=1), labels, ("normal", "tumour"))
    assert metrics["accuracy"] == Metric(pytest.approx(4 / 6))
    assert metrics["macro_f1"] == Metric(pytest.approx(2 / 3))
    assert metrics["macro_auc"] == Metric(pytest.approx(7 / 9))
    assert metrics["balanced_accuracy"] == Metric(pytest.approx(2 / 3))


@given(st.lists(st.tuples(st.integers(0, 2), *[st.integers(0, 4)] * 3), min_size=1, max_size=14))
@settings(max_examples=100)
def test_three_class_metrics_equal_their_definitions(rows: list[tuple[int, int, int, int]]) -> None:
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1:] for r in rows], dtype=float)
    metrics = classification_metrics(scores, labels, ("a", "b", "c"))
    predicted, present = scores.argmax(axis=1), sorted(set(labels.tolist()))
    assert metrics["accuracy"].value == pytest.approx((predicted == labels).mean())
    if len(present) == 1:
        assert metrics["macro_f1"] == metrics["macro_auc"] == metrics["balanced_accuracy"] == ONE_CLASS
        return
    recall = [(predicted[labels == c] == c).mean() for c in present]
    f1 = [
        2 * ((predicted == c) & (labels == c)).sum() / ((predicted == c).sum() + (labels == c).sum())
        for c in sorted({*present, *predicted.tolist()})
    ]
    warning = None if len(present) == 3 else "absent_class"
    assert metrics["balanced_accuracy"] == Metric(pytest.approx(np.mean(recall)), warning)
    assert metrics["macro_f1"] == Metric(pytest.approx(np.mean(f1)), warning)
    if warning:
        assert metrics["macro_auc"] == Metric(None, warning)
    else:
        assert metrics["macro_auc"].value == pytest.approx(np.mean([_auc(scores[:, c], labels == c) for c in range(3)]))


@pytest.mark.parametrize("num_classes", [2, 5])
def test_metrics_equal_scikit_learns(num_classes: int) -> None:
    generator = np.random.default_rng(num_classes)
    labels = np.r_[np.arange(num_classes), generator.integers(num_classes, size=80)]
    scores = generator.dirichlet(np.ones(num_classes), len(labels)).round(2)
    scores[:, -1] = 1 - scores[:, :-1].sum(axis=1)
    metrics = classification_metrics(scores, labels, [str(c) for c in range(num_classes)])
    predicted = scores.argmax(axis=1)
    shown = scores[:, 1] if num_classes == 2 else scores
    assert metrics["accuracy"].value == pytest.approx(accuracy_score(labels, predicted))
    assert metrics["macro_f1"].value == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert metrics["macro_auc"].value == pytest.approx(roc_auc_score(labels, shown, multi_class="ovr"))
    assert metrics["balanced_accuracy"].value == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_one_class_and_no_bags_give_reasons() -> None:
    one = classification_metrics(np.array([[0.2, 0.8], [0.9, 0.1]]), np.array([1, 1]), ("a", "b"))
    assert one == {
        "accuracy": Metric(0.5),
        "macro_f1": ONE_CLASS,
        "macro_auc": ONE_CLASS,
        "balanced_accuracy": ONE_CLASS,
    }
    none = classification_metrics(np.zeros((0, 2)), np.zeros(0, dtype=int), ("a", "b"))
    assert set(none) == set(one)
    assert set(none.values()) == {Metric(None, "too_few")}


@pytest.mark.parametrize(
    ("probabilities", "labels", "classes", "message"),
    [
        ([[0.5, 0.5], [np.nan, 0.5]], [0, 1], "ab", r"1 of 2 bags \(s2\)"),
        ([[0.5, 0.5], [0.5, 0.5]], [0, 2], "ab", "bag s2 has label 2"),
        ([[0.5, 0.5], [0.5, 0.5]], [0, 1], "abc", "need shape"),
        ([[1.0], [1.0]], [0, 0], "a", "at least two classes"),
    ],
)
def test_bad_input_is_refused(probabilities: list[list[float]], labels: list[int], classes: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        classification_metrics(np.array(probabilities), np.array(labels), classes, bag_ids=("s1", "s2"))


def test_details_of_three_classes_by_hand() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    scores = np.eye(3)[[0, 1, 1, 1, 2, 0]] * 0.6 + 0.4 / 3
    found = classification_details(scores, labels, ("a", "b", "c"))
    assert found["f1[a]"].value == pytest.approx(2 / 4)
    assert found["precision[b]"].value == pytest.approx(2 / 3)
    assert found["recall[c]"].value == pytest.approx(1 / 2)
    assert found["kappa"].value == pytest.approx((4 / 6 - 1 / 3) / (1 - 1 / 3))
    for index, name in enumerate("abc"):
        assert found[f"auc[{name}]"].value == pytest.approx(_auc(scores[:, index], labels == index))
    assert found["log_loss"].value == pytest.approx(-(4 * np.log(0.6 + 0.4 / 3) + 2 * np.log(0.4 / 3)) / 6)
    assert found["ece"].value == pytest.approx(abs(0.6 + 0.4 / 3 - 4 / 6))


def test_two_classes_have_sensitivity_and_specificity_at_the_given_answers() -> None:
    labels, positive = np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.3, 0.6, 0.4, 0.9])
    both = np.stack([1 - positive, positive], axis=1)
    found = classification_details(both, labels, ("normal", "tumor"), predicted_B=(positive > 0.35).astype(int))
    assert (found["sensitivity"].value, found["specificity"].value) == (1.0, pytest.approx(2 / 3))
    assert classification_details(both, labels, ("normal", "tumor"))["sensitivity"].value == 0.5
    metrics = classification_metrics(both, labels, ("normal", "tumor"), predicted_B=(positive > 0.35).astype(int))
    assert metrics["accuracy"].value == pytest.approx(4 / 5)


def test_undefined_details_have_reasons() -> None:
    scores = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]])
    found = classification_details(scores, np.array([0, 1, 1]), ("a", "b", "c"))
    reasons = {name: metric.reason for name, metric in found.items() if metric.value is None}
    assert reasons == {
        "f1[c]": "absent_class",
        "precision[c]": "never_predicted",
        "recall[c]": "absent_class",
        "auc[c]": "absent_class",
    }
    assert classification_details(scores, np.array([1, 1, 1]), ("a", "b", "c"))["kappa"] == ONE_CLASS
    none = classification_details(np.zeros((0, 3)), np.zeros(0, dtype=int), ("a", "b", "c"))
    assert set(none) == set(found)
    assert all(metric.value is None for metric in none.values())
