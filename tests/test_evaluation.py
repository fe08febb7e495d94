"""Figures over seeds and folds: means, missing values, paired differences and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from asmil.engine.protocols import Baseline, Predictions
from asmil.evaluation import Evaluation, against_baseline, comparison_tree, mean_details, mean_with_intervals
from asmil.metrics.values import Metric


class MeanOfScores:
    """A prepared task whose only metric is the mean score; undefined if a score is negative."""

    def evaluate(self, predictions: Predictions) -> dict[str, Metric]:
        score_B = predictions.outputs["score"]
        if (score_B < 0).any():
            return {"mean": Metric(None, "negative")}
        return {"mean": Metric(float(score_B.mean()))}


def evaluation(seed: int, scores: Sequence[float], prefix: str = "p") -> Evaluation:
    ids = tuple(f"{prefix}{row}" for row in range(len(scores)))
    predictions = Predictions(ids, ids, {"score": np.asarray(scores, float)}, {})
    return Evaluation(seed, MeanOfScores(), predictions, ())  # type: ignore[arg-type]


def test_the_mean_is_taken_over_seeds_and_then_over_folds() -> None:
    folds = [
        [evaluation(0, [0.0, 0.2]), evaluation(1, [0.4, 0.4])],
        [evaluation(0, [1.0, 1.0, 1.0], "q"), evaluation(1, [0.0, 0.0, 0.0], "q")],
    ]
    assert mean_with_intervals(folds, pooled=False)["mean"].value == pytest.approx(((0.1 + 0.4) / 2 + 0.5) / 2)


class WithBaseline(MeanOfScores):
    """Its baseline says 0.3 wherever the first score is at least 0.1."""

    def baseline(self, predictions: Predictions) -> Baseline | None:
        score_B = predictions.outputs["score"]
        return (
            None if score_B[0] < 0.1 else Baseline("plain", replace(predictions, outputs={"score": 0 * score_B + 0.3}))
        )

    def details(self, predictions: Predictions) -> dict[str, Metric]:
        last = float(predictions.outputs["score"][-1])
        return {"last": Metric(last) if last < 9 else Metric(None, "too_large")}


def with_baseline(*folds: Sequence[Sequence[float]]) -> list[list[Evaluation]]:
    return [
        [replace(evaluation(seed, scores, f"p{number}"), prepared=WithBaseline()) for seed, scores in enumerate(seeds)]  # type: ignore[arg-type]
        for number, seeds in enumerate(folds)
    ]


def test_the_baseline_is_compared_fold_by_fold_with_the_mean_over_seeds() -> None:
    found = against_baseline(with_baseline([[0.5, 0.7], [0.7, 0.9]], [[0.1, 0.3], [0.1, 0.3]]), pooled=False)
    assert found is not None
    assert found.name == "plain"
    assert found.metrics["mean"].value == pytest.approx(0.3)
    assert found.difference["mean"].value == pytest.approx((0.7 + 0.2) / 2 - 0.3)
    tree = comparison_tree(found)
    assert tree["difference"]["mean"] == found.difference["mean"].value
    assert tree["difference_intervals"]["mean"] is None
    assert found.difference["mean"].reason == "too_few_patients"


def test_a_baseline_that_is_missing_in_one_fold_is_no_baseline() -> None:
    assert against_baseline(with_baseline([[0.5]], [[0.0]]), pooled=False) is None


def test_the_record_is_a_mean_or_missing_with_its_reason() -> None:
    assert mean_details(with_baseline([[0.0, 1.0], [0.0, 3.0]], [[0.0, 5.0]]))["last"].value == pytest.approx(3.5)
    assert mean_details(with_baseline([[0.0, 1.0]], [[0.0, 9.0]]))["last"] == Metric(None, "too_large")


def test_one_missing_value_leaves_the_mean_missing_with_its_reason() -> None:
    folds = [[evaluation(0, [0.1, 0.2])], [evaluation(0, [-1.0, 0.2], "q")]]
    assert mean_with_intervals(folds, pooled=False)["mean"] == Metric(None, "negative")


def test_the_interval_is_that_of_the_mean_over_patients() -> None:
    scores = np.random.default_rng(0).normal(5, 1, 400)
    found = mean_with_intervals([[evaluation(0, scores)]], pooled=False)["mean"]
    assert found.interval is not None
    low, high = found.interval
    spread = scores.std() / np.sqrt(400)
    assert low == pytest.approx(scores.mean() - 1.96 * spread, abs=0.35 * spread)
    assert high == pytest.approx(scores.mean() + 1.96 * spread, abs=0.35 * spread)


def test_a_paired_difference_is_free_of_what_both_share() -> None:
    rng = np.random.default_rng(1)
    shared, gain = rng.uniform(0, 9, 60), rng.uniform(0.4, 0.6, 60)
    better, worse = [[evaluation(0, shared + gain)]], [[evaluation(0, shared)]]
    found = mean_with_intervals(better, minus=worse, pooled=False)["mean"]
    assert found.value == pytest.approx(gain.mean())
    assert np.ptp(found.interval) == pytest.approx(2 * 1.96 * gain.std() / np.sqrt(60), rel=0.1)


def test_folds_keep_their_weight_in_every_resample() -> None:
    small = np.random.default_rng(3).uniform(-0.1, 0.1, 20) + 0.2
    folds = [[evaluation(0, small)], [evaluation(0, [1.0] * 50, "q")]]
    found = mean_with_intervals(folds, pooled=False)["mean"]
    assert found.value == pytest.approx((small.mean() + 1) / 2)
    assert np.ptp(found.interval) == pytest.approx(1.96 * small.std() / np.sqrt(20), rel=0.1)
    constant = [[evaluation(0, [0.0] * 5)], [evaluation(0, [1.0] * 50, "q")]]
    assert mean_with_intervals(constant, pooled=False)["mean"] == Metric(0.5, "no_spread")


def test_patients_that_occur_in_several_repeats_are_drawn_with_all_their_rows() -> None:
    scores = np.random.default_rng(2).normal(5, 1, 50)
    once = mean_with_intervals([[evaluation(0, scores)]], pooled=True)["mean"].interval
    twice = mean_with_intervals([[evaluation(0, scores)], [evaluation(0, scores)]], pooled=True)["mean"].interval
    assert once is not None
    assert twice == pytest.approx(once)  # the second repeat adds no patient, hence no certainty
