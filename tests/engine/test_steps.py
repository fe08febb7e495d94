"""Losses over whole steps: micro-batches change nothing, and bags that cannot step alone join others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asmil.data.cohort import Cohort
from asmil.data.config import DataConfig
from asmil.engine.config import TrainConfig
from asmil.engine.fit import FitData, FitResult, fit
from asmil.errors import TrainingError
from asmil.nn.aggregators.asmil import AsmilAggregator
from asmil.nn.aggregators.base import Branch, Readout
from asmil.nn.config import AnchorConfig, AsmilConfig, ModelConfig
from asmil.nn.heads import HeadSpec
from asmil.nn.model import AnchoredModel, build_model
from tests.engine.toy import MONITOR, ToyTask, toy_cohort

CONFIG = TrainConfig(
    epochs=2, optimizer="sgd", lr=0.3, schedule="constant", weight_decay=0, bags_per_step=5, stability_bags=0, seed=3
)
TRAIN_IDS = tuple(f"bag{i:02d}" for i in range(12))


class CoupledTask(ToyTask):
    """Each bag is compared with the mean of the step, so that no part of a step has the loss of the whole."""

    couples_bags = True

    def loss(self, logits_BC: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        away_B = logits_BC[:, 0] - logits_BC[:, 0].mean()
        return (away_B - 2 * target["label"]).square()


class NeedsOnes(CoupledTask):
    """A step needs a bag of class 1."""

    def can_step(self, target: Mapping[str, Tensor]) -> bool:
        return bool((target["label"] == 1).any())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return toy_cohort(tmp_path_factory.mktemp("toy") / "store")


def fresh_model() -> AnchoredModel:
    aggregator = AsmilConfig(tokens=2, heads=2, drop_rate=0.5)
    config = ModelConfig(inner_dim=8, aggregator=aggregator, anchor=AnchorConfig(kl_weight=0.5))
    return build_model(config, 6, HeadSpec(2), seed=3)


def trained(cohort: Cohort, task: ToyTask, config: TrainConfig = CONFIG, **batching: Any) -> FitResult:
    data = FitData(cohort, TRAIN_IDS, (), DataConfig(store="unused", **batching))
    return fit(fresh_model(), task, data, config, monitor=MONITOR)


def weights(result: FitResult) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in result.model.aggregator.named_parameters()}


@pytest.mark.parametrize("batch_instances", [1, 6, 14])
def test_a_coupled_loss_is_the_same_in_micro_batches(cohort: Cohort, batch_instances: int) -> None:
    """With token drop and an anchor: the second run of a bag must repeat the first."""
    whole, parts = (trained(cohort, CoupledTask(), batch_instances=size) for size in (100_000, batch_instances))
    for name, expected in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], expected, atol=1e-5, rtol=1e-4, msg=name)
    for one, other in zip(whole.history, parts.history, strict=True):
        assert (one.loss, one.task_loss, one.kl) == pytest.approx((other.loss, other.task_loss, other.kl), rel=1e-4)
    start = dict(fresh_model().aggregator.named_parameters())
    assert max((value - start[name]).abs().max() for name, value in weights(whole).items()) > 1e-3


def test_a_loss_of_parts_is_another_one(cohort: Cohort) -> None:
    class PerPart(CoupledTask):
        couples_bags = False

    whole, parts = trained(cohort, CoupledTask(), batch_instances=6), trained(cohort, PerPart(), batch_instances=6)
    assert any((value - weights(parts)[name]).abs().max() > 1e-3 for name, value in weights(whole).items())


def test_bags_that_cannot_step_join_the_next_step(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    class Recording(NeedsOnes):
        def loss(self, logits_BC: Tensor, target: Mapping[str, Tensor]) -> Tensor:
            seen.append(target["label"].tolist())
            return super().loss(logits_BC, target)

    trained(cohort, Recording(), CONFIG.model_copy(update={"bags_per_step": 1, "epochs": 3}))
    assert sum(map(len, seen)) == 36
    assert all(1 in labels for labels in seen)
    assert any(0 in labels for labels in seen)


def test_branches_cannot_be_trained_across_micro_batches(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = AsmilAggregator.pool

    def with_branch(self: AsmilAggregator, *arguments: Any) -> Readout:
        readout = pool(self, *arguments)
        index = torch.arange(len(readout.logits_BC))
        return replace(readout, branches=(Branch("b", readout.logits_BC, index, 1.0),))

    monkeypatch.setattr(AsmilAggregator, "pool", with_branch)
    trained(cohort, CoupledTask(), batch_instances=100_000)
    with pytest.raises(TrainingError, match=r"trains branches.*raise data\.batch_instances"):
        trained(cohort, CoupledTask(), batch_instances=4)


def test_a_resumed_run_steps_on_the_same_joined_bags(cohort: Cohort, tmp_path: Path) -> None:
    """The order of steps is a function of the epoch, joined ones included."""
    config = CONFIG.model_copy(update={"bags_per_step": 1, "checkpoint_seconds": 0})
    whole = trained(cohort, NeedsOnes(), config)
    data = FitData(cohort, TRAIN_IDS, (), DataConfig(store="unused"))
    first = config.model_copy(update={"epochs": 1})
    fit(fresh_model(), NeedsOnes(), data, first, monitor=MONITOR, directory=tmp_path)
    resumed = fit(fresh_model(), NeedsOnes(), data, config, monitor=MONITOR, directory=tmp_path, resume=True)
    for name, expected in weights(whole).items():
        assert torch.equal(weights(resumed)[name], expected), name
