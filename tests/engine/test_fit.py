"""The training loop: exact resume, accumulation, epoch choice, and how it fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asmil.bags import BagBatch
from asmil.data.cohort import Cohort
from asmil.data.config import DataConfig
from asmil.engine.checkpoint import CHECKPOINT, load_checkpoint
from asmil.engine.config import TrainConfig
from asmil.engine.fit import FitData, FitResult, fit
from asmil.engine.predict import predict
from asmil.engine.records import EpochRecord
from asmil.errors import IntegrityError, TrainingError
from asmil.metrics.values import Metric
from asmil.nn.aggregators.abmil import AbmilAggregator
from asmil.nn.aggregators.base import Branch, Encoded, Readout
from asmil.nn.config import AbmilConfig, AnchorConfig, AsmilConfig, ModelConfig
from asmil.nn.heads import HeadSpec
from asmil.nn.model import AnchoredModel, build_model
from tests.engine.toy import MONITOR, ToyTask, toy_cohort

TRAIN = TrainConfig(epochs=4, lr=1e-2, bags_per_step=4, checkpoint_seconds=0, stability_bags=3, seed=3)
TRAIN_IDS = tuple(f"bag{i:02d}" for i in range(9))
VALIDATION_IDS = tuple(f"bag{i:02d}" for i in range(9, 12))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return toy_cohort(tmp_path_factory.mktemp("toy") / "store")


def model_of(**anchor: Any) -> AnchoredModel:
    config = ModelConfig(
        inner_dim=8, aggregator=AsmilConfig(tokens=2, heads=2), anchor=AnchorConfig(ema_factor=0.9, **anchor)
    )
    return build_model(config, 6, HeadSpec(2), seed=3)


def trained(
    cohort: Cohort,
    config: TrainConfig = TRAIN,
    *,
    model: AnchoredModel | None = None,
    batching: Mapping[str, Any] | None = None,
    **options: Any,
) -> FitResult:
    data = DataConfig(store="unused", prefetch_threads=1, **(batching or {}))
    return fit(
        model or model_of(),
        ToyTask(),
        FitData(cohort, TRAIN_IDS, VALIDATION_IDS, data),
        config,
        monitor=MONITOR,
        **options,
    )


def assert_same(first: FitResult, second: FitResult) -> None:
    for (name, mine), other in zip(first.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        if isinstance(mine, torch.Tensor):
            assert torch.equal(mine, other), name
        else:
            assert mine.keys() == other.keys()
            assert all(torch.equal(mine[bag], other[bag]) for bag in mine)
    timeless = [
        [{**r.to_state(), "seconds": 0, "bags_per_second": 0} for r in result.history] for result in (first, second)
    ]
    assert timeless[0] == timeless[1]


def test_same_seed_same_numbers_and_other_seed_others(cohort: Cohort) -> None:
    assert_same(trained(cohort), trained(cohort))
    other = trained(cohort, TRAIN.model_copy(update={"seed": 4}))
    assert other.history[-1].loss != trained(cohort).history[-1].loss


class Killed(Exception):
    pass


SAMPLED = {"sample_instances": 3, "group_lengths": True, "batch_instances": 7}


@pytest.mark.parametrize(("target", "batching"), [("ema", {}), ("temporal", {}), ("ema", SAMPLED)])
def test_a_run_killed_after_an_epoch_resumes_bit_for_bit(
    cohort: Cohort, tmp_path: Path, target: str, batching: dict[str, Any]
) -> None:
    whole = trained(cohort, model=model_of(target=target), batching=batching)

    def kill(record: EpochRecord) -> None:
        if record.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        trained(cohort, model=model_of(target=target), batching=batching, directory=tmp_path, on_epoch=kill)
    resumed = trained(cohort, model=model_of(target=target), batching=batching, directory=tmp_path, resume=True)
    assert_same(whole, resumed)


@pytest.mark.parametrize("batching", [{}, SAMPLED])
def test_ctrl_c_in_the_middle_of_an_epoch_leaves_a_checkpoint_to_resume_from(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batching: dict[str, Any]
) -> None:
    whole = trained(cohort, batching=batching)
    model, steps = model_of(), []
    update = AnchoredModel.update_anchor

    def interrupt(self: AnchoredModel, after: str) -> None:
        update(self, after)
        steps.append(after)
        if len(steps) == 6:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(AnchoredModel, "update_anchor", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trained(cohort, model=model, batching=batching, directory=tmp_path)
    monkeypatch.undo()
    state = load_checkpoint(tmp_path)
    assert (state["epoch"], state["step"]) == (1, 2)
    assert_same(whole, trained(cohort, batching=batching, directory=tmp_path, resume=True))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("batching", [{}, {"sample_instances": 3}])
def test_micro_batches_change_nothing(cohort: Cohort, batching: dict[str, Any]) -> None:
    whole, cut = trained(cohort, batching=batching), trained(cohort, batching=batching | {"batch_instances": 1})
    for (name, mine), other in zip(whole.model.state_dict().items(), cut.model.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=1e-3, msg=name)


def test_a_step_is_the_mean_over_its_bags(cohort: Cohort) -> None:
    """One SGD step over all bags against the gradient of the mean loss, computed bag by bag."""
    config = TrainConfig(epochs=1, optimizer="sgd", lr=0.5, weight_decay=0, clip_norm=None, bags_per_step=9, seed=3)
    model = build_model(
        ModelConfig(inner_dim=8, aggregator=AsmilConfig(tokens=2, heads=2, dropout=0, drop_rate=0), anchor=None),
        6, HeadSpec(2), seed=3,
    )  # fmt: skip
    expected = {}
    for bag_id in TRAIN_IDS:
        output = model(cohort.read_batch([bag_id]))
        ToyTask().loss(output.logits_BC, ToyTask().target(cohort.frame([bag_id]))).sum().div(9).backward()
    for name, parameter in model.aggregator.named_parameters():
        gradient = torch.zeros_like(parameter) if name == "score_path.key_bias_Td" else parameter.grad
        expected[name] = (parameter - 0.5 * 1.9 * gradient).detach().clone()
        parameter.grad = None
    trained(cohort, config, model=model)
    for name, parameter in model.aggregator.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], atol=1e-5, rtol=1e-4, msg=name)


class Scripted(ToyTask):
    """Validation figures that peak at the second epoch and are missing in the third."""

    def __init__(self) -> None:
        self.values = iter([0.2, 0.9, None, 0.5])

    def evaluate(self, predictions: object) -> dict[str, Metric]:
        value = next(self.values)
        return {"accuracy": Metric(value, None if value is not None else "one_class")}


def test_best_validation_returns_the_best_epochs_weights(cohort: Cohort) -> None:
    weights = {}
    model = model_of()

    def keep(record: EpochRecord) -> None:
        weights[record.epoch] = model.aggregator.head.weight.detach().clone()

    data = FitData(cohort, TRAIN_IDS, VALIDATION_IDS, DataConfig(store="unused"))
    result = fit(model, Scripted(), data, TRAIN, monitor=MONITOR, epoch_rule="best_validation", on_epoch=keep)
    assert result.epoch == 2
    assert torch.equal(result.model.aggregator.head.weight, weights[2])
    assert not torch.equal(weights[2], weights[4])
    assert [record.monitored for record in result.history] == [0.2, 0.9, None, 0.5]


def test_training_learns_and_reports_stability(cohort: Cohort) -> None:
    result = trained(cohort, TRAIN.model_copy(update={"epochs": 25}))
    data = DataConfig(store="unused")
    predictions = predict(result.model, ToyTask(), cohort, TRAIN_IDS, data=data, train=TRAIN)
    assert ToyTask().evaluate(predictions)["accuracy"].value == 1.0
    assert result.history[-1].task_loss < 0.5 * result.history[0].task_loss
    assert result.history[0].stability.jsd is None
    assert all(0 <= record.stability.jsd < 0.6932 for record in result.history[1:])


def test_the_trained_mixture_is_logged_every_epoch(cohort: Cohort) -> None:
    config = ModelConfig(inner_dim=8, aggregator=AsmilConfig(tokens=2, heads=2, normalizer="mixture"))
    model = build_model(config, 6, HeadSpec(2), seed=3)
    assert model.aggregator.scalars() == {"softmax_share": 0.5}
    history = trained(cohort, model=model).history
    last = torch.sigmoid(model.aggregator.mixture_logit).item()
    assert history[-1].scalars["softmax_share"] == pytest.approx(last)
    assert history[0].scalars != history[-1].scalars


def test_loss_is_task_loss_plus_weighted_divergence(cohort: Cohort) -> None:
    record = trained(cohort, model=model_of(kl_weight=3.0, start="independent")).history[0]
    assert record.kl > 0
    assert record.loss == pytest.approx(record.task_loss + 3 * record.kl, rel=1e-6)


def test_a_divergent_training_says_where_and_what_to_do(cohort: Cohort) -> None:
    model = model_of()
    with torch.no_grad():
        model.aggregator.head.weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match=r"epoch 1, step 1: the gradient is not finite.*lower train\.lr") as caught:
        trained(cohort, model=model)
    assert caught.value.exit_code == 5


def test_resuming_on_another_split_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    trained(cohort, directory=tmp_path)
    data = FitData(cohort, TRAIN_IDS[1:], VALIDATION_IDS, DataConfig(store="unused"))
    with pytest.raises(TrainingError, match="trained on 9 other bags than the 8 of this split"):
        fit(model_of(), ToyTask(), data, TRAIN, monitor=MONITOR, directory=tmp_path, resume=True)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    cohort: Cohort, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = trained(cohort, directory=tmp_path)
    path = tmp_path / CHECKPOINT
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)
    assert load_checkpoint(tmp_path)["epoch"] == 3
    assert "checksum does not match" in caplog.text
    assert_same(whole, trained(cohort, directory=tmp_path, resume=True))
    for name in (CHECKPOINT, "checkpoint.previous.pt"):
        (tmp_path / name).write_bytes(b"ASMILCK1 cut short")
    with pytest.raises(IntegrityError, match="no intact checkpoint is left"):
        load_checkpoint(tmp_path)


class Branching(AbmilAggregator):
    """Adds a branch of two outputs on the first bag and one on each other, and a penalty."""

    def pool(self, encoded: Encoded, weights_MK: torch.Tensor, batch: BagBatch) -> Readout:
        readout = super().pool(encoded, weights_MK, batch)
        index_X = torch.tensor([0, *range(batch.num_bags)])
        branch = Branch("twin", readout.logits_BC[index_X] * 2, index_X, weight=0.5)
        return replace(readout, branches=(branch,), penalties={"norm": readout.logits_BC.square().sum(dim=1)})


def test_branches_and_penalties_enter_the_loss_per_bag(cohort: Cohort) -> None:
    model = AnchoredModel(Branching(AbmilConfig(hidden=4), 6, 8, HeadSpec(2)))
    task, frame = ToyTask(), cohort.frame(TRAIN_IDS)
    with torch.no_grad():
        logits = torch.cat([model(cohort.read_batch([bag_id])).logits_BC for bag_id in TRAIN_IDS])
        target = task.target(frame)
        expected = task.loss(logits, target) + 0.5 * task.loss(2 * logits, target) + logits.square().sum(dim=1)
    config = TRAIN.model_copy(update={"epochs": 1, "lr": 1e-12, "bags_per_step": 9})
    record = trained(cohort, config, model=model).history[0]
    assert record.loss == pytest.approx(expected.mean().item(), rel=1e-5)
    assert record.task_loss == pytest.approx(task.loss(logits, target).mean().item(), rel=1e-5)
