"""What is known about a finished epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asmil.engine.stability import Stability
from asmil.metrics.values import Metric

__all__ = ["EpochRecord"]


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch.

    Attributes:
        epoch: Epochs finished so far, from 1.
        loss: Mean loss per bag, everything included.
        task_loss: Mean task loss per bag.
        kl: Mean divergence from the anchor per bag, before its weight; None without an anchor.
        metrics: Validation metrics; empty where none were computed.
        monitored: The monitored metric's value, if it could be computed.
        stability: Attention stability over the tracked training bags.
        scalars: Trained numbers of the aggregator that are logged, by name.
        lr: Learning rate of the last step.
        seconds: Wall time of the epoch's training part.
        bags_per_second: Training throughput.
    """

    epoch: int
    loss: float
    task_loss: float
    kl: float | None
    metrics: Mapping[str, Metric]
    monitored: float | None
    stability: Stability | None
    scalars: Mapping[str, float]
    lr: float
    seconds: float
    bags_per_second: float

    def to_state(self) -> dict[str, Any]:
        """The record as plain data, for checkpoints."""
        metrics = {name: [metric.value, metric.reason, metric.interval] for name, metric in self.metrics.items()}
        stability = None if self.stability is None else dict(vars(self.stability))
        return {**vars(self), "metrics": metrics, "stability": stability, "scalars": dict(self.scalars)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> EpochRecord:
        """The record whose `to_state` gave this."""
        metrics = {name: Metric(*fields) for name, fields in state["metrics"].items()}
        stability = None if state["stability"] is None else Stability(**state["stability"])
        return cls(**{**state, "metrics": metrics, "stability": stability})
