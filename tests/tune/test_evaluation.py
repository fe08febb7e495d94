"""Figures over seeds and folds: means, missing values, paired differences and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from asmil.data.cohort import Cohort
from asmil.data.config import DataConfig
from asmil.data.schema import DatasetFacts
from asmil.data.writer import BagWriter
from asmil.engine.protocols import Predictions
from asmil.metrics.values import Metric
from tune.evaluation import Evaluation, FoldOutcome, mean_with_intervals, oracle_metrics
from tune.rundir import OuterFold


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
    shared = np.random.default_rng(1).uniform(0, 9, 60)
    better, worse = [[evaluation(0, shared + 0.5)]], [[evaluation(0, shared)]]
    found = mean_with_intervals(better, minus=worse, pooled=False)["mean"]
    assert found.value == pytest.approx(0.5)
    assert found.interval == pytest.approx((0.5, 0.5))


def test_folds_keep_their_weight_in_every_resample() -> None:
    folds = [[evaluation(0, [0.0] * 5)], [evaluation(0, [1.0] * 50, "q")]]
    found = mean_with_intervals(folds, pooled=False)["mean"]
    assert found.value == 0.5
    assert found.interval == pytest.approx((0.5, 0.5))


def test_patients_that_occur_in_several_repeats_are_drawn_with_all_their_rows() -> None:
    scores = np.random.default_rng(2).normal(5, 1, 50)
    once = mean_with_intervals([[evaluation(0, scores)]], pooled=True)["mean"].interval
    twice = mean_with_intervals([[evaluation(0, scores)], [evaluation(0, scores)]], pooled=True)["mean"].interval
    assert once is not None
    assert twice == pytest.approx(once)  # the second repeat adds no patient, hence no certainty


def simulated_store(tmp_path: Path, truths: Sequence[float]) -> Cohort:
    facts = DatasetFacts(simulated=True, facts={"oracle_outputs": {"score": "truth"}, "chance": {"mean": 0.5}})
    with BagWriter(tmp_path / "store", num_features=2, dtype="float32", facts=facts) as writer:
        for row in range(len(truths)):
            writer.add(f"p{row}", np.ones((1, 2), np.float32))
        writer.set_labels(pd.DataFrame({"slide": [f"p{row}" for row in range(len(truths))], "truth": truths}))
    return Cohort.open(DataConfig(store=str(tmp_path / "store")), independent_bags=True)


def test_the_truth_of_a_simulation_is_measured_on_the_test_bags_only(tmp_path: Path) -> None:
    cohort = simulated_store(tmp_path, [0.7, 0.9, 100.0])
    outcome = FoldOutcome(OuterFold(0, 0), None, (evaluation(0, [0.6, 0.6]),), ())  # type: ignore[arg-type]
    experiment = SimpleNamespace(cohort=cohort)
    assert oracle_metrics(experiment, [outcome]) == {"mean": Metric(pytest.approx(0.8))}  # type: ignore[arg-type]
