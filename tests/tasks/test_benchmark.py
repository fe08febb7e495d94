"""The benchmark task: scaling fitted on training instances alone, the leaks it refuses, and its scores."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from asmil.bags import BagBatch
from asmil.data.config import LabelColumns
from asmil.engine.protocols import Monitor, Predictions
from asmil.errors import DataError
from asmil.metrics.intervals import wilson_interval
from tasks.benchmark import Benchmark, BenchmarkConfig, PreparedBenchmark, fit_scaling

Predict = Callable[[PreparedBenchmark, pd.DataFrame, object], Predictions]
Table = Callable[..., pd.DataFrame]


def task(monitor: str = "brier") -> Benchmark:
    return BenchmarkConfig.model_validate({"monitor": monitor}).build(LabelColumns(target="label"))


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(4, 30), st.integers(1, 4)),
        elements=st.floats(-1000, 1000, width=16).map(lambda x: float(np.float16(x))),
    ),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_scaling_equals_numpys_on_all_rows_at_once(
    make_bags: type, features_ND: np.ndarray, data: st.DataObject
) -> None:
    first = data.draw(st.integers(1, len(features_ND) - 2))
    second = data.draw(st.integers(first + 1, len(features_ND) - 1))
    bags = make_bags(dict(zip("abc", np.split(features_ND, [first, second]), strict=True)))
    wide_ND = features_ND.astype(np.float64)
    constant_D = np.ptp(wide_ND, axis=0) == 0
    try:
        scaling = fit_scaling(bags, ["a", "b", "c"], np.array([False, True, False]))
    except DataError:
        rows = np.r_[0:first, second : len(wide_ND)]
        split_D = (np.ptp(wide_ND[rows], axis=0) == 0) & (np.ptp(wide_ND[first:second], axis=0) == 0) & ~constant_D
        assert split_D.any()
        return
    np.testing.assert_allclose(scaling.mean_D, np.where(constant_D, 0, wide_ND.mean(0)), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(scaling.deviation_D, np.where(constant_D, 1, wide_ND.std(0)), rtol=1e-9, atol=1e-9)


def test_scaling_is_exact_far_from_zero(make_bags: type) -> None:
    bags = make_bags({"a": np.full((1000, 1), 2.0**24), "b": np.full((1000, 1), 2.0**24 + 2)})
    scaling = fit_scaling(bags, ["a", "b", "a"], np.array([False, True, True]))
    assert scaling.mean_D[0] == pytest.approx(2**24 + 2 / 3, abs=1e-6)
    assert scaling.deviation_D[0] == pytest.approx(np.sqrt(8) / 3, rel=1e-9)


@pytest.fixture
def small(make_table: Table, make_bags: type) -> tuple[pd.DataFrame, object]:
    generator = np.random.default_rng(0)
    features = {f"b{k}": generator.normal(5, 3, (1 + k % 4, 3)) for k in range(12)}
    for bag in features.values():
        bag[:, 1] = 7
    return make_table(label=[1] * 6 + [0] * 6), make_bags(features)


def test_only_training_bags_are_read_and_constant_columns_left_alone(small: tuple[pd.DataFrame, object]) -> None:
    labels, bags = small
    train = labels.iloc[[0, 1, 2, 6, 7]]
    prepared = task().prepare(train, bags)
    assert sorted(bags.read_ids) == sorted(train.index)
    batch = BagBatch.pack([bags.read(bag_id) for bag_id in train.index])
    scaled_MD = prepared.transform(batch).features_MD
    assert scaled_MD.dtype == torch.float32
    assert (scaled_MD[:, 1] == 7).all()
    torch.testing.assert_close(scaled_MD[:, [0, 2]].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled_MD[:, [0, 2]].std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)


def test_a_label_among_the_features_is_refused(small: tuple[pd.DataFrame, object]) -> None:
    labels, bags = small
    for bag_id, label in labels["label"].items():
        bags.features[bag_id][:, 2] = label
    with pytest.raises(DataError, match="feature column 2 is 0 in every instance of negative training bags and 1"):
        task().prepare(labels, bags)


@pytest.mark.parametrize("values", [[1, 1, 1], [0, 1, 2], []])
def test_anything_but_two_classes_is_refused(make_table: Table, make_bags: type, values: list[int]) -> None:
    with pytest.raises(DataError, match="in the cohort; expected two"):
        task().check(make_table(label=values))
    with pytest.raises(DataError, match="in the training fold; expected two"):
        task().prepare(make_table(label=values), make_bags({}))


@pytest.mark.parametrize("values", [[-1, 1], [0, 1], ["negative", "positive"], [1, 2]])
def test_the_later_class_is_the_positive_one(make_table: Table, make_bags: type, values: list[object]) -> None:
    generator = np.random.default_rng(0)
    bags = make_bags({f"b{k}": generator.normal(size=(2, 2)) for k in range(2)})
    labels = make_table(label=values)
    assert task().prepare(labels, bags).target(labels)["label"].tolist() == [0.0, 1.0]


def test_scores_are_those_of_the_stated_protocol(small: tuple[pd.DataFrame, object], predict: Predict) -> None:
    labels, bags = small
    prepared = task().prepare(labels, bags)
    logits_B1 = torch.randn(12, 1, generator=torch.Generator().manual_seed(0))
    target = prepared.target(labels)
    probability_B, truth_B = logits_B1.double().squeeze(1).sigmoid().numpy(), labels["label"].to_numpy()
    expected = -np.log(np.where(truth_B == 1, probability_B, 1 - probability_B))
    np.testing.assert_allclose(prepared.loss(logits_B1, target).numpy(), expected, rtol=1e-5)
    predictions = predict(prepared, labels, logits_B1)
    metrics = prepared.evaluate(predictions)
    correct = int(((probability_B > 0.5) == truth_B).sum())
    assert metrics["accuracy"].value == pytest.approx(correct / 12)
    assert metrics["brier"].value == pytest.approx(((probability_B - truth_B) ** 2).mean())
    pairs = probability_B[truth_B == 1][:, None] > probability_B[truth_B == 0]
    assert metrics["auc"].value == pytest.approx(pairs.mean())
    assert prepared.intervals(predictions)["accuracy"].interval == pytest.approx(wilson_interval(correct, 12))


def test_the_brier_score_is_there_where_the_auc_is_not(small: tuple[pd.DataFrame, object], predict: Predict) -> None:
    labels, bags = small
    assert task().monitor == Monitor("brier", "min")
    assert task("accuracy").monitor == Monitor("accuracy", "max")
    prepared = task().prepare(labels, bags)
    metrics = prepared.evaluate(predict(prepared, labels.iloc[:3], torch.zeros(3, 1)))
    assert (metrics["auc"].value, metrics["auc"].reason) == (None, "one_class")
    assert metrics["brier"].value == 0.25


def test_bars_show_each_fold(small: tuple[pd.DataFrame, object], predict: Predict) -> None:
    labels, bags = small
    prepared = task().prepare(labels, bags)
    sure_B1 = torch.tensor(labels["label"].to_numpy() * 2.0 - 1)[:, None]
    folds = [predict(prepared, labels, sure_B1), predict(prepared, labels.iloc[:6], -sure_B1[:6])]
    (figure,) = prepared.figures(folds)
    json.dumps(figure.data, allow_nan=False)
    assert figure.kind == "bars"
    assert figure.data == {"labels": ["fold 0", "fold 1"], "values": [1.0, 0.0]}
    assert "majority class: 0.667" in figure.title
