"""Multilabel metrics against scikit-learn on whole labels, and against the same labels with unknown entries cut out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score, precision_score, roc_auc_score

from asmil.errors import DataError
from asmil.metrics.multilabel import multilabel_details, multilabel_metrics
from asmil.metrics.values import Metric

NAMES = ("er", "pr", "her2")


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    truth = generator.integers(0, 2, (60, 3)).astype(float)
    score = np.clip(0.3 * truth + 0.7 * generator.random((60, 3)), 0, 1).round(2)
    return score, truth, (score > 0.5).astype(float)


def test_whole_labels_give_scikit_learns_figures(arrays: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    score, truth, said = arrays
    metrics = multilabel_metrics(score, truth, said)
    assert metrics["accuracy"].value == pytest.approx((truth == said).mean())
    assert metrics["macro_f1"].value == pytest.approx(f1_score(truth, said, average="macro"))
    assert metrics["macro_auc"].value == pytest.approx(roc_auc_score(truth, score))
    balanced = [balanced_accuracy_score(truth[:, k], said[:, k]) for k in range(3)]
    assert metrics["balanced_accuracy"].value == pytest.approx(np.mean(balanced))
    details = multilabel_details(score, truth, said, NAMES)
    assert details["micro_f1"].value == pytest.approx(f1_score(truth, said, average="micro"))
    assert details["micro_auc"].value == pytest.approx(roc_auc_score(truth, score, average="micro"))
    assert details["exact_match"].value == pytest.approx((truth == said).all(axis=1).mean())
    assert details["brier"].value == pytest.approx(brier_score_loss(truth.ravel(), score.ravel()))
    assert details["precision[pr]"].value == pytest.approx(precision_score(truth[:, 1], said[:, 1]))
    assert details["specificity[pr]"].value == pytest.approx((said[truth[:, 1] == 0, 1] == 0).mean())


def test_unknown_entries_count_nowhere(arrays: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    score, truth, said = arrays
    holes = truth.copy()
    holes[::3, 0] = holes[1::2, 2] = np.nan
    found = multilabel_details(score, holes, said, NAMES)
    for column, name in enumerate(NAMES):
        known = np.isfinite(holes[:, column])
        assert found[f"auc[{name}]"].value == pytest.approx(roc_auc_score(truth[known, column], score[known, column]))
        assert found[f"f1[{name}]"].value == pytest.approx(f1_score(truth[known, column], said[known, column]))
    other = np.where(np.isnan(holes), 1 - said, said)
    assert multilabel_metrics(score, holes, other) == multilabel_metrics(score, holes, said)
    assert multilabel_details(score, holes, other, NAMES) == found


def test_labels_that_do_not_vary_give_reasons(arrays: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    score, truth, said = arrays
    for value, auc_reason in ((0.0, "absent_class"), (1.0, "one_class"), (np.nan, "too_few")):
        constant = truth.copy()
        constant[:, 1] = value
        metrics = multilabel_metrics(score, constant, np.where(np.arange(3) == 1, 0, said))
        assert metrics["macro_auc"] == Metric(None, auc_reason)
        assert metrics["balanced_accuracy"] == Metric(None, auc_reason)
    nothing = multilabel_metrics(score, np.full_like(truth, np.nan), said)
    assert set(nothing.values()) == {Metric(None, "too_few")}


def test_bad_input_is_refused(arrays: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    score, truth, said = arrays
    with pytest.raises(DataError, match="one common shape"):
        multilabel_metrics(score[:, :2], truth, said)
    score[7, 1] = np.nan
    with pytest.raises(DataError, match=r"1 of 60 bags \(7\)"):
        multilabel_metrics(score, truth, said)
