"""The multilabel task: unknown entries, weights, strata, and what is fitted on validation bags."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score
from torch.nn import functional

from asmil.config import parse_config
from asmil.data.config import LabelColumns
from asmil.engine.protocols import Predictions, PreparedTask
from asmil.errors import ConfigError, DataError
from tasks.classification import ClassificationConfig
from tasks.multilabel import Multilabel, PreparedMultilabel

Predict = Callable[[PreparedTask, pd.DataFrame, object], Predictions]
Table = Callable[..., pd.DataFrame]


def task(**settings: Any) -> Multilabel:
    tree = {"kind": "classification", "multilabel": ["er", "pr"], **settings}
    built = parse_config(ClassificationConfig, tree, "x.yaml").build(LabelColumns())
    assert isinstance(built, Multilabel)
    return built


@pytest.fixture
def labels(make_table: Table) -> pd.DataFrame:
    return make_table(er=[1, 0, None, 1], pr=[0, None, 1, 1])


def prepared(labels: pd.DataFrame, make_bags: type, **settings: Any) -> PreparedMultilabel:
    return task(**settings).prepare(labels, make_bags({}))


def test_unknown_entries_have_no_part_in_the_loss(labels: pd.DataFrame, make_bags: type) -> None:
    logits = torch.tensor([[1.0, 2.0], [0.5, 9.0], [-9.0, 0.0], [3.0, -1.0]], requires_grad=True)
    plain = prepared(labels, make_bags)
    loss = plain.loss(logits, plain.target(labels))

    def cost(row: int, column: int, label: float) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(logits[row, column], torch.tensor(float(label)))

    known = [cost(0, 0, 1) + cost(0, 1, 0), cost(1, 0, 0), cost(2, 1, 1), cost(3, 0, 1) + cost(3, 1, 1)]
    torch.testing.assert_close(loss, torch.stack(known) / 2)
    loss.sum().backward()
    assert logits.grad is not None
    assert (logits.grad == 0).nonzero().tolist() == [[1, 1], [2, 0]]
    balanced = prepared(labels, make_bags, class_weights="balanced")
    torch.testing.assert_close(balanced.loss(logits, balanced.target(labels))[1], known[1] / 2 * 3 / 2)
    torch.testing.assert_close(balanced.loss(logits, balanced.target(labels))[2], known[2] / 2 * 3 / 4)


def test_predictions_figures_and_state(labels: pd.DataFrame, make_bags: type, predict: Predict) -> None:
    fitted = prepared(labels, make_bags, monitor="macro_f1+macro_auc")
    found = predict(fitted, labels, np.array([[2.0, -1.0], [-1.0, 3.0], [5.0, 1.0], [-3.0, 2.0]]))
    np.testing.assert_allclose(found.outputs["probabilities"][0], [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1))])
    metrics = fitted.evaluate(found)
    assert metrics["accuracy"].value == pytest.approx(5 / 6)
    assert metrics["macro_f1+macro_auc"].value == pytest.approx((2 / 3 + 1) / 2 + (0.5 + 1) / 2)
    assert fitted.details(found)["sensitivity[er]"].value == 0.5
    assert set(fitted.intervals(found)) == {"accuracy", "macro_auc", "macro_f1"}
    roc, bars = fitted.figures([found, found])
    assert [curve["name"] for curve in roc.data["curves"]] == [f"{c}, fold {k}" for k in (0, 1) for c in ("er", "pr")]
    assert bars.data["values"] == pytest.approx([2 / 3, 1.0])
    state = json.loads(json.dumps(fitted.to_state(), allow_nan=False))
    assert task().restore(state).to_state() == state


def test_thresholds_and_temperature_come_from_the_known_validation_entries(
    make_table: Table, make_bags: type, predict: Predict
) -> None:
    labels = make_table(er=[0, 0, 1, 1, None], pr=[1, None, None, 1, 1])
    fitted = prepared(make_table(er=[0, 1], pr=[1, 0]), make_bags, threshold="validation", temperature="validation")
    logits = np.array([[-3.0, 1.0], [-2.0, 1.0], [-1.0, -4.0], [1.5, 1.0], [-9.0, 1.0]])
    found = fitted.calibrate_on_validation(predict(fitted, labels, logits))
    cuts, temperature = found.fitted.thresholds, found.fitted.temperature
    assert cuts is not None
    assert temperature is not None
    low, high = (1 / (1 + np.exp(-logit / temperature.value)) for logit in (-2.0, -1.0))
    assert cuts[0].value == pytest.approx((low + high) / 2)
    assert (cuts[1].value, cuts[1].reason) == (0.5, "one_class")
    assert predict(found, labels, logits).outputs["predicted"][:4, 0].tolist() == [0, 0, 1, 1]
    details = found.details(predict(found, labels, logits))
    assert details["threshold[pr]"].reason == "one_class"
    assert details["temperature"].value == temperature.value
    assert task().restore(json.loads(json.dumps(found.to_state()))).to_state() == found.to_state()


def test_strata_are_the_rarest_label_a_bag_has(make_table: Table) -> None:
    er, pr = np.arange(60) < 30, np.arange(60) % 3 == 0
    strata = task().strata(make_table(er=er.astype(int), pr=pr.astype(int)))
    assert strata == [2 if b else int(a) for a, b in zip(er.tolist(), pr.tolist(), strict=True)]
    few = np.arange(60) == 0
    assert set(task().strata(make_table(er=er.astype(int), pr=few.astype(int)))) == {0, 1}


@pytest.mark.parametrize(
    ("er", "message"),
    [
        ([1, 0, 2, 1], r"holds 2 for bag 'b2'"),
        ([1, 0, "x", 1], r"holds 'x' for bag 'b2'"),
        ([1, None, None, 1], r"bag 'b1' has none of the labels er, pr"),
        ([1, 1, 1, None], r"'er' has 3 bags with and 0 without the label in the cohort"),
    ],
)
def test_wrong_labels_are_refused(make_table: Table, er: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task().check(make_table(er=er, pr=[0, None, 1, 1]))


def test_a_column_that_is_not_there_or_never_varies_in_training(make_table: Table, make_bags: type) -> None:
    with pytest.raises(DataError, match="no column 'pr'"):
        task().check(make_table(er=[0, 1]))
    with pytest.raises(DataError, match="'pr' has 2 bags with and 0 without the label in the training fold"):
        prepared(make_table(er=[0, 1], pr=[1, 1]), make_bags)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"multilabel": ["er", "er"]}, "multilabel er, er are not distinct"),
        ({"classes": ["a", "b"]}, "no classes and no merge"),
        ({"merge": {"a": "b"}}, "no classes and no merge"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task(**settings)


def test_a_labels_threshold_has_the_best_f1_of_its_presence(
    make_table: Table, make_bags: type, predict: Predict
) -> None:
    labels = make_table(er=[0, 1, 0, 1, 1], pr=[0, 1, 0, 1, 1])
    fitted = prepared(labels, make_bags, threshold="validation")
    logits = np.repeat([[-2.0], [-1.0], [1.0], [2.0], [3.0]], 2, axis=1)
    cuts = fitted.calibrate_on_validation(predict(fitted, labels, logits)).fitted.thresholds
    assert cuts is not None
    probability = 1 / (1 + np.exp(-logits[:, 0]))
    truth = labels["er"].to_numpy()
    tried = {float(cut): f1_score(truth, probability > cut) for cut in (probability[1:] + probability[:-1]) / 2}
    assert cuts[0].value == pytest.approx(max(tried, key=lambda cut: tried[cut]))
