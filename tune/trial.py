"""One trial: train one configuration over the inner folds and report its running objective after every epoch.

This runs in a Ray worker that serves many trials one after another. It gets the outer training part only: neither the
ids nor the labels of the test part are in the payload.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune as ray_tune

from asmil.data.cohort import Cohort
from asmil.data.splits import DevelopmentSplit, InnerSplit
from asmil.engine.checkpoint import load_checkpoint
from asmil.engine.records import EpochRecord
from asmil.errors import AsmilError, IntegrityError, TrainingError
from asmil.experiment import Trained, train_once
from asmil.storage import publish_json
from tasks.spec import ExperimentSpec
from tune.searcher import EPOCH, FINISHED, NUMBER, OBJECTIVE
from tune.study import CONTINUES, OVERRIDES, REASON, VALIDATION

__all__ = ["RUNG", "TrialPayload", "discard_checkpoints", "run_trial", "rungs", "trial_directory"]

RUNG = "rung"
FIT = "fit"
PROGRESS = "progress.json"

Metrics = dict[str, float | None]


@dataclass(frozen=True)
class TrialPayload:
    """What all trials of a study share; small enough to be sent to every worker once.

    Attributes:
        tree: The experiment as plain data.
        cohort: Bags and labels of the outer training part.
        split: Its inner folds.
        device: `train.device` of every trial.
        trials: Directory with one directory per trial, named by the trial's number.
        train: Trains one inner fold; `asmil.experiment.train_once`.
    """

    tree: Mapping[str, Any]
    cohort: Cohort
    split: DevelopmentSplit
    device: str
    trials: Path
    train: Callable[..., Trained] = train_once


def trial_directory(trials: Path, number: int) -> Path:
    """Where the trial with this number in the study keeps its checkpoints and logs."""
    return trials / f"{number:05d}"


def discard_checkpoints(directory: Path) -> None:
    """Remove the checkpoints of a trial that has ended; the best configuration is trained again anyway."""
    for checkpoint in directory.glob("checkpoint_*"):
        shutil.rmtree(checkpoint, ignore_errors=True)


def rungs(epochs: int, folds: int) -> int:
    """The largest value of `rung` a trial can reach: all epochs of all inner folds."""
    return epochs * folds


def run_trial(config: Mapping[str, Any], *, payload: TrialPayload) -> None:
    """Ray Tune's trainable.

    Reports `objective` (mean over the inner folds finished and the one under way), `epoch` over all folds, `rung`
    (where trials may be compared: epochs of the first inner fold, then ends of folds) and `finished`. A failure that
    would only repeat itself is reported without an objective, so that it is recorded with its reason and not retried.

    Args:
        config: `number`, `overrides` and `continues`, as `StudySearch` proposes them.
        payload: What the trials share.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory(prefix="asmil-trial-") as scratch:
        try:
            _Trial(config, payload, Path(scratch)).run()
        except AsmilError as error:
            ray_tune.report({OBJECTIVE: math.nan, EPOCH: 0, RUNG: 0, FINISHED: False, REASON: str(error)})


@dataclass
class _Progress:
    """Where a trial stands besides the checkpoint of the training under way.

    Attributes:
        folds: Validation metrics of each finished inner fold.
        best: Validation metrics of the best epoch so far of the fold under way; used under `best_validation`.
    """

    folds: list[Metrics]
    best: Metrics | None = None


