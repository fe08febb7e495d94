"""What the engine may rely on, tested on every kind of task; a kind in the union without a case here fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import TypeAdapter

from asmil.bags import BagBatch
from asmil.data.config import LabelColumns
from asmil.engine.protocols import Predictions, PreparedTask, Task
from asmil.errors import DataError
from tasks.base import TaskConfig

COLUMNS = LabelColumns(target="label", time="time", event="event")
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "survival": [
        {},
        {"head": "hazard"},
        {"head": "cox"},
        {"ranking": {"weight": 0.5}},
        {"censoring": "tail", "bins": {"rule": "quantile", "count": 3}},
    ],
    "classification": [
        {},
        {"class_weights": "balanced", "monitor": "macro_f1+macro_auc"},
        {"multilabel": ["label"], "temperature": "validation"},
    ],
    "benchmark": [{}, {"monitor": "auc"}],
}
CASES = [{"kind": kind, **settings} for kind, cases in SETTINGS.items() for settings in cases]


@dataclass(frozen=True)
class Case:
    task: Task
    prepared: PreparedTask
    labels: pd.DataFrame
    bags: Any
    logits_BC: torch.Tensor


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case.values())))
def case(request: pytest.FixtureRequest, make_table: Callable[..., pd.DataFrame], make_bags: type) -> Case:
    generator = np.random.default_rng(5)
    labels = make_table(
        label=np.arange(20) % 2, time=generator.exponential(10, 20) + 0.1, event=(np.arange(20) % 3 > 0).astype(int)
    )
    bags = make_bags({bag_id: generator.normal(size=(3, 4)) for bag_id in labels.index})
    task = TypeAdapter(TaskConfig).validate_python(request.param).build(COLUMNS)
    prepared = task.prepare(labels, bags)
    logits_BC = torch.randn(20, prepared.head.out_dim, generator=torch.Generator().manual_seed(0))
    return Case(task, prepared, labels, bags, logits_BC)


def test_every_kind_of_task_is_tested_here() -> None:
    union, _ = get_args(TaskConfig)
    assert {config.model_fields["kind"].default for config in get_args(union)} == set(SETTINGS)


def test_strata_and_check(case: Case) -> None:
    case.task.check(case.labels)
    strata = case.task.strata(case.labels)
    assert len(strata) == 20
    assert len({hash(stratum) for stratum in strata}) == 2


def test_a_batch_loses_what_its_bags_lose_alone(case: Case) -> None:
    target = case.prepared.target(case.labels)
    loss_B = case.prepared.loss(case.logits_BC, target)
    assert (loss_B.shape, loss_B.dtype) == ((20,), torch.float32)
    if case.prepared.couples_bags:
        halves = [case.prepared.loss(case.logits_BC[rows], _rows(target, rows)) for rows in (slice(10), slice(10, 20))]
        assert not torch.allclose(torch.cat(halves), loss_B)
        return
    for row, bag_id in enumerate(case.labels.index):
        alone = case.prepared.loss(case.logits_BC[row : row + 1], case.prepared.target(case.labels.loc[[bag_id]]))
        torch.testing.assert_close(alone, loss_B[row : row + 1])


def _rows(target: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
    return {name: value[rows] for name, value in target.items()}


def test_half_precision_logits_train(case: Case) -> None:
    logits_BC = case.logits_BC.bfloat16().requires_grad_()
    loss_B = case.prepared.loss(logits_BC, case.prepared.target(case.labels))
    loss_B.sum().backward()
    assert loss_B.dtype == torch.float32
    assert logits_BC.grad.abs().sum() > 0


def test_predictions_are_float64_per_bag_and_hold_the_monitored_metric(case: Case, predict: Any) -> None:
    outputs = case.prepared.predict(case.logits_BC)
    for value_BX in outputs.values():
        assert value_BX.dtype == torch.float64
        assert len(value_BX) == 20
        torch.testing.assert_close(case.prepared.predict(case.logits_BC[3:4])[_name(outputs, value_BX)][0], value_BX[3])
    predictions = predict(case.prepared, case.labels, case.logits_BC)
    metrics = case.prepared.evaluate(predictions)
    monitor = case.task.monitor
    assert metrics[monitor.metric].value is not None
    if monitor.metric != "macro_f1+macro_auc":
        improved = {name: _better(case, name, predictions) for name in predictions.outputs}
        better = case.prepared.evaluate(Predictions(**{**vars(predictions), "outputs": improved}))
        assert monitor.better(better[monitor.metric].value, metrics[monitor.metric].value)


def _name(outputs: dict[str, torch.Tensor], value: torch.Tensor) -> str:
    return next(name for name, known in outputs.items() if known is value)


def _better(case: Case, name: str, predictions: Predictions) -> np.ndarray:
    """Outputs that know the truth."""
    truth = predictions.truth
    if name == "probabilities":
        return np.eye(2)[truth["label"]] if truth["label"].ndim == 1 else truth["label"]
    if name == "probability":
        return truth["label"].astype(float)
    return -truth["time"] if name == "risk" else predictions.outputs[name]


def test_diverged_outputs_are_an_error_that_names_the_bag(case: Case, predict: Any) -> None:
    logits_BC = case.logits_BC.clone()
    logits_BC[4] = float("nan")
    with pytest.raises(DataError, match="b4"):
        case.prepared.evaluate(predict(case.prepared, case.labels, logits_BC))


def test_intervals_surround_their_values(case: Case, predict: Any) -> None:
    for metric in case.prepared.intervals(predict(case.prepared, case.labels, case.logits_BC)).values():
        if metric.interval is not None:
            assert metric.interval[0] <= metric.value <= metric.interval[1]


def test_the_state_is_json_and_restores_the_same_task(case: Case, predict: Any) -> None:
    predictions = predict(case.prepared, case.labels, case.logits_BC)
    calibrated = case.prepared.calibrate(predictions)
    state = json.loads(json.dumps(calibrated.to_state(), allow_nan=False))
    restored = case.task.restore(state)
    assert restored.to_state() == calibrated.to_state() == state
    assert restored.head == calibrated.head
    batch = BagBatch.pack([case.bags.read(bag_id) for bag_id in case.labels.index])
    assert torch.equal(restored.transform(batch).features_MD, calibrated.transform(batch).features_MD)
    target = calibrated.target(case.labels)
    for name, value in restored.target(case.labels).items():
        assert torch.equal(value, target[name])
    assert torch.equal(restored.loss(case.logits_BC, target), calibrated.loss(case.logits_BC, target))
    outputs = calibrated.predict(case.logits_BC)
    for name, value in restored.predict(case.logits_BC).items():
        assert torch.equal(value, outputs[name])


def test_figures_are_json_of_known_kinds(case: Case, predict: Any) -> None:
    assert case.prepared.figures([]) == ()
    calibrated = case.prepared.calibrate(predict(case.prepared, case.labels, case.logits_BC))
    figures = calibrated.figures([predict(calibrated, case.labels, case.logits_BC)])
    assert figures
    for figure in figures:
        assert figure.kind in {"kaplan_meier", "roc", "confusion", "bars"}
        json.dumps(figure.data, allow_nan=False)
