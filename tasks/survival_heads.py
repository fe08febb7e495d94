"""What the outputs of a survival model mean: for each kind of head its loss, its survival curves and its risk.

All heads answer with a curve on the same time bins, so everything after them is the same. Shape letters: B bags, C
outputs of the head, K time bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from asmil.nn.cox import TieRule, cox_loss, ranking_loss
from asmil.nn.losses import CensoringMode, hazard_loss, incidence_loss
from tasks.bins import TimeBins
from tasks.curves import breslow_hazard, survival_from_hazards, survival_from_incidence

if TYPE_CHECKING:
    from tasks.survival import SurvivalConfig

__all__ = ["CoxHead", "HazardHead", "IncidenceHead", "SurvivalHead", "build_head"]


class SurvivalHead(Protocol):
    """A kind of head on fitted time bins."""

    @property
    def width(self) -> int:
        """Outputs C."""
        ...

    @property
    def couples_bags(self) -> bool:
        """Whether the loss of a bag depends on the other bags of the step."""
        ...

    def loss(self, logits_BC: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Loss of each bag, [B], from its `bin`, `time` and `event`."""
        ...

    def survival(self, logits_BC: Tensor) -> Tensor | None:
        """Float64 [B, K] chance to live past the end of each bin; None while a part of it is not fitted."""
        ...

    def risk(self, logits_BC: Tensor) -> Tensor | None:
        """Float64 [B] risk of the head's own; None takes one read from the curve."""
        ...

    def calibrated(self, risk_B: np.ndarray, time_B: np.ndarray, event_B: np.ndarray) -> SurvivalHead:
        """The head with what the predictions of the training bags tell."""
        ...

    def to_state(self) -> Any:
        """What `calibrated` fitted, as JSON-serialisable data."""
        ...


@dataclass(frozen=True)
class IncidenceHead:
    """Softmax over time bins.

    Attributes:
        bins: The time bins.
        censoring: Meaning of patients censored in the last bin.
        alpha: Censored patients weigh 1 - alpha.
        ranking_weight: Weight of DeepHit's ranking term.
        ranking_sigma: Its scale.
    """

    bins: TimeBins
    censoring: CensoringMode
    alpha: float
    ranking_weight: float = 0.0
    ranking_sigma: float = 0.1

    @property
    def width(self) -> int:
        """One logit per bin."""
        return self.bins.count

    @property
    def couples_bags(self) -> bool:
        """The ranking term does."""
        return self.ranking_weight > 0

    @property
    def _has_tail(self) -> bool:
        return self.censoring == "tail"

    def loss(self, logits_BC: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Negative log-likelihood, and the ranking term if there is one."""
        loss_B = incidence_loss(logits_BC, target["bin"], target["event"], mode=self.censoring, alpha=self.alpha)
        if self.ranking_weight == 0:
            return loss_B
        ranking_B = ranking_loss(
            logits_BC,
            target["bin"],
            target["time"],
            target["event"],
            sigma=self.ranking_sigma,
            tail=self._has_tail,
        )
        return loss_B + self.ranking_weight * ranking_B

    def survival(self, logits_BC: Tensor) -> Tensor:
        """One minus the mass up to the end of each bin."""
        return survival_from_incidence(logits_BC, tail=self._has_tail)

    def risk(self, logits_BC: Tensor) -> None:
        """From the curve."""

    def calibrated(self, risk_B: np.ndarray, time_B: np.ndarray, event_B: np.ndarray) -> IncidenceHead:
        """Nothing to fit."""
        return self

    def to_state(self) -> None:
        """Nothing fitted."""


@dataclass(frozen=True)
class HazardHead:
    """One sigmoid per time bin: the chance to die in it once it is reached.

    Attributes:
        bins: The time bins.
        alpha: Censored patients weigh 1 - alpha.
    """

    bins: TimeBins
    alpha: float
    couples_bags: bool = False

    @property
    def width(self) -> int:
        """One logit per bin."""
        return self.bins.count

    def loss(self, logits_BC: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Negative log-likelihood."""
        return hazard_loss(logits_BC, target["bin"], target["event"], alpha=self.alpha)

    def survival(self, logits_BC: Tensor) -> Tensor:
        """Product of the chances to pass each bin."""
        return survival_from_hazards(logits_BC)

    def risk(self, logits_BC: Tensor) -> None:
        """From the curve."""

    def calibrated(self, risk_B: np.ndarray, time_B: np.ndarray, event_B: np.ndarray) -> HazardHead:
        """Nothing to fit."""
        return self

    def to_state(self) -> None:
        """Nothing fitted."""


@dataclass(frozen=True)
class CoxHead:
    """One log relative hazard theta; curves come from Breslow's baseline hazard of the training bags.

    Attributes:
        bins: The time bins, which here are only where the curve is told.
        ties: Treatment of tied events.
        hazard: Cumulative baseline hazard at the end of each bin, K numbers; None before `calibrated`.
    """

    bins: TimeBins
    ties: TieRule
    hazard: tuple[float, ...] | None = None
    width: int = 1
    couples_bags: bool = True

    def loss(self, logits_BC: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """The terms of the partial likelihood of a whole step, scaled so that their mean over bags is that over events.

        Without events they are all 0.
        """
        loss_B = cox_loss(logits_BC[:, 0], target["time"], target["event"], ties=self.ties)
        return loss_B * (len(loss_B) / target["event"].sum().clamp_min(1))

    def survival(self, logits_BC: Tensor) -> Tensor | None:
        """exp(-H0(t) exp(theta)) at the end of each bin."""
        if self.hazard is None:
            return None
        theta_B1 = logits_BC.double()
        return torch.exp(-torch.exp(theta_B1 + theta_B1.new_tensor(self.hazard).log()))

    def risk(self, logits_BC: Tensor) -> Tensor:
        """Theta."""
        return logits_BC[:, 0].double()

    def calibrated(self, risk_B: np.ndarray, time_B: np.ndarray, event_B: np.ndarray) -> CoxHead:
        """With the baseline hazard of the training bags."""
        hazard_K = breslow_hazard(risk_B, time_B, event_B, np.asarray(self.bins.edges[1:]))
        return replace(self, hazard=tuple(hazard_K.tolist()))

    def to_state(self) -> list[float] | None:
        """The baseline hazard."""
        return None if self.hazard is None else list(self.hazard)


def build_head(config: SurvivalConfig, bins: TimeBins, state: Any = None) -> SurvivalHead:
    """The head a configuration asks for.

    Args:
        config: The `task` section.
        bins: Fitted time bins.
        state: What `to_state` of such a head gave; None makes one that is not calibrated.
    """
    if config.head == "cox":
        return CoxHead(bins, config.ties, None if state is None else tuple(state))
    if config.head == "hazard":
        return HazardHead(bins, config.alpha)
    if config.ranking is None:
        return IncidenceHead(bins, config.censoring, config.alpha)
    return IncidenceHead(bins, config.censoring, config.alpha, config.ranking.weight, config.ranking.sigma)