class _Trial:
    """The state of one call of `run_trial`."""

    def __init__(self, config: Mapping[str, Any], payload: TrialPayload, work: Path) -> None:
        local = {"train.checkpoint_seconds": 0, "train.device": payload.device}
        source = f"trial {config[NUMBER]}"
        self.spec = ExperimentSpec.model_validate(payload.tree).override({**config[OVERRIDES], **local}, source)
        self.task = self.spec.task.build(self.spec.data.labels)
        self.monitor = self.task.monitor
        self.payload = payload
        self.work = work
        self.num_folds = len(payload.split.inner)
        self.reported_end = False
        self.progress = self._resume(config[CONTINUES])

    def run(self) -> None:
        """Train the inner folds that are left; a trial resumed at its very end reports that end again."""
        while len(self.progress.folds) < self.num_folds:
            self._run_fold(self.payload.split.inner[len(self.progress.folds)])
        if not self.reported_end:
            ray_tune.report(self._report(self.progress.folds, self.spec.train.epochs))

    def _run_fold(self, inner: InnerSplit) -> None:
        directory = self.work / FIT
        directory.mkdir(exist_ok=True)
        trained = self.payload.train(
            self.spec,
            self.payload.cohort,
            self.task,
            train_ids=inner.train,
            validation_ids=inner.validation,
            seed=self.spec.train.seed,
            directory=directory,
            on_epoch=self._on_epoch,
            resume=True,
        )
        chosen = next(record for record in trained.fitted.history if record.epoch == trained.fitted.epoch)
        self.progress = _Progress([*self.progress.folds, self._metrics_of(chosen)])
        shutil.rmtree(directory)

    def _metrics_of(self, record: EpochRecord) -> Metrics:
        if record.monitored is None:
            metric = record.metrics.get(self.monitor.metric)
            raise TrainingError(
                f"{self.monitor.metric} could not be computed on validation after epoch {record.epoch}: "
                f"{metric.reason if metric else 'the task has no such metric'}"
            )
        return {name: metric.value for name, metric in record.metrics.items()}

    def _on_epoch(self, record: EpochRecord) -> None:
        if record.monitored is None:
            return
        report = self._report([*self.progress.folds, self._as_if_ended(record)], record.epoch)
        publish_json(self.work / PROGRESS, vars(self.progress))
        ray_tune.report(report, checkpoint=ray_tune.Checkpoint.from_directory(self.work))

    def _report(self, folds: Sequence[Metrics], epoch: int) -> dict[str, Any]:
        """What is reported when the last of these folds stands after `epoch` epochs."""
        before, epochs = len(folds) - 1, self.spec.train.epochs
        fold_ends = epoch == epochs
        self.reported_end = fold_ends and len(folds) == self.num_folds
        return {
            OBJECTIVE: _mean(folds, self.monitor.metric),
            EPOCH: before * epochs + epoch,
            RUNG: before * epochs + (epoch if before == 0 or fold_ends else 0),
            FINISHED: self.reported_end,
            VALIDATION: {name: _mean(folds, name) for name in folds[-1]},
        }

    def _as_if_ended(self, record: EpochRecord) -> Metrics:
        """The metrics the fold under way would have if this epoch were its last."""
        metrics = self._metrics_of(record)
        if self.spec.protocol.epoch_rule == "last":
            return metrics
        name, best = self.monitor.metric, self.progress.best
        if best is None or self.monitor.better(_known(metrics, name), _known(best, name)):
            self.progress.best = best = metrics
        return best

    def _resume(self, continues: Sequence[int]) -> _Progress:
        """Copy the newest usable checkpoint into the work directory: our own, or that of a trial we continue."""
        own = ray_tune.get_checkpoint()
        if own is not None:
            own.to_directory(self.work)
        else:
            checkpoints = (_last_intact(trial_directory(self.payload.trials, number)) for number in continues)
            if (earlier := next(filter(None, checkpoints), None)) is not None:
                shutil.copytree(earlier, self.work, dirs_exist_ok=True)
        file = self.work / PROGRESS
        return _Progress(**json.loads(file.read_text())) if file.exists() else _Progress([])


def _mean(folds: Sequence[Metrics], name: str) -> float | None:
    """Mean of a metric over folds; None if one of them lacks it."""
    values = [value for fold in folds if (value := fold.get(name)) is not None]
    return math.fsum(values) / len(values) if len(values) == len(folds) else None


def _known(metrics: Metrics, name: str) -> float:
    value = metrics[name]
    assert value is not None, "an epoch without the monitored metric is not reported"
    return value


def _last_intact(directory: Path) -> Path | None:
    """The newest checkpoint that was copied completely before its driver died."""
    for candidate in sorted(directory.glob("checkpoint_*"), reverse=True):
        try:
            json.loads((candidate / PROGRESS).read_text())
            load_checkpoint(candidate / FIT)
        except (OSError, ValueError, IntegrityError):
            continue
        return candidate
    return None
