"""The survival task fitted on one training part: targets, loss, predictions, and the figures of a result.

Everything fitted (bins, zero shift, follow-up, clinical baseline, head, risk-group cut) comes from the training part
and travels with the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from asmil.bags import BagBatch
from asmil.engine.protocols import Baseline, Figure, Predictions, PreparedTask
from asmil.metrics.clinical import ClinicalModel
from asmil.metrics.ipcw import Followup, auc_over_time, brier_over_time, d_calibration, time_grid, uno_c
from asmil.metrics.survival import harrell_c, kaplan_meier, log_rank, null_c_spread, number_at_risk
from asmil.metrics.values import Metric
from asmil.nn.heads import HeadSpec
from tasks.bins import TimeBins
from tasks.curves import median_time, risk_score, survival_at
from tasks.intervals import with_intervals
from tasks.outcomes import OutcomeColumns
from tasks.survival_heads import SurvivalHead, build_head

if TYPE_CHECKING:
    from tasks.survival import SurvivalConfig

__all__ = ["Fitted", "PreparedSurvival"]


MEANINGS = {
    "c_index_null_sd": "SD of C for risks that know nothing (one test part)",
    "uno_c": "Uno's C, censoring weighed in",
    "uno_c_tau": "time up to which Uno's C counts events",
    "auc_over_time": "cumulative/dynamic AUC, mean over time",
    "ibs": "integrated Brier score (less is better)",
    "ibs_kaplan_meier": "integrated Brier score of the training Kaplan-Meier curve",
    "d_calibration_p": "D-calibration, p (below 0.05: not calibrated)",
    "times_clipped": "test times beyond the training follow-up, clipped",
}


@dataclass(frozen=True)
class Fitted:
    """What the training part determines.

    Attributes:
        bins: Time bins.
        head: The head, with what `calibrate` fitted to it.
        followup: Outcomes of the training part; weights of censored patients come from them.
        zero_shift: What a time of 0 is taken as.
        clinical: The clinical baseline; None without covariates.
        risk_cut: Bags with a larger risk form the high-risk group; None before `calibrate`.
    """

    bins: TimeBins
    head: SurvivalHead
    followup: Followup
    zero_shift: float = 0.0
    clinical: ClinicalModel | None = None
    risk_cut: float | None = None

    def to_state(self) -> dict[str, Any]:
        """As JSON-serialisable data."""
        return {
            "bins": self.bins.to_state(),
            "head": self.head.to_state(),
            "followup": {"time": self.followup.time_B.tolist(), "event": self.followup.event_B.astype(int).tolist()},
            "zero_shift": self.zero_shift,
            "clinical": None if self.clinical is None else self.clinical.to_state(),
            "risk_cut": self.risk_cut,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], config: SurvivalConfig) -> Fitted:
        """What `to_state` gave."""
        bins, followup, clinical = TimeBins.from_state(state["bins"]), state["followup"], state["clinical"]
        return cls(
            bins=bins,
            head=build_head(config, bins, state["head"]),
            followup=Followup(np.asarray(followup["time"]), np.asarray(followup["event"])),
            zero_shift=state["zero_shift"],
            clinical=None if clinical is None else ClinicalModel.from_state(clinical),
            risk_cut=state["risk_cut"],
        )


class PreparedSurvival(PreparedTask):
    """The survival task fitted on one training part.

    Args:
        config: The `task` section.
        columns: Columns of the outcome.
        fitted: What the training part determined.
    """

    meanings = MEANINGS

    def __init__(self, config: SurvivalConfig, columns: OutcomeColumns, fitted: Fitted) -> None:
        self.head = HeadSpec(fitted.head.width)
        self.couples_bags = fitted.head.couples_bags
        self.fitted = fitted
        self._config = config
        self._columns = columns

    @property
    def bins(self) -> TimeBins:
        """The time bins."""
        return self.fitted.bins

    def target(self, labels: pd.DataFrame) -> dict[str, Tensor]:
        """`bin` int64 [B], `time` float64 [B] and `event` float32 [B]."""
        time_B, event_B = self._outcomes(labels)
        return {
            "bin": torch.from_numpy(self.bins.label(time_B)),
            "time": torch.from_numpy(time_B),
            "event": torch.from_numpy(event_B).float(),
        }

    def can_step(self, target: Mapping[str, Tensor]) -> bool:
        """A loss that compares patients needs one who was seen to die."""
        return not self.couples_bags or bool(target["event"].any())

    def transform(self, batch: BagBatch) -> BagBatch:
        """The batch as it is."""
        return batch

    def loss(self, logits_BC: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """The head's loss of each bag."""
        return self.fitted.head.loss(logits_BC, target)

    def predict(self, logits_BC: Tensor) -> dict[str, Tensor]:
        """Curves and what is read from them.

        Returns:
            `risk` [B]; `survival` [B, K], past the end of each bin, and `median_time` [B], infinite where it is not
            reached (a Cox head has both after `calibrate` only); after `calibrate` also `high_risk` [B], 1 or 0.
        """
        head, config, edges = self.fitted.head, self._config, self.bins.edges
        survival_BK, risk_B = head.survival(logits_BC), head.risk(logits_BC)
        if risk_B is None:
            assert survival_BK is not None, "a head has a risk of its own or a curve"
            risk_B = risk_score(survival_BK, edges, config.risk, horizon=config.horizon)
        found = {"risk": risk_B}
        if survival_BK is not None:
            found |= {"survival": survival_BK, "median_time": median_time(survival_BK, edges)}
        if self.fitted.risk_cut is not None:
            found["high_risk"] = (risk_B > self.fitted.risk_cut).double()
        return found

    def truth(self, labels: pd.DataFrame) -> dict[str, np.ndarray]:
        """`time` and `event`, continuous and never binned; with covariates `clinical_risk`, the baseline's risk."""
        time_B, event_B = self._outcomes(labels)
        truth = {"time": time_B, "event": event_B}
        if self.fitted.clinical is not None:
            truth["clinical_risk"] = self.fitted.clinical.risks(labels)
        return truth

    def evaluate(self, predictions: Predictions) -> dict[str, Metric]:
        """`c_index`: Harrell's C of the risks.

        Raises:
            DataError: Non-finite risks (bags named).
        """
        return self._measure(predictions, np.arange(len(predictions.bag_ids)))

    def intervals(self, predictions: Predictions) -> dict[str, Metric]:
        """`c_index` with a bootstrap interval over patients."""
        return with_intervals(lambda rows: self._measure(predictions, rows), ["c_index"], predictions.groups)

    def details(self, predictions: Predictions) -> dict[str, Metric]:
        """What a survival paper is asked for beside Harrell's C; reasons stand where one cannot be computed.

        Returns:
            What `MEANINGS` lists.
        """
        time_B, event_B = predictions.truth["time"], predictions.truth["event"]
        risk_B, followup = predictions.outputs["risk"], self.fitted.followup
        spread, times = null_c_spread(time_B, event_B), time_grid(followup, time_B)
        return {
            "c_index_null_sd": Metric(spread, None if spread is not None else "no_comparable_pairs"),
            "uno_c": uno_c(followup, time_B, event_B, risk_B),
            "uno_c_tau": Metric(followup.tau),
            "auc_over_time": auc_over_time(followup, time_B, event_B, risk_B, times).summary,
            **self._curve_details(predictions, times),
            "ibs_kaplan_meier": brier_over_time(followup, time_B, event_B, None, times).summary,
            "times_clipped": Metric(float(followup.clip(time_B, event_B)[2])),
        }

    def baseline(self, predictions: Predictions) -> Baseline | None:
        """The ridge Cox model of the covariates that `data.labels.covariates` names."""
        if self.fitted.clinical is None:
            return None
        risks = {"risk": predictions.truth["clinical_risk"]}
        return Baseline(self.fitted.clinical.describe, replace(predictions, outputs=risks))

    def figures(self, predictions: Sequence[Predictions]) -> tuple[Figure, ...]:
        """Kaplan-Meier curves of the risk groups, and how evenly predicted survival is spread; none before `calibrate`.

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
        """The same task with the risk-group cut at the median risk of the training bags, and Cox's baseline hazard."""
        risk_B = train.outputs["risk"]
        head = self.fitted.head.calibrated(risk_B, train.truth["time"], train.truth["event"])
        fitted = replace(self.fitted, head=head, risk_cut=float(np.median(risk_B)))
        return PreparedSurvival(self._config, self._columns, fitted)

    def to_state(self) -> dict[str, Any]:
        """Everything fitted, and the settings that give outputs their meaning."""
        return {
            "kind": self._config.kind,
            "config": self._config.model_dump(mode="json"),
            "event_polarity": "1 = event observed, 0 = censored",
            **self.fitted.to_state(),
        }

    def _outcomes(self, labels: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        time_B, event_B = self._columns.read(labels)
        return np.where(time_B == 0, self.fitted.zero_shift, time_B), event_B

    def _measure(self, predictions: Predictions, rows: np.ndarray) -> dict[str, Metric]:
        truth, risk_B = predictions.truth, predictions.outputs["risk"]
        bag_ids = [predictions.bag_ids[row] for row in rows]
        return {"c_index": harrell_c(truth["time"][rows], truth["event"][rows], risk_B[rows], bag_ids=bag_ids)}

    def _curve_details(self, predictions: Predictions, times: np.ndarray) -> dict[str, Metric]:
        if "survival" not in predictions.outputs:
            return dict.fromkeys(("ibs", "d_calibration_p"), Metric(None, "no_curves"))
        time_B, event_B = predictions.truth["time"], predictions.truth["event"]
        curve_BK, edges = predictions.outputs["survival"], self.bins.edges
        survival_BT = survival_at(curve_BK, edges, np.tile(times, (len(time_B), 1)))
        own_B = survival_at(curve_BK, edges, time_B[:, None])[:, 0]
        return {
            "ibs": brier_over_time(self.fitted.followup, time_B, event_B, survival_BT, times).summary,
            "d_calibration_p": d_calibration(np.clip(own_B, 0, 1), event_B)[1],
        }


def _curve(name: str, time_B: np.ndarray, event_B: np.ndarray) -> dict[str, Any]:
    times, survival = kaplan_meier(time_B, event_B)
    return {
        "name": name,
        "n": len(time_B),
        "times": times.tolist(),
        "survival": survival.tolist(),
        "at_risk": number_at_risk(time_B, times).tolist(),
    }
