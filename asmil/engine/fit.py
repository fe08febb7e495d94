"""The training loop: one model, one split, from the first epoch or from a checkpoint.

The loop knows neither tasks nor Ray. An optimizer step is `train.bags_per_step` bags, computed in micro-batches of at
most `data.batch_instances` instances; losses are summed and divided by the bags of the step, so the size of
micro-batches changes no result. Everything random is keyed by (seed, epoch, bag), so a resumed run equals an
uninterrupted one.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor

from asmil.bags import BagBatch
from asmil.data.batches import MicroBatch, TrainLoader
from asmil.data.cohort import Cohort
from asmil.data.config import DataConfig
from asmil.data.sampling import bag_seed
from asmil.engine.checkpoint import load_checkpoint, save_checkpoint
from asmil.engine.config import TrainConfig
from asmil.engine.optim import build_optimizer, learning_rate
from asmil.engine.predict import outputs_of, predict, resolve_device
from asmil.engine.protocols import Monitor, PreparedTask
from asmil.engine.records import EpochRecord
from asmil.engine.stability import AttentionTracker, Stability
from asmil.engine.steps import StepLoss
from asmil.engine.threads import use_threads
from asmil.errors import TrainingError
from asmil.metrics.values import Metric
from asmil.nn.model import AnchoredModel

__all__ = ["FitData", "FitResult", "fit"]


@dataclass(frozen=True)
class FitData:
    """What a model is trained and validated on.

    Attributes:
        cohort: Bags and labels; need not hold more than the two parts.
        train_ids: Training bags.
        validation_ids: Validation bags; empty for a refit.
        config: Batching.
    """

    cohort: Cohort
    train_ids: tuple[str, ...]
    validation_ids: tuple[str, ...]
    config: DataConfig


@dataclass(frozen=True)
class FitResult:
    """A finished training.

    Attributes:
        model: The trained model in evaluation mode, with the weights of `epoch`.
        epoch: The epoch whose weights these are.
        history: All epochs of this process and, after a resume, of those before.
    """

    model: AnchoredModel
    epoch: int
    history: tuple[EpochRecord, ...]


@dataclass
class _Sums:
    """Running sums over the bags of an epoch, kept on the device and read once per epoch."""

    values: Tensor
    bags: int = 0

    def mean(self) -> list[float]:
        return [float(value) / max(self.bags, 1) for value in self.values.tolist()]


@dataclass
class _Progress:
    """Where training stands: what a checkpoint holds besides tensors of model and optimizer."""

    epoch: int = 0
    step: int = 0
    sums: _Sums = field(default_factory=lambda: _Sums(torch.zeros(3)))
    best_epoch: int = 0
    best_value: float | None = None
    best_weights: dict[str, Tensor] | None = None
    history: list[EpochRecord] = field(default_factory=list)


def fit(
    model: AnchoredModel,
    prepared: PreparedTask,
    data: FitData,
    config: TrainConfig,
    *,
    monitor: Monitor,
    epoch_rule: Literal["last", "best_validation"] = "last",
    directory: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    resume: bool = False,
) -> FitResult:
    """Train a model.

    Args:
        model: A fresh model; trained in place.
        prepared: The task, fitted on the training part.
        data: Bags and their split.
        config: The `train` section.
        monitor: The metric that selects the epoch under `best_validation`.
        epoch_rule: Which epoch's weights are returned.
        directory: Where checkpoints go; None keeps none.
        on_epoch: Called after every epoch, when its checkpoint, if due, is on disk.
        resume: Go on from the directory's checkpoint if it has one.

    Returns:
        The trained model and its history.

    Raises:
        TrainingError: The loss stopped being finite, memory ran out, the checkpoint is of another training, or the
            epoch rule found no epoch.
        KeyboardInterrupt: After Ctrl-C, once a checkpoint of the last finished step is on disk.
    """
    run = _Run(model, prepared, data, config, monitor, epoch_rule, directory)
    if resume and directory is not None:
        run.restore(load_checkpoint(directory))
    try:
        with _interrupt_flag() as interrupted:
            while run.progress.epoch < config.epochs:
                record = run.epoch(interrupted)
                if on_epoch is not None:
                    on_epoch(record)
            if interrupted.is_set():
                raise KeyboardInterrupt
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory on {run.device} in epoch {run.progress.epoch + 1}; "
            f"lower data.batch_instances (now {data.config.batch_instances}) or use a larger device ({error})"
        ) from error
    return run.result()


class _Run:
    """The state of one call of `fit`."""

    def __init__(
        self,
        model: AnchoredModel,
        prepared: PreparedTask,
        data: FitData,
        config: TrainConfig,
        monitor: Monitor,
        epoch_rule: str,
        directory: Path | None,
    ) -> None:
        self.device = resolve_device(config)
        self.model = model.to(self.device)
        self.prepared, self.data, self.config = prepared, data, config
        self.monitor, self.epoch_rule, self.directory = monitor, epoch_rule, directory
        self.optimizer = build_optimizer(model.aggregator.parameters(), config)
        target = prepared.target(data.cohort.frame(data.train_ids))
        position = {bag_id: row for row, bag_id in enumerate(data.train_ids)}

        def can_step(bag_ids: Sequence[str]) -> bool:
            rows = [position[bag_id] for bag_id in bag_ids]
            return prepared.can_step({name: value[rows] for name, value in target.items()})

        self.loader = TrainLoader(
            data.cohort, data.train_ids, data.config, bags_per_step=config.bags_per_step, seed=config.seed,
            pin_memory=self.device.type == "cuda", can_step=can_step,
        )  # fmt: skip
        if self.device.type == "cpu":
            use_threads(self.loader.instances_per_step * data.cohort.num_features)
        on_device = {name: value.to(self.device) for name, value in target.items()}
        self.loss = StepLoss(self.model, prepared, on_device, position, config)
        by_hash = sorted(data.train_ids, key=lambda bag_id: bag_seed(config.seed, 0, bag_id))
        self.tracked_ids = tuple(by_hash[: config.stability_bags])
        self.tracker = AttentionTracker()
        self.progress = _Progress()
        self.saved_at = time.monotonic()
        self._reset_sums()

    def _reset_sums(self) -> None:
        self.progress.sums = _Sums(torch.zeros(3, dtype=torch.float64, device=self.device))
        self.progress.step = 0

    def epoch(self, interrupted: threading.Event) -> EpochRecord:
        """Train one epoch (or the rest of one), validate, checkpoint."""
        progress, start = self.progress, time.monotonic()
        before = progress.sums.bags
        self.model.train()
        held: list[BagBatch] = []
        for micro in self.loader.epoch(progress.epoch, start_step=progress.step):
            if micro.batch is not None:
                held.append(micro.batch)
            if micro.last_in_step or not self.prepared.couples_bags:
                self._backward(held, micro.bags_in_step)
                held.clear()
            if micro.last_in_step:
                self._step(micro)
                if interrupted.is_set():
                    self.save()
                    raise KeyboardInterrupt
        self.model.update_anchor("epoch")
        seconds = time.monotonic() - start
        record = self._record(seconds, (progress.sums.bags - before) / max(seconds, 1e-9))
        progress.epoch += 1
        progress.history.append(record)
        self._keep_best(record)
        self._reset_sums()
        if self.directory and (
            progress.epoch == self.config.epochs or time.monotonic() - self.saved_at >= self.config.checkpoint_seconds
        ):
            self.save()
        return record

    def _backward(self, batches: Sequence[BagBatch], bags_in_step: int) -> None:
        if batches:
            self.progress.sums.values += self.loss.backward(batches, bags_in_step)
            self.progress.sums.bags += sum(batch.num_bags for batch in batches)

    def _step(self, micro: MicroBatch) -> None:
        progress, config = self.progress, self.config
        total = config.epochs * self.loader.steps_per_epoch
        lr = learning_rate(config, progress.epoch * self.loader.steps_per_epoch + micro.step, total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        parameters = [p for p in self.model.aggregator.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not torch.isfinite(norm):
            loss, task_loss, kl = progress.sums.values.tolist()
            last_bags = micro.batch.bag_ids[:3] if micro.batch else ()
            raise TrainingError(
                f"epoch {progress.epoch + 1}, step {micro.step + 1}: the gradient is not finite "
                f"(sums so far: loss {loss:.4g}, task loss {task_loss:.4g}, KL {kl:.4g}; last bags "
                f"{', '.join(last_bags)}); lower train.lr (now {config.lr}) or check the features "
                "with python -m asmil.data.verify"
            )
        if config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.update_anchor("step")
        progress.step = micro.step + 1

    def _record(self, seconds: float, bags_per_second: float) -> EpochRecord:
        loss, task_loss, kl = self.progress.sums.mean()
        epoch = self.progress.epoch + 1
        metrics: dict[str, Metric] = {}
        due = epoch % self.config.evaluate_every == 0 or epoch == self.config.epochs
        if self.data.validation_ids and due:
            predictions = predict(
                self.model, self.prepared, self.data.cohort, self.data.validation_ids,
                data=self.data.config, train=self.config,
            )  # fmt: skip
            metrics = self.prepared.evaluate(predictions)
        monitored = metrics.get(self.monitor.metric)
        return EpochRecord(
            epoch=epoch,
            loss=loss,
            task_loss=task_loss,
            kl=None if self.model.anchor is None else kl,
            metrics=metrics,
            monitored=None if monitored is None else monitored.value,
            stability=self._stability(),
            scalars=self.model.aggregator.scalars(),
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=seconds,
            bags_per_second=bags_per_second,
        )

    def _stability(self) -> Stability | None:
        if not self.tracked_ids:
            return None
        outputs = outputs_of(
            self.model, self.prepared, self.data.cohort, self.tracked_ids, data=self.data.config, train=self.config
        )
        return self.tracker.observe(self.tracked_ids, list(outputs))

    def _keep_best(self, record: EpochRecord) -> None:
        progress, value = self.progress, record.monitored
        if self.epoch_rule != "best_validation" or value is None:
            return
        if progress.best_value is None or self.monitor.better(value, progress.best_value):
            progress.best_epoch, progress.best_value = record.epoch, value
            state = self.model.aggregator.state_dict()
            progress.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def save(self) -> None:
        """Write a checkpoint of the last finished step."""
        if self.directory is None:
            return
        progress = self.progress
        state: dict[str, Any] = {
            "epoch": progress.epoch,
            "step": progress.step,
            "sums": progress.sums.values.cpu(),
            "bags": progress.sums.bags,
            "best": [progress.best_epoch, progress.best_value, progress.best_weights],
            "history": [record.to_state() for record in progress.history],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "attention": self.tracker.previous,
            "train_ids": list(self.data.train_ids),
            "task": self.prepared.to_state(),
        }
        save_checkpoint(self.directory, state)
        self.saved_at = time.monotonic()

    def restore(self, state: dict[str, Any] | None) -> None:
        """Continue from a checkpoint of the same training; None leaves everything at the start."""
        if state is None:
            return
        if state["train_ids"] != list(self.data.train_ids):
            raise TrainingError(
                f"{self.directory}: its checkpoint was trained on {len(state['train_ids'])} other bags than the "
                f"{len(self.data.train_ids)} of this split; choose another --out or train without --resume"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:240]
            raise TrainingError(
                f"{self.directory}: its checkpoint is of another model or optimizer ({reason}); restore the settings, "
                "choose another --out or train without --resume"
            ) from None
        self.tracker.previous = state["attention"]
        progress = self.progress
        progress.epoch, progress.step = state["epoch"], state["step"]
        progress.sums = _Sums(state["sums"].to(self.device), state["bags"])
        progress.best_epoch, progress.best_value, progress.best_weights = state["best"]
        progress.history = [EpochRecord.from_state(record) for record in state["history"]]

    def result(self) -> FitResult:
        """The model with the weights the epoch rule chooses."""
        progress, epoch = self.progress, self.progress.epoch
        if self.epoch_rule == "best_validation":
            if progress.best_weights is None:
                raise TrainingError(self._why_no_best_epoch())
            self.model.aggregator.load_state_dict(progress.best_weights)
            epoch = progress.best_epoch
        return FitResult(self.model.eval(), epoch, tuple(progress.history))

    def _why_no_best_epoch(self) -> str:
        metric = self.progress.history[-1].metrics.get(self.monitor.metric)
        reason = "nothing was validated" if metric is None else metric.reason
        return (
            f"protocol.epoch_rule: best_validation found no epoch: {self.monitor.metric} could not be computed on "
            f"{len(self.data.validation_ids)} validation bags ({reason}); enlarge protocol.inner or use last"
        )


@contextmanager
def _interrupt_flag() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handler(signum: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
