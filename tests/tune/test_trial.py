"""A trial: its running objective over the inner folds, and going on from any of its checkpoints."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asmil.config import merge, parse_config
from asmil.data.splits import DevelopmentSplit, InnerSplit
from asmil.engine.checkpoint import load_checkpoint, save_checkpoint
from asmil.engine.records import EpochRecord
from asmil.errors import TrainingError
from asmil.metrics.values import Metric
from tasks.spec import ExperimentSpec
from tune import trial as trial_module
from tune.trial import TrialPayload, discard_checkpoints, run_trial, trial_directory

EPOCHS = 3
CURVES = {"a": (0.5, 0.8, 0.6), "b": (0.4, 0.3, 0.7)}
"""Validation metric of each epoch of the two inner folds, named by their validation bag."""


def experiment(**overrides: Any) -> ExperimentSpec:
    columns = {"time": "t", "event": "e"}
    tree = {"task": {"kind": "survival"}, "data": {"store": "x", "labels": columns}, "train": {"epochs": EPOCHS}}
    return parse_config(ExperimentSpec, merge(tree, overrides), "test.yaml")


class FakeTraining:
    """Plays back validation curves, with a checkpoint per epoch; stands in for `asmil.experiment.train_once`.

    Args:
        curves: Metric of each epoch by the first validation bag; None where it cannot be computed or is not due.
        fail_at: Epoch of the first fold in which training breaks down.
    """

    def __init__(self, curves: dict[str, tuple[float | None, ...]], fail_at: int | None = None) -> None:
        self.curves, self.fail_at = curves, fail_at
        self.trained: list[tuple[str, int]] = []

    def __call__(
        self,
        spec: ExperimentSpec,
        cohort: Any,
        task: Any,
        *,
        train_ids: Sequence[str],
        validation_ids: Sequence[str],
        seed: int,
        directory: Path,
        on_epoch: Callable[[EpochRecord], None],
        resume: bool,
    ) -> Any:
        assert resume
        assert spec.train.checkpoint_seconds == 0
        fold = validation_ids[0]
        state = load_checkpoint(directory)
        done = 0 if state is None else state["epoch"]
        assert state is None or state["fold"] == fold
        for epoch in range(done + 1, EPOCHS + 1):
            if epoch == self.fail_at:
                raise TrainingError("the gradient is not finite")
            self.trained.append((fold, epoch))
            save_checkpoint(directory, {"epoch": epoch, "fold": fold, "weights": torch.zeros(2)})
            on_epoch(self._record(fold, epoch))
        history = [self._record(fold, epoch) for epoch in range(1, EPOCHS + 1)]
        known = [record for record in history if record.monitored is not None]
        best = max(known, key=lambda record: (record.monitored, -record.epoch), default=history[-1])
        chosen = best if spec.protocol.epoch_rule == "best_validation" else history[-1]
        return SimpleNamespace(fitted=SimpleNamespace(epoch=chosen.epoch, history=history))

    def _record(self, fold: str, epoch: int) -> EpochRecord:
        value = self.curves[fold][epoch - 1]
        metrics = {"c_index": Metric(value, None if value is not None else "no_events")}
        return EpochRecord(epoch, 1.0, 1.0, None, metrics, value, None, {}, 1e-3, 0.1, 10.0)


class Session:
    """Ray's side: collects reports and a copy of every checkpoint."""

    def __init__(self, keep: Path, monkeypatch: pytest.MonkeyPatch, start: Path | None = None) -> None:
        self.reports: list[dict[str, Any]] = []
        self.keep = keep
        checkpoint = None if start is None else trial_module.ray_tune.Checkpoint.from_directory(start)
        monkeypatch.setattr(trial_module.ray_tune, "report", self.report)
        monkeypatch.setattr(trial_module.ray_tune, "get_checkpoint", lambda: checkpoint)

    def report(self, metrics: dict[str, Any], checkpoint: Any = None) -> None:
        if checkpoint is not None:
            shutil.copytree(checkpoint.path, self.keep / f"checkpoint_{len(self.reports):06d}")
        self.reports.append(metrics)


def payload(training: FakeTraining, trials: Path, folds: str = "ab", **overrides: Any) -> TrialPayload:
    inner = tuple(InnerSplit(("x", "y"), (fold,)) for fold in folds)
    split = DevelopmentSplit(0, 0, ("x", "y", *folds), inner)
    tree = experiment(**overrides).tree()
    return TrialPayload(tree, None, split, "cpu", trials, training)  # type: ignore[arg-type]


CONFIG = {"number": 3, "overrides": {"train.lr": 0.01}, "continues": []}


def objectives(session: Session) -> list[float]:
    return [report["objective"] for report in session.reports]


def test_the_objective_is_the_mean_of_finished_folds_and_the_epoch_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(tmp_path, monkeypatch)
    run_trial(CONFIG, payload=payload(FakeTraining(dict(CURVES)), tmp_path))
    expected = [0.5, 0.8, 0.6, (0.6 + 0.4) / 2, (0.6 + 0.3) / 2, (0.6 + 0.7) / 2]
    assert objectives(session) == pytest.approx(expected)
    assert [report["epoch"] for report in session.reports] == [1, 2, 3, 4, 5, 6]
    assert [report["rung"] for report in session.reports] == [1, 2, 3, 3, 3, 6]
    assert [report["finished"] for report in session.reports] == [False] * 5 + [True]
    assert session.reports[-1]["validation"] == {"c_index": pytest.approx(0.65)}


