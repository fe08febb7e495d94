"""Every shipped experiment trains an epoch, is calibrated and evaluated on a tiny store with the columns it names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from asmil.data.schema import DatasetFacts
from asmil.data.writer import BagWriter
from asmil.experiment import open_experiment, predict_test, refit, train_once
from tasks.spec import ExperimentSpec, load_experiment

TASKS = Path(__file__).resolve().parents[2] / "tasks"
NUM_BAGS, NUM_FEATURES = 40, 16


def label_table(spec: ExperimentSpec) -> pd.DataFrame:
    """Labels under the names the experiment gives them, two slides to a patient."""
    rows, columns = np.arange(NUM_BAGS), spec.data.labels
    table = {columns.id: [f"s{row}" for row in rows]}
    if columns.group is not None:
        table[columns.group] = [f"p{row // 2}" for row in rows]
    if columns.target is not None:
        names = list(getattr(spec.task, "merge", None) or getattr(spec.task, "classes", None) or ["0", "1"])
        table[columns.target] = [names[(row // 2) % len(names)] for row in rows]
    if columns.time is not None and columns.event is not None:
        table[columns.time], table[columns.event] = 1.0 + rows // 2, (rows // 2) % 2
    if columns.split is not None:
        table[columns.split] = np.repeat(["train", "test"], NUM_BAGS // 2)
    table |= {name: np.linspace(40, 80, NUM_BAGS) // 1 for name in columns.covariates}
    frame = pd.DataFrame(table)
    return frame if columns.group is None else _same_within(frame, columns.group, columns.covariates)


def _same_within(frame: pd.DataFrame, group: str, columns: tuple[str, ...]) -> pd.DataFrame:
    for name in columns:
        frame[name] = frame.groupby(group)[name].transform("first")
    return frame


@pytest.mark.parametrize("name", sorted(path.stem for path in TASKS.glob("*.yaml")))
def test_a_shipped_experiment_runs_from_labels_to_test_figures(tmp_path: Path, name: str) -> None:
    overrides = [f"data.store={tmp_path / 'store'}", "train.epochs=1", "model.inner_dim=16", "train.device=cpu"]
    spec = load_experiment(TASKS / f"{name}.yaml", assignments=overrides)
    generator = np.random.default_rng(0)
    labels = label_table(spec)
    facts = DatasetFacts(provenance={"source": "test"})
    with BagWriter(tmp_path / "store", num_features=NUM_FEATURES, dtype="float32", facts=facts) as writer:
        for slide in labels[spec.data.labels.id]:
            writer.add(slide, generator.normal(size=(generator.integers(2, 9), NUM_FEATURES)).astype(np.float32))
        writer.set_labels(labels)
    experiment = open_experiment(spec, tmp_path / "run")
    inner = experiment.plan.development(0, 0).inner[0]
    trained = train_once(
        spec, experiment.cohort, experiment.task, train_ids=inner.train, validation_ids=inner.validation, seed=0
    )
    (record,) = trained.fitted.history
    assert np.isfinite(record.loss)
    assert experiment.task.monitor.metric in record.metrics
    development = experiment.plan.development(0, 0)
    refitted = refit(spec, experiment.cohort, experiment.task, development, seed=0)
    (predictions,) = predict_test(experiment, 0, 0, [(refitted.fitted.model, refitted.prepared)], why="test")
    assert refitted.prepared.evaluate(predictions)[experiment.task.monitor.metric].value is not None
    assert refitted.prepared.figures([predictions])


PUBLISHED = {"camelyon16": (5, 5), "camelyon17": (1, 5), "bracs": (1, 5)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_slide_experiments_follow_the_papers_protocol(name: str) -> None:
    spec = load_experiment(TASKS / f"{name}.yaml")
    assert (spec.protocol.scheme, spec.protocol.epoch_rule) == ("official", "best_validation")
    assert (spec.protocol.repeats, spec.protocol.seeds) == PUBLISHED[name]
    assert (spec.train.epochs, spec.train.bags_per_step, spec.train.schedule) == (50, 1, "cosine")
    assert spec.task.monitor == "macro_f1+macro_auc"


def test_camelyon16_cuts_270_slides_nine_to_one_in_five_ways(tmp_path: Path) -> None:
    overrides = [f"data.store={tmp_path / 'store'}"]
    spec = load_experiment(TASKS / "camelyon16.yaml", assignments=overrides)
    slides = [f"s{row}" for row in range(399)]
    labels = pd.DataFrame(
        {
            "slide": slides,
            "label": np.where(np.arange(399) % 5 < 3, "normal", "tumor"),
            "split": ["train"] * 270 + ["test"] * 129,
        }
    )
    with BagWriter(
        tmp_path / "store", num_features=1, dtype="float32", facts=DatasetFacts(provenance={"source": "test"})
    ) as writer:
        for slide in slides:
            writer.add(slide, np.zeros((1, 1), dtype=np.float32))
        writer.set_labels(labels)
    plan = open_experiment(spec, tmp_path / "run").plan
    cuts = [plan.development(repeat, 0) for repeat in range(5)]
    assert {cut.bag_ids for cut in cuts} == {tuple(slides[:270])}
    assert [len(cut.inner[0].validation) for cut in cuts] == [27] * 5
    assert len({cut.inner[0].validation for cut in cuts}) == 5
