"""With the split fixed, nothing in the test part changes what is trained, fitted or selected."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from asmil.config import parse_config
from asmil.data.schema import DatasetFacts
from asmil.data.writer import BagWriter
from asmil.experiment import Experiment, Trained, open_experiment, refit
from tasks.spec import ExperimentSpec

CASES: dict[str, dict[str, Any]] = {
    "classes": {"class_weights": "balanced", "threshold": "validation", "temperature": "validation"},
    "multilabel": {
        "multilabel": ["label", "other"],
        "class_weights": "balanced",
        "threshold": "validation",
        "temperature": "validation",
    },
}
ROWS = np.arange(60)
PART = np.where(ROWS < 40, "train", "test")


def opened(directory: Path, task: dict[str, Any], labels: pd.DataFrame, shift_N: np.ndarray) -> Experiment:
    store, generator = directory / "store", np.random.default_rng(1)
    facts = DatasetFacts(provenance={"source": "test"})
    with BagWriter(store, num_features=8, dtype="float32", facts=facts) as writer:
        for slide, label, shift in zip(labels["slide"], ROWS % 2, shift_N, strict=True):
            features = generator.normal(size=(4, 8)) + 0.4 * label + shift
            writer.add(slide, features.astype(np.float32))
        writer.set_labels(labels)
    tree = {
        "task": {"kind": "classification", **task},
        "protocol": {"scheme": "official", "independent_bags": True, "inner": {"holdout": 0.3}},
        "data": {"store": str(store), "labels": {"id": "slide", "target": "label", "split": "split"}},
        "model": {"inner_dim": 16, "aggregator": {"kind": "asmil", "tokens": 2, "heads": 2}},
        "train": {"epochs": 3, "lr": 1e-2, "bags_per_step": 8, "device": "cpu"},
    }
    return open_experiment(parse_config(ExperimentSpec, tree, "x.yaml"), directory / "run")


def trained(experiment: Experiment) -> Trained:
    development = experiment.plan.development(0, 0)
    return refit(experiment.spec, experiment.cohort, experiment.task, development, seed=0)


def told(found: Trained) -> dict[str, Any]:
    """All that a training leaves behind."""
    weights = torch.cat([value.flatten() for value in found.fitted.model.aggregator.state_dict().values()])
    history = [(record.loss, record.metrics) for record in found.fitted.history]
    return {"state": found.prepared.to_state(), "history": history, "weights": weights.tolist()}


def table() -> pd.DataFrame:
    slides = [f"s{row}" for row in ROWS]
    return pd.DataFrame({"slide": slides, "label": ROWS % 2, "other": (ROWS // 2) % 2, "split": PART})


@pytest.mark.parametrize("name", CASES)
def test_test_labels_and_features_change_nothing(tmp_path: Path, name: str) -> None:
    is_test, plain = PART == "test", np.zeros(len(ROWS))
    flipped = table()
    flipped.loc[is_test, ["label", "other"]] = 1 - flipped.loc[is_test, ["label", "other"]]
    one_class = table()
    one_class.loc[is_test, ["label", "other"]] = 1
    of_training = table()
    of_training.loc[ROWS < 7, ["label", "other"]] = 1
    changed = [(flipped, plain), (one_class, plain), (table(), 5.0 * is_test), (of_training, plain)]
    count = itertools.count()
    expected = told(trained(opened(tmp_path / str(next(count)), CASES[name], table(), plain)))
    found = [told(trained(opened(tmp_path / str(next(count)), CASES[name], *change))) for change in changed]
    assert found[:-1] == [expected] * 3
    assert found[-1]["state"] != expected["state"]
    assert found[-1]["history"] != expected["history"]


@pytest.mark.parametrize("name", CASES)
def test_what_is_fitted_on_validation_bags_was_not_trained_on_them(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = opened(tmp_path, CASES[name], table(), np.zeros(len(ROWS)))
    development = experiment.plan.development(0, 0)
    used: dict[str, tuple[str, ...]] = {}
    prepare = type(experiment.task).prepare
    prepared_kind = type(experiment.task.prepare(experiment.cohort.frame(development.bag_ids), experiment.cohort))
    calibrate = prepared_kind.calibrate_on_validation
    monkeypatch.setattr(
        type(experiment.task),
        "prepare",
        lambda self, labels, bags: used.update(train=tuple(labels.index)) or prepare(self, labels, bags),
    )
    monkeypatch.setattr(
        prepared_kind,
        "calibrate_on_validation",
        lambda self, found: used.update(validation=found.bag_ids) or calibrate(self, found),
    )
    found = trained(experiment)
    assert used == {"train": development.inner[0].train, "validation": development.inner[0].validation}
    assert len(found.fitted.history) == found.fitted.epoch == 3