def test_under_best_validation_a_fold_is_worth_its_best_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(tmp_path, monkeypatch)
    run_trial(
        CONFIG, payload=payload(FakeTraining(dict(CURVES)), tmp_path, **{"protocol.epoch_rule": "best_validation"})
    )
    expected = [0.5, 0.8, 0.8, (0.8 + 0.4) / 2, (0.8 + 0.4) / 2, (0.8 + 0.7) / 2]
    assert objectives(session) == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["last", "best_validation"])
@pytest.mark.parametrize("stopped_after", range(6))
def test_a_trial_goes_on_from_any_checkpoint_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int, rule: str
) -> None:
    first = Session(tmp_path, monkeypatch)
    training = FakeTraining(dict(CURVES))
    whole = payload(training, tmp_path, **{"protocol.epoch_rule": rule})
    run_trial(CONFIG, payload=whole)
    again = Session(tmp_path / "again", monkeypatch, start=tmp_path / f"checkpoint_{stopped_after:06d}")
    (tmp_path / "again").mkdir()
    training.trained.clear()
    run_trial(CONFIG, payload=whole)
    assert again.reports == (first.reports[stopped_after + 1 :] or first.reports[-1:])
    assert len(training.trained) == 5 - stopped_after


def test_epochs_without_a_metric_are_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(tmp_path, monkeypatch)
    run_trial(CONFIG, payload=payload(FakeTraining({"a": (None, None, 0.6)}), tmp_path, folds="a"))
    assert [(report["epoch"], report["objective"]) for report in session.reports] == [(3, 0.6)]


def test_a_trial_whose_last_metric_is_missing_fails_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(tmp_path, monkeypatch)
    run_trial(CONFIG, payload=payload(FakeTraining({"a": (0.5, 0.6, None)}), tmp_path, folds="a"))
    assert objectives(session)[:2] == [0.5, 0.6]
    assert math.isnan(session.reports[-1]["objective"])
    assert "c_index could not be computed on validation after epoch 3: no_events" in session.reports[-1]["reason"]
    assert not session.reports[-1]["finished"]


def test_a_training_that_breaks_down_is_reported_and_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(tmp_path, monkeypatch)
    run_trial(CONFIG, payload=payload(FakeTraining(dict(CURVES), fail_at=2), tmp_path))
    assert len(session.reports) == 2
    assert session.reports[-1]["reason"] == "the gradient is not finite"


def test_a_configuration_that_is_not_valid_is_reported_with_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(tmp_path, monkeypatch)
    config = {**CONFIG, "overrides": {"model.inner_dim": 7}}
    run_trial(config, payload=payload(FakeTraining(dict(CURVES)), tmp_path))
    assert "trial 3" in session.reports[0]["reason"]
    assert "inner_dim 7" in session.reports[0]["reason"]


def test_a_trial_continues_the_newest_intact_checkpoint_of_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = trial_directory(tmp_path, 1)
    earlier.mkdir()
    first = Session(earlier, monkeypatch)
    training = FakeTraining(dict(CURVES))
    run_trial({**CONFIG, "number": 1}, payload=payload(training, tmp_path))
    for number in (3, 4, 5):
        for file in (earlier / f"checkpoint_{number:06d}" / "fit").iterdir():
            file.write_bytes(file.read_bytes()[:40])  # the copy was cut short
    (earlier / "checkpoint_000002" / "progress.json").unlink()
    training.trained.clear()
    (tmp_path / "again").mkdir()
    again = Session(tmp_path / "again", monkeypatch)
    run_trial({**CONFIG, "continues": [7, 1]}, payload=payload(training, tmp_path))
    assert training.trained[0] == ("a", 3)
    assert again.reports == first.reports[2:]


def test_a_trial_whose_predecessor_left_nothing_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(tmp_path, monkeypatch)
    run_trial({**CONFIG, "continues": [9]}, payload=payload(FakeTraining(dict(CURVES)), tmp_path))
    assert len(session.reports) == 6


def test_its_seed_and_device_are_those_of_the_experiment_and_the_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, str, float]] = []

    def spy(spec: ExperimentSpec, *parts: Any, seed: int, **more: Any) -> Any:
        seen.append((seed, spec.train.device, spec.train.lr))
        return FakeTraining(dict(CURVES))(spec, *parts, seed=seed, **more)

    Session(tmp_path, monkeypatch)
    shared = replace(payload(FakeTraining(dict(CURVES)), tmp_path, folds="a", **{"train.seed": 7}), train=spy)
    run_trial(CONFIG, payload=shared)
    assert seen == [(7, "cpu", 0.01)]


def test_checkpoints_of_an_ended_trial_are_removed_and_its_logs_stay(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_000001" / "fit").mkdir(parents=True)
    (tmp_path / "result.json").write_text("{}")
    discard_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
