"""The classification task: classes, weights, metrics and figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from asmil.config import parse_config
from asmil.data.config import LabelColumns
from asmil.engine.protocols import Monitor, Predictions
from asmil.errors import ConfigError, DataError
from asmil.metrics.intervals import wilson_interval
from tasks.classification import Classification, ClassificationConfig, PreparedClassification

Predict = Callable[[PreparedClassification, pd.DataFrame, object], Predictions]
Table = Callable[..., pd.DataFrame]
BRACS = {
    "classes": ["benign", "atypical", "malignant"],
    "merge": {"N": "benign", "PB": "benign", "FEA": "atypical", "IC": "malignant"},
}


def task(**settings: Any) -> Classification:
    config = parse_config(ClassificationConfig, {"kind": "classification", **settings}, "x.yaml")
    return config.build(LabelColumns(target="label"))


def test_merged_classes_keep_the_configured_order(make_table: Table, make_bags: type) -> None:
    labels = make_table(label=["IC", "PB", "FEA", "N"])
    bracs = task(**BRACS)
    bracs.check(labels)
    strata = bracs.strata(labels)
    assert list(map(repr, strata)) == ["'malignant'", "'benign'", "'atypical'", "'benign'"]
    assert len(set(strata)) == 3
    assert max(strata) == strata[0]
    assert min(strata) == strata[1]
    prepared = bracs.prepare(labels, make_bags({}))
    assert prepared.head.out_dim == 3
    assert prepared.target(labels)["label"].tolist() == [2, 0, 1, 0]


def test_classes_of_the_training_part_where_none_are_configured(make_table: Table, make_bags: type) -> None:
    prepared = task().prepare(make_table(label=[10, 9, 10]), make_bags({}))
    assert prepared.classes == ("9", "10")
    with pytest.raises(DataError, match=r"class '11' of bag 'b1' is not one of '9', '10'"):
        prepared.truth(make_table(label=[9, 11]))


def test_one_class_is_refused_in_the_cohort_and_in_a_training_fold(make_table: Table, make_bags: type) -> None:
    labels = make_table(label=["a", "a", "b"])
    for where, refused in (("the cohort", task().check), ("the training fold", lambda x: task().prepare(x, make_bags))):
        with pytest.raises(DataError, match=rf"one class in {where} \('a'\)"):
            refused(labels.iloc[:2])
    with pytest.raises(DataError, match="no bag of class 'c' in the training fold"):
        task(classes=["a", "b", "c"]).prepare(labels, make_bags({}))
    with pytest.raises(DataError, match="class 'b' of bag 'b2' is not one of 'a', 'c'"):
        task(classes=["a", "c"]).check(labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ["a", "a"]}, "classes a, a are not distinct"),
        ({"classes": ["a", "b"], "merge": {"x": "c"}}, "merge leads to c, which classes does not list"),
        ({"classes": ["a"]}, "x.yaml: classes: "),
        ({"monitor": "auc"}, "did you mean 'macro_auc'"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task(**settings)


def test_loss_is_cross_entropy_and_balanced_weights_even_out_the_classes(make_table: Table, make_bags: type) -> None:
    labels = make_table(label=["a", "a", "a", "b"])
    logits_BC = torch.tensor([[2.0, 0.0], [0.5, 1.0], [0.0, 0.0], [1.0, 3.0]])
    plain = task().prepare(labels, make_bags({}))
    expected = -logits_BC.log_softmax(1)[torch.arange(4), torch.tensor([0, 0, 0, 1])]
    torch.testing.assert_close(plain.loss(logits_BC, plain.target(labels)), expected)
    balanced = task(class_weights="balanced").prepare(labels, make_bags({}))
    weighted = balanced.loss(logits_BC, balanced.target(labels))
    torch.testing.assert_close(weighted, expected * torch.tensor([2 / 3, 2 / 3, 2 / 3, 2.0]))


def test_metrics_intervals_and_the_monitored_sum(make_table: Table, make_bags: type, predict: Predict) -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, 80)
    labels = make_table(label=truth)
    logits = np.stack([np.zeros(80), truth + generator.normal(0, 1, 80) - 0.5], axis=1)
    both = task(monitor="macro_f1+macro_auc")
    assert both.monitor == Monitor("macro_f1+macro_auc", "max")
    prepared = both.prepare(labels, make_bags({}))
    predictions = predict(prepared, labels, logits)
    metrics = prepared.evaluate(predictions)
    auc, f1 = roc_auc_score(truth, logits[:, 1]), f1_score(truth, logits[:, 1] > 0, average="macro")
    assert metrics["macro_auc"].value == pytest.approx(auc)
    assert metrics["macro_f1+macro_auc"].value == pytest.approx(auc + f1)
    intervals = prepared.intervals(predictions)
    correct = int(((logits[:, 1] > 0) == truth).sum())
    assert intervals["accuracy"].interval == pytest.approx(wilson_interval(correct, 80))
    for name, value in (("macro_auc", auc), ("macro_f1", f1)):
        low, high = intervals[name].interval
        assert low < value < high < low + 0.3


def test_dependent_bags_get_a_wider_accuracy_interval(make_table: Table, make_bags: type, predict: Predict) -> None:
    truth = np.repeat(np.arange(10) % 2, 10)
    flipped = np.repeat(np.arange(10) % 3 == 0, 10)
    logits = np.stack([np.zeros(100), np.where(flipped, 1 - truth, truth) - 0.5], axis=1)
    widths = []
    for group in (np.arange(100), np.repeat(np.arange(10), 10)):
        labels = make_table(label=truth, group=[f"p{patient}" for patient in group])
        prepared = task().prepare(labels, make_bags({}))
        low, high = prepared.intervals(predict(prepared, labels, logits))["accuracy"].interval
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_a_validation_part_of_one_class_has_no_sum(make_table: Table, make_bags: type, predict: Predict) -> None:
    prepared = task(monitor="macro_f1+macro_auc").prepare(make_table(label=[0, 1]), make_bags({}))
    labels = make_table(label=[1, 1, 1])
    predictions = predict(prepared, labels, np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]]))
    metrics = prepared.evaluate(predictions)
    assert (metrics["macro_f1+macro_auc"].value, metrics["macro_f1+macro_auc"].reason) == (None, "one_class")
    assert metrics["accuracy"].value == pytest.approx(2 / 3)
    intervals = prepared.intervals(predictions)
    assert (intervals["macro_auc"].value, intervals["macro_auc"].interval) == (None, None)
    roc, confusion = prepared.figures([predictions])
    assert roc.data["curves"] == []
    assert confusion.data["counts"] == [[0, 0], [1, 2]]


def test_figures_keep_folds_apart_where_scores_are_compared(
    make_table: Table, make_bags: type, predict: Predict
) -> None:
    labels = make_table(label=["x", "y", "z"] * 4)
    prepared = task().prepare(labels, make_bags({}))
    generator = np.random.default_rng(1)
    folds = [predict(prepared, labels, generator.normal(size=(12, 3))) for _ in range(2)]
    roc, confusion = prepared.figures(folds)
    json.dumps([roc.data, confusion.data], allow_nan=False)
    assert [curve["name"] for curve in roc.data["curves"]] == [
        f"{name}, fold {k}" for k in (0, 1) for name in ("x", "y", "z")
    ]
    first = roc.data["curves"][1]
    assert first["auc"] == pytest.approx(roc_auc_score(labels["label"] == "y", folds[0].outputs["probabilities"][:, 1]))
    assert (first["fpr"][0], first["tpr"][-1]) == (0, 1)
    assert confusion.data["labels"] == ["x", "y", "z"]
    counts = np.array(confusion.data["counts"])
    assert counts.sum(axis=1).tolist() == [8, 8, 8]
    right = sum((fold.outputs["probabilities"].argmax(1) == fold.truth["label"]).sum() for fold in folds)
    assert counts.trace() == right
    binary = task().prepare(make_table(label=[0, 1]), make_bags({}))
    (curve,) = binary.figures([predict(binary, make_table(label=[0, 1]), np.eye(2))])[0].data["curves"]
    assert (curve["name"], curve["auc"]) == ("1", 1.0)


def test_details_carry_the_names_of_the_classes(make_table: Table, make_bags: type, predict: Predict) -> None:
    labels = make_table(label=["x", "y", "z"] * 2)
    prepared = task().prepare(labels, make_bags({}))
    details = prepared.details(predict(prepared, labels, np.eye(3)[[0, 1, 2, 0, 1, 0]]))
    assert details["f1[y]"].value == 1.0
    assert details["recall[z]"].value == 0.5
    assert set(details) <= set(prepared.meanings)
    binary = task().prepare(make_table(label=["no", "yes"]), make_bags({}))
    assert binary.meanings["sensitivity"] == "sensitivity (recall of yes)"


def test_threshold_and_temperature_are_fitted_to_validation_predictions(
    make_table: Table, make_bags: type, predict: Predict
) -> None:
    generator = np.random.default_rng(2)
    truth = generator.integers(0, 2, 60)
    logits = np.stack([np.zeros(60), 8 * (truth + generator.normal(0, 0.8, 60) + 1)], axis=1)
    labels = make_table(label=truth)
    plain = task(threshold="validation", temperature="validation").prepare(labels, make_bags({}))
    before = predict(plain, labels, logits)
    assert set(before.outputs) == {"probabilities", "logits"}
    fitted = plain.calibrate_on_validation(before)
    after = predict(fitted, labels, logits)
    assert set(after.outputs) == {"probabilities", "predicted"}
    temperature, threshold = fitted.fitted.temperature, fitted.fitted.threshold
    assert temperature is not None
    assert threshold is not None
    np.testing.assert_allclose(
        after.outputs["probabilities"][:, 1], 1 / (1 + np.exp(-logits[:, 1] / temperature.value))
    )
    assert (after.outputs["predicted"] == (after.outputs["probabilities"][:, 1] > threshold.value)).all()
    assert fitted.details(after)["log_loss"].value < plain.details(before)["log_loss"].value
    assert fitted.evaluate(after)["macro_f1"].value > plain.evaluate(before)["macro_f1"].value
    assert fitted.evaluate(after)["macro_auc"] == plain.evaluate(before)["macro_auc"]
    counts = np.array(fitted.figures([after])[1].data["counts"])
    assert counts.trace() / 60 == pytest.approx(fitted.evaluate(after)["accuracy"].value)
    restored = task().restore(json.loads(json.dumps(fitted.to_state(), allow_nan=False)))
    assert restored.to_state() == fitted.to_state()
    np.testing.assert_array_equal(predict(restored, labels, logits).outputs["predicted"], after.outputs["predicted"])


def test_validation_bags_of_one_class_fit_nothing(make_table: Table, make_bags: type, predict: Predict) -> None:
    plain = task(threshold="validation", temperature="validation").prepare(make_table(label=[0, 1]), make_bags({}))
    labels = make_table(label=[1, 1])
    fitted = plain.calibrate_on_validation(predict(plain, labels, np.array([[0.0, 1.0], [1.0, 0.0]])))
    details = fitted.details(predict(fitted, labels, np.array([[0.0, 1.0], [1.0, 0.0]])))
    assert (details["threshold"].value, details["threshold"].reason) == (0.5, "one_class")
    assert (details["temperature"].value, details["temperature"].reason) == (1.0, "one_class")


def test_a_threshold_needs_two_classes(make_table: Table) -> None:
    with pytest.raises(ConfigError, match="threshold: validation needs two classes, got 3"):
        task(threshold="validation", classes=["a", "b", "c"])
    with pytest.raises(DataError, match="validation needs two"):
        task(threshold="validation").check(make_table(label=["a", "b", "c"]))


def test_a_patient_is_stratified_by_the_worst_of_the_configured_classes(make_table: Table) -> None:
    labels = make_table(label=["negative", "macro", "itc"])
    camelyon = task(classes=["negative", "itc", "micro", "macro"])
    assert repr(max(camelyon.strata(labels))) == "'macro'"
