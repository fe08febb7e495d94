"""Figures of outer folds: the truth of a simulation in place of predictions."""

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
from asmil.metrics.values import Metric
from tests.test_evaluation import evaluation
from tune.evaluation import FoldOutcome, oracle_metrics
from tune.rundir import OuterFold


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
