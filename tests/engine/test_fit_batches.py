"""What the engine asks of the loader: ranks add up to one process, samples stay in training, GPUs get pinned memory."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asmil.data.batches import TrainLoader
from asmil.data.cohort import Cohort
from asmil.data.config import DataConfig
from asmil.engine import fit as fit_module
from asmil.engine import predict as predict_module
from asmil.engine.config import TrainConfig
from asmil.engine.fit import FitData, FitResult, fit
from asmil.engine.predict import outputs_of, predict
from asmil.nn.config import AsmilConfig, ModelConfig
from asmil.nn.heads import HeadSpec
from asmil.nn.model import AnchoredModel, build_model
from tests.engine.toy import MONITOR, ToyTask, toy_cohort

SGD = TrainConfig(epochs=1, optimizer="sgd", lr=0.5, weight_decay=0, clip_norm=None, stability_bags=0, seed=3)
TRAIN_IDS = tuple(f"bag{i:02d}" for i in range(9))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return toy_cohort(tmp_path_factory.mktemp("toy") / "store")


def fresh_model() -> AnchoredModel:
    return build_model(
        ModelConfig(inner_dim=8, aggregator=AsmilConfig(tokens=2, heads=2), anchor=None), 6, HeadSpec(2), seed=3
    )


def trained(cohort: Cohort, config: TrainConfig, **batching: Any) -> FitResult:
    data = FitData(cohort, TRAIN_IDS, (), DataConfig(store="unused", **batching))
    return fit(fresh_model(), ToyTask(), data, config, monitor=MONITOR)


def movement(result: FitResult) -> dict[str, torch.Tensor]:
    start = dict(fresh_model().aggregator.named_parameters())
    return {name: (value - start[name]).detach() for name, value in result.model.aggregator.named_parameters()}


@pytest.mark.parametrize("batching", [{}, {"batch_instances": 4}, {"sample_instances": 3, "group_lengths": True}])
def test_the_gradients_of_the_ranks_add_up_to_those_of_one_process(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch, batching: dict[str, Any]
) -> None:
    """One step of all bags; the first step of SGD is linear in the gradient. Twelve ranks: three have no bag."""
    config = SGD.model_copy(update={"bags_per_step": 9})
    expected = movement(trained(cohort, config, **batching))
    for world_size in (2, 12):
        parts = []
        for rank in range(world_size):
            monkeypatch.setattr(fit_module, "TrainLoader", partial(TrainLoader, rank=rank, world_size=world_size))
            parts.append(movement(trained(cohort, config, **batching)))
        monkeypatch.undo()
        for name, whole in expected.items():
            torch.testing.assert_close(sum(part[name] for part in parts), whole, atol=1e-5, rtol=1e-4, msg=name)
    assert any(whole.abs().max() > 1e-3 for whole in expected.values())


def test_a_rank_that_never_has_a_bag_takes_every_step_and_moves_nothing(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(AnchoredModel, "update_anchor", lambda self, after: steps.append(after))
    monkeypatch.setattr(fit_module, "TrainLoader", partial(TrainLoader, rank=1, world_size=2))
    result = trained(cohort, SGD.model_copy(update={"bags_per_step": 1}))
    assert steps == ["step"] * 9 + ["epoch"]
    assert all(not moved.any() for moved in movement(result).values())


def test_training_on_samples_is_another_training_but_predictions_are_from_all_instances(cohort: Cohort) -> None:
    config = SGD.model_copy(update={"bags_per_step": 3})
    whole, sampled = trained(cohort, config), trained(cohort, config, sample_instances=2)
    assert whole.history[0].loss != sampled.history[0].loss
    tables = [
        predict(sampled.model, ToyTask(), cohort, TRAIN_IDS, data=DataConfig(store="unused", **batching), train=config)
        for batching in ({}, {"sample_instances": 2}, {"sample_instances": 2, "batch_instances": 1})
    ]
    with torch.no_grad():
        logits = torch.cat([sampled.model(cohort.read_batch([bag_id])).logits_BC for bag_id in TRAIN_IDS])
    for table in tables:
        assert table.bag_ids == TRAIN_IDS
        found = torch.from_numpy(table.outputs["probability"])
        torch.testing.assert_close(found, ToyTask().predict(logits)["probability"])


class Asked(Exception):
    """Carries the value that a loader was asked for."""


def ask(*arguments: Any, pin_memory: bool, **options: Any) -> None:
    raise Asked(pin_memory)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_batches_are_pinned_where_the_device_is_a_gpu(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Only the question is tested: the model stays where it is, so no GPU is needed."""
    device = torch.device(kind)
    monkeypatch.setattr(fit_module, "resolve_device", lambda config: device)
    monkeypatch.setattr(fit_module, "TrainLoader", ask)
    monkeypatch.setattr(predict_module, "evaluation_batches", ask)
    monkeypatch.setattr(AnchoredModel, "to", lambda self, device: self)
    with pytest.raises(Asked) as of_fit:
        trained(cohort, SGD)
    model = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=device)]), eval=lambda: None)
    with pytest.raises(Asked) as of_predict:
        next(outputs_of(model, ToyTask(), cohort, TRAIN_IDS, data=DataConfig(store="unused"), train=SGD))
    assert of_fit.value.args == of_predict.value.args == (kind == "cuda",)
