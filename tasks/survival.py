"""Survival of patients: discrete-time heads, Harrell's C on continuous time, and risk groups.

An event is marked 1 and censoring 0 everywhere. Bins, the shift of zero times and the risk-group cut are fitted on the
training part and travel with the model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor

from asmil.bags import BagBatch
from asmil.config import StrictModel
from asmil.data.config import LabelColumns
from asmil.engine.protocols import BagReader, Figure, Monitor, Predictions, PreparedTask, Task
from asmil.errors import DataError
from asmil.metrics.survival import harrell_c, kaplan_meier, log_rank, null_c_spread, number_at_risk
from asmil.metrics.values import Metric
from asmil.nn.heads import HeadSpec
from asmil.nn.losses import CensoringMode, hazard_loss, incidence_loss
from tasks.bins import BinsConfig, TimeBins, fit_bins
from tasks.curves import RiskScore, median_time, risk_score, survival_from_hazards, survival_from_incidence
from tasks.intervals import with_intervals
from tasks.labels import name_some
from tasks.outcomes import OutcomeColumns

__all__ = ["PreparedSurvival", "Survival", "SurvivalConfig"]

logger = logging.getLogger(__name__)


class SurvivalConfig(StrictModel):
    """Time to an event, with censoring.

    Attributes:
        head: `incidence`: softmax over time bins; `hazard`: one sigmoid per bin.
        bins: How time is cut.
        censoring: What a patient censored in the last bin means under `incidence`: `end_drop` nothing; `end_clamp` the
            constant of the published VLSA code; `tail` mass beyond the last bin (recommended for new data, calibrated
            where most patients are censored); `start` counts as alive at the start of its bin, in every bin.
        alpha: Censored patients weigh 1 - alpha in the loss.
        risk: Score that ranks patients: `neg_sum_S`, `neg_rmst` (use with quantile bins) or `vlsa_mean_time`.
        zero_time: `reject` times of 0, or `shift` them to half the smallest positive training time.
        time_unit: Unit of the time column, for axes and tables.
        expected_event_rate: Known share of events; a table whose rate is nearer to its mirror image is warned about.
    """

    kind: Literal["survival"] = "survival"
    head: Literal["incidence", "hazard"] = "incidence"
    bins: BinsConfig = BinsConfig()
    censoring: CensoringMode = "end_drop"
    alpha: float = Field(default=0.0, ge=0, lt=1)
    risk: RiskScore = "neg_sum_S"
    zero_time: Literal["reject", "shift"] = "reject"
    time_unit: str = "months"
    expected_event_rate: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _censoring_has_a_use(self) -> SurvivalConfig:
        if self.head == "hazard" and self.censoring != "end_drop":
            raise ValueError(f"censoring {self.censoring!r} belongs to head incidence; a hazard head has no such case")
        return self

    def build(self, columns: LabelColumns) -> Survival:
        """The task on these label columns."""
        return Survival(self, columns)


class Survival(Task):
    """The survival task, not fitted.

    Args:
        config: The `task` section.
        columns: Meaning of the label columns; `time` and one of `event` and `censor` are needed.

    Raises:
        ConfigError: A needed column is not named.
    """

    def __init__(self, config: SurvivalConfig, columns: LabelColumns) -> None:
        self.monitor = Monitor("c_index", "max")
        self._config = config
        self._columns = OutcomeColumns.configured(columns, config.kind)

    def check(self, labels: pd.DataFrame) -> None:
        """Refuse outcomes that are missing, negative, contradictory or neither event nor censored; log a summary."""
        time_B, event_B = self._outcomes(labels)
        zero_B = time_B == 0
        if self._config.zero_time == "reject" and zero_B.any():
            raise DataError(
                f"label column {self._columns.time!r} is 0 for {name_some(labels.index, zero_B)}; a follow-up time "
                f"must be positive: remove these bags, or set task.zero_time: shift"
            )
        if "group" in labels.columns:
            self._refuse_contradictions(labels, time_B, event_B)
        logger.info(
            "survival: %d bags, %d events (%.1f %%), median time %.4g %s",
            len(labels), event_B.sum(), 100 * event_B.mean(), np.median(time_B), self._config.time_unit,
        )  # fmt: skip
        self._warn_if_mirrored(float(event_B.mean()))

    def strata(self, labels: pd.DataFrame) -> Sequence[int]:
        """Splits keep the share of events."""
        _, event_B = self._outcomes(labels)
        return [int(event) for event in event_B]

    def prepare(self, train_labels: pd.DataFrame, train_bags: BagReader) -> PreparedSurvival:
        """Fit bins and zero shift on the training part; features are not read.

        Raises:
            DataError: Wrong labels, or no events in the training fold.
        """
        time_B, event_B = self._outcomes(train_labels)
        zero_shift = float(time_B[time_B > 0].min(initial=np.inf)) / 2 if (time_B == 0).any() else 0.0
        if not np.isfinite(zero_shift):
            raise DataError(
                f"label column {self._columns.time!r} is 0 for every training bag; expected follow-up times"
            )
        if zero_shift:
            logger.warning("%d follow-up times of 0 are taken as %.4g", int((time_B == 0).sum()), zero_shift)
        bins = fit_bins(np.where(time_B == 0, zero_shift, time_B), event_B, self._config.bins)
        logger.info("time bins at %s; training events %s", np.round(bins.cuts, 2).tolist(), list(bins.train_events))
        return PreparedSurvival(self._config, self._columns, bins, zero_shift=zero_shift)

    def restore(self, state: Mapping[str, Any]) -> PreparedSurvival:
        """The prepared task of a checkpoint; its own head, bins and risk score hold, not those configured now."""
        return PreparedSurvival(
            SurvivalConfig.model_validate(state["config"]),
            self._columns,
            TimeBins.from_state(state["bins"]),
            zero_shift=state["zero_shift"],
            risk_cut=state["risk_cut"],
        )

    def _outcomes(self, labels: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        return self._columns.read(labels)

    def _refuse_contradictions(self, labels: pd.DataFrame, time_B: np.ndarray, event_B: np.ndarray) -> None:
        outcomes = pd.DataFrame({"time": time_B, "event": event_B, "group": labels["group"].to_numpy()})
        distinct = outcomes.drop_duplicates().groupby("group").size()
        contradictory = distinct.index[distinct > 1]
        if len(contradictory):
            raise DataError(
                f"{len(contradictory)} groups have bags with different {self._columns.time!r} or "
                f"{self._columns.mark!r} (first: {contradictory[0]!r}); the outcome belongs to the patient, so correct "
                "the label table"
            )

    def _warn_if_mirrored(self, rate: float) -> None:
        expected = self._config.expected_event_rate
        censors = self._columns.marks_censoring
        if expected is not None and abs(rate - (1 - expected)) < abs(rate - expected):
            logger.warning(
                "%.1f %% of the bags have %s = %d, but %.1f %% events are expected and %.1f %% is nearer to the share "
                "of censored ones: is the column %s?",
                100 * rate, self._columns.mark, not censors, 100 * expected, 100 * rate,
                "an event flag, to be named under data.labels.event" if censors else "a censoring flag",
            )  # fmt: skip


class PreparedSurvival(PreparedTask):
    """The survival task fitted on one training part.

    Args:
        config: The `task` section.
        columns: Columns of the outcome.
        bins: Time bins.
        zero_shift: What a time of 0 is taken as.
        risk_cut: Bags with a larger risk form the high-risk group; None before `calibrate`.
    """

    def __init__(
        self,
        config: SurvivalConfig,
        columns: OutcomeColumns,
        bins: TimeBins,
        *,
        zero_shift: float = 0.0,
        risk_cut: float | None = None,
    ) -> None:
        self.head = HeadSpec(bins.count)
        self.bins = bins
        self.risk_cut = risk_cut
        self._config = config
        self._columns = columns
        self._zero_shift = zero_shift

    def target(self, labels: pd.DataFrame) -> dict[str, Tensor]:
        """`bin` int64 [B] and `event` float32 [B]."""
        time_B, event_B = self._outcomes(labels)
        return {
            "bin": torch.from_numpy(self.bins.label(time_B)),
            "event": torch.from_numpy(event_B).float(),
        }

    def transform(self, batch: BagBatch) -> BagBatch:
        """The batch as it is."""
        return batch

    def loss(self, logits_BC: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Negative log-likelihood of each bag."""
        config = self._config
        if config.head == "hazard":
            return hazard_loss(logits_BC, target["bin"], target["event"], alpha=config.alpha)
        return incidence_loss(logits_BC, target["bin"], target["event"], mode=config.censoring, alpha=config.alpha)

    def predict(self, logits_BC: Tensor) -> dict[str, Tensor]:
        """Curves and what is read from them.

        Returns:
            `survival` [B, K], past the end of each bin; `risk` [B]; `median_time` [B], infinite where it is not
            reached; after `calibrate` also `high_risk` [B], 1 or 0.
        """
        if self._config.head == "hazard":
            survival_BK = survival_from_hazards(logits_BC)
        else:
            survival_BK = survival_from_incidence(logits_BC, tail=self._config.censoring == "tail")
        risk_B = risk_score(survival_BK, self.bins.edges, self._config.risk)
        found = {"survival": survival_BK, "risk": risk_B, "median_time": median_time(survival_BK, self.bins.edges)}
        if self.risk_cut is not None:
            found["high_risk"] = (risk_B > self.risk_cut).double()
        return found

    def truth(self, labels: pd.DataFrame) -> dict[str, np.ndarray]:
        """`time` and `event`, continuous and never binned."""
        time_B, event_B = self._outcomes(labels)
        return {"time": time_B, "event": event_B}

    def evaluate(self, predictions: Predictions) -> dict[str, Metric]:
        """`c_index`: Harrell's C of the risks.

        Raises:
            DataError: Non-finite risks (bags named).
        """
        return self._measure(predictions, np.arange(len(predictions.bag_ids)))

    def intervals(self, predictions: Predictions) -> dict[str, Metric]:
        """`c_index` with a bootstrap interval over patients, and `c_index_null_sd`.

        The latter is the standard deviation of C for risks that know nothing: the noise any difference is seen against.
        """
        found = with_intervals(lambda rows: self._measure(predictions, rows), ["c_index"], predictions.groups)
        spread = null_c_spread(predictions.truth["time"], predictions.truth["event"])
        found["c_index_null_sd"] = Metric(spread, None if spread is not None else "no_comparable_pairs")
        return found

    def figures(self, predictions: Sequence[Predictions]) -> tuple[Figure, ...]:
        """Kaplan-Meier curves of the risk groups; none before `calibrate`.

        Each fold's bags were put into groups by their own model's training cut, so groups are pooled over folds and
        risks are not; the log-rank test is stratified by fold.
        """
        if not predictions or any("high_risk" not in fold.outputs for fold in predictions):
            return ()
        time_B, event_B = (np.concatenate([fold.truth[name] for fold in predictions]) for name in ("time", "event"))
        high_B = np.concatenate([fold.outputs["high_risk"] for fold in predictions]).astype(bool)
        fold_B = np.repeat(np.arange(len(predictions)), [len(fold.bag_ids) for fold in predictions])
        p_value = log_rank(time_B, event_B, high_B, strata_B=fold_B)
        groups = [
            _curve(name, time_B[rows], event_B[rows])
            for name, rows in (("low risk", ~high_B), ("high risk", high_B))
            if rows.any()
        ]
        data = {"groups": groups, "log_rank_p": p_value.value, "time_unit": self._config.time_unit}
        return (Figure("kaplan_meier", "Survival by predicted risk, cut at the median of the training bags", data),)

    def calibrate(self, train: Predictions) -> PreparedSurvival:
        """The same task with the risk-group cut at the median risk of the training bags."""
        return PreparedSurvival(
            self._config,
            self._columns,
            self.bins,
            zero_shift=self._zero_shift,
            risk_cut=float(np.median(train.outputs["risk"])),
        )

    def to_state(self) -> dict[str, Any]:
        """Bins, cut, zero shift, and the settings that give outputs their meaning."""
        return {
            "kind": self._config.kind,
            "config": self._config.model_dump(mode="json"),
            "event_polarity": "1 = event observed, 0 = censored",
            "bins": self.bins.to_state(),
            "zero_shift": self._zero_shift,
            "risk_cut": self.risk_cut,
        }

    def _outcomes(self, labels: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        time_B, event_B = self._columns.read(labels)
        return np.where(time_B == 0, self._zero_shift, time_B), event_B

    def _measure(self, predictions: Predictions, rows: np.ndarray) -> dict[str, Metric]:
        truth, risk_B = predictions.truth, predictions.outputs["risk"]
        bag_ids = [predictions.bag_ids[row] for row in rows]
        return {"c_index": harrell_c(truth["time"][rows], truth["event"][rows], risk_B[rows], bag_ids=bag_ids)}


def _curve(name: str, time_B: np.ndarray, event_B: np.ndarray) -> dict[str, Any]:
    times, survival = kaplan_meier(time_B, event_B)
    return {
        "name": name,
        "n": len(time_B),
        "times": times.tolist(),
        "survival": survival.tolist(),
        "at_risk": number_at_risk(time_B, times).tolist(),
    }
