"""Time bins of discrete-time survival, fitted on the training part of a split."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from asmil.config import StrictModel
from asmil.errors import DataError

__all__ = ["BinsConfig", "TimeBins", "fit_bins"]

logger = logging.getLogger(__name__)


class BinsConfig(StrictModel):
    """How follow-up time is cut into bins.

    Attributes:
        rule: `uniform` widths up to the last training event, or `quantile`s of the training event times.
        count: Number of bins K; `sqrt_events` is the square root of the number of training events, rounded up.
    """

    rule: Literal["uniform", "quantile"] = "uniform"
    count: Literal["sqrt_events"] | Annotated[int, Field(ge=2, le=200)] = "sqrt_events"


@dataclass(frozen=True)
class TimeBins:
    """Bins [c_0, c_1), [c_1, c_2), ..., [c_{K-1}, infinity); part of every checkpoint.

    Attributes:
        cuts: c_0 = 0 up to c_{K-1}.
        end: The largest training time, right edge of the last bin where a finite one is needed (curves, means).
        train_counts: Training bags in each bin.
        train_events: Training events in each bin.
    """

    cuts: tuple[float, ...]
    end: float
    train_counts: tuple[int, ...]
    train_events: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of bins K."""
        return len(self.cuts)

    @property
    def edges(self) -> tuple[float, ...]:
        """The K + 1 finite edges of the bins."""
        return (*self.cuts, self.end)

    def label(self, time_B: np.ndarray) -> np.ndarray:
        """Int64 bin of each time; a time on a cut lies in the bin that begins there."""
        return np.searchsorted(np.asarray(self.cuts[1:]), time_B, side="right").astype(np.int64)

    def to_state(self) -> dict[str, Any]:
        """The bins as JSON-serialisable data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TimeBins:
        """The bins whose `to_state` gave `state`."""
        return cls(
            cuts=tuple(state["cuts"]),
            end=state["end"],
            train_counts=tuple(state["train_counts"]),
            train_events=tuple(state["train_events"]),
        )


def fit_bins(time_B: np.ndarray, event_B: np.ndarray, config: BinsConfig) -> TimeBins:
    """Fit bins to training outcomes.

    There are at most as many bins as events, and quantiles that coincide are merged: K may shrink, which is logged.
    Under `uniform` a bin without events stays.

    Args:
        time_B: Follow-up times of the training bags, positive.
        event_B: 1 where the event was observed, 0 where censored.
        config: Rule and count.

    Returns:
        The bins.

    Raises:
        DataError: No events in the training fold.

    Example:
        >>> fit_bins(np.array([2.0, 9.0, 4.0, 30.0]), np.array([1, 1, 0, 0]), BinsConfig()).cuts
        (0.0, 4.5)
    """
    event_times = time_B[event_B.astype(bool)]
    if len(event_times) == 0:
        raise DataError(
            f"no events in the training fold ({len(time_B)} bags, all censored): time bins cannot be fitted; "
            f"use fewer folds, or check that data.labels.event is 1 where the event was observed"
        )
    wanted = math.ceil(math.sqrt(len(event_times))) if config.count == "sqrt_events" else config.count
    inner = _inner_cuts(event_times, min(wanted, len(event_times)), config.rule)
    if len(inner) + 1 < wanted:
        logger.warning("%d time bins instead of %d: %d training events", len(inner) + 1, wanted, len(event_times))
    bin_B = np.searchsorted(inner, time_B, side="right")
    return TimeBins(
        cuts=(0.0, *inner.tolist()),
        end=float(time_B.max()),
        train_counts=tuple(np.bincount(bin_B, minlength=len(inner) + 1).tolist()),
        train_events=tuple(np.bincount(bin_B[event_B.astype(bool)], minlength=len(inner) + 1).tolist()),
    )


def _inner_cuts(event_times: np.ndarray, count: int, rule: str) -> np.ndarray:
    """c_1 to c_{K-1}, increasing."""
    steps = np.arange(1, count)
    if rule == "uniform":
        return np.asarray(steps * event_times.max() / count, dtype=np.float64)
    return np.unique(np.quantile(event_times, steps / count))
