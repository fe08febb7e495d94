"""Survival of patients: its settings, the checks of its labels, and what is fitted on the training part.

An event is marked 1 and censoring 0 everywhere. The fitted task is in `survival_fitted.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from asmil.config import StrictModel
from asmil.data.config import LabelColumns
from asmil.data.tables.polarity import unit_in_name
from asmil.engine.protocols import BagReader, Monitor, Task
from asmil.errors import ConfigError, DataError
from asmil.metrics.clinical import ClinicalModel, fit_clinical
from asmil.metrics.ipcw import Followup
from asmil.nn.cox import TieRule
from asmil.nn.losses import CensoringMode
from tasks.bins import BinsConfig, fit_bins
from tasks.curves import RiskScore
from tasks.labels import name_some
from tasks.outcomes import OutcomeColumns
from tasks.settings import TaskSettings
from tasks.survival_fitted import Fitted, PreparedSurvival
from tasks.survival_heads import build_head

__all__ = ["PreparedSurvival", "RankingConfig", "Survival", "SurvivalConfig"]

logger = logging.getLogger(__name__)


class RankingConfig(StrictModel):
    """DeepHit's ranking term, added to the likelihood.

    Attributes:
        weight: What it is multiplied by.
        sigma: Differences of predicted mortality of this size matter.
    """

    weight: float = Field(default=0.2, gt=0)
    sigma: float = Field(default=0.1, gt=0)


class SurvivalConfig(TaskSettings):
    """Time to an event, with censoring.

    Attributes:
        head: `incidence`: softmax over time bins; `hazard`: one sigmoid per bin; `cox`: one log relative hazard,
            compared among the patients of a step, of which `train.bags_per_step` must give it at least 16.
        bins: How time is cut; a Cox head tells its curves there.
        censoring: What a patient censored in the last bin means under `incidence`: `end_drop` nothing; `end_clamp` the
            constant of the published VLSA code; `tail` mass beyond the last bin (recommended for new data, calibrated
            where most patients are censored); `start` counts as alive at the start of its bin, in every bin.
        alpha: Censored patients weigh 1 - alpha in the loss of an incidence or hazard head.
        ranking: Ranking term beside the likelihood of an incidence head; None leaves it out.
        ties: How a Cox head treats events at the same time.
        risk: Score that ranks patients: `neg_sum_S`, `neg_rmst` (use with quantile bins), `vlsa_mean_time`, or
            `horizon`, the chance to die up to `horizon`. A Cox head ranks by its own output.
        horizon: A time in the unit of the time column, for `risk: horizon`.
        zero_time: `reject` times of 0, or `shift` them to half the smallest positive training time.
        time_unit: Unit of the time column, for axes and tables.
        expected_event_rate: Known share of events; a table whose rate is nearer to its mirror image is warned about.
    """

    kind: Literal["survival"] = "survival"
    head: Literal["incidence", "hazard", "cox"] = "incidence"
    bins: BinsConfig = BinsConfig()
    censoring: CensoringMode = "end_drop"
    alpha: float = Field(default=0.0, ge=0, lt=1)
    ranking: RankingConfig | None = None
    ties: TieRule = "efron"
    risk: RiskScore = "neg_sum_S"
    horizon: float | None = Field(default=None, gt=0)
    zero_time: Literal["reject", "shift"] = "reject"
    time_unit: str = "months"
    expected_event_rate: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _settings_have_a_use(self) -> SurvivalConfig:
        defaults = type(self).model_fields
        uses = {
            "incidence": ("censoring", "alpha", "ranking", "risk"),
            "hazard": ("alpha", "risk"),
            "cox": ("ties",),
        }
        for name in ("censoring", "alpha", "ranking", "ties", "risk"):
            value = getattr(self, name)
            if name not in uses[self.head] and value != defaults[name].default:
                heads = " or ".join(head for head, used in uses.items() if name in used)
                raise ValueError(f"{name} {value!r} belongs to head {heads}; head {self.head} has no use for it")
        if (self.risk == "horizon") != (self.horizon is not None):
            raise ValueError("risk: horizon and the time under horizon belong together; give both or neither")
        return self

    @property
    def min_bags_per_step(self) -> int:
        """Losses that compare patients need some to compare."""
        return 16 if self.head == "cox" or self.ranking is not None else 1

    def build(self, columns: LabelColumns) -> Survival:
        """The task on these label columns."""
        return Survival(self, columns)


class Survival(Task):
    """The survival task, not fitted.

    Args:
        config: The `task` section.
        columns: Meaning of the label columns; `time` and one of `event` and `censor` are needed.

    Raises:
        ConfigError: A needed column is not named, or its name tells another unit than the settings.
    """

    def __init__(self, config: SurvivalConfig, columns: LabelColumns) -> None:
        self.monitor = Monitor("c_index", "max")
        self._config = config
        self._columns = OutcomeColumns.configured(columns, config.kind)
        self._covariates = columns.covariates
        unit = unit_in_name(self._columns.time)
        if unit is not None and unit != config.time_unit:
            raise ConfigError(
                f"data.labels.time: column {self._columns.time!r} is in {unit} by its name, but task.time_unit is "
                f"{config.time_unit!r}; set task.time_unit: {unit}"
            )

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
        """Fit bins, zero shift and clinical baseline on the training part; features are not read.

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
        time_B = np.where(time_B == 0, zero_shift, time_B)
        bins = fit_bins(time_B, event_B, self._config.bins)
        logger.info("time bins at %s; training events %s", np.round(bins.cuts, 2).tolist(), list(bins.train_events))
        if self._config.horizon is not None and self._config.horizon > bins.end:
            raise DataError(
                f"task.horizon is {self._config.horizon:g}, but the longest training follow-up is {bins.end:.4g} "
                f"{self._config.time_unit}; name an earlier time"
            )
        fitted = Fitted(
            bins=bins,
            head=build_head(self._config, bins),
            followup=Followup(time_B, event_B),
            zero_shift=zero_shift,
            clinical=self._clinical(train_labels, time_B, event_B),
        )
        return PreparedSurvival(self._config, self._columns, fitted)

    def restore(self, state: Mapping[str, Any]) -> PreparedSurvival:
        """The prepared task of a checkpoint; its own head, bins and risk score hold, not those configured now."""
        config = SurvivalConfig.model_validate(state["config"])
        return PreparedSurvival(config, self._columns, Fitted.from_state(state, config))

    def _clinical(self, labels: pd.DataFrame, time_B: np.ndarray, event_B: np.ndarray) -> ClinicalModel | None:
        """The clinical baseline, one row per patient; None without covariates, or with a warning where it fails."""
        if not self._covariates:
            return None
        first_B = ~labels["group"].duplicated().to_numpy()
        table = labels.loc[first_B, list(self._covariates)]
        try:
            model = fit_clinical(table, time_B[first_B], event_B[first_B])
        except DataError as error:
            logger.warning("no clinical baseline: %s", error)
            return None
        unused = sorted({*self._covariates} - {covariate.name for covariate in model.covariates})
        if unused:
            logger.warning("the clinical baseline has no use for %s: no level is common enough", ", ".join(unused))
        return model

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
