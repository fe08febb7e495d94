"""Survival metrics that weigh patients by how likely they were still to be followed up: Uno's C, AUC over time, Brier.

The weights come from the reverse Kaplan-Meier curve G of the training part (inverse probability of censoring weights).
G says nothing beyond the last training time at which it is positive; test times are clipped there, and an event beyond
counts as censored. What scikit-survival raises or leaves undefined gets a reason here. Shape letters: B bags, T times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2
from sksurv.metrics import brier_score, concordance_index_ipcw, cumulative_dynamic_auc
from sksurv.nonparametric import CensoringDistributionEstimator
from sksurv.util import Surv

from asmil.errors import DataError
from asmil.metrics.survival import TIED_RISK, has_comparable_pair, kaplan_meier
from asmil.metrics.values import Metric

__all__ = ["CurveScores", "Followup", "auc_over_time", "brier_over_time", "d_calibration", "time_grid", "uno_c"]

GRID_QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Quantiles of the training event times at which curves are judged."""

CALIBRATION_BINS = 10


class Followup:
    """How long training patients were followed up: the censoring distribution, and how far it reaches.

    Args:
        time_B: Follow-up times of the training part, not negative.
        event_B: 1 where the event was observed, 0 where censored.

    Attributes:
        end: The last training time at which G is positive; 0 if there is none, as when all times are equal.
        tau: Where Uno's C stops by default: the 0.9 quantile of the training times, or `end` if that is smaller.

    Raises:
        DataError: No bags, or lengths that differ.
    """

    def __init__(self, time_B: np.ndarray, event_B: np.ndarray) -> None:
        if len(time_B) == 0 or len(time_B) != len(event_B):
            raise DataError(f"{len(time_B)} training times and {len(event_B)} events; expected one of each per bag")
        self.time_B = np.asarray(time_B, dtype=np.float64)
        self.event_B = np.asarray(event_B).astype(bool)
        self.outcomes = Surv.from_arrays(self.event_B, self.time_B)
        if self.event_B.any():
            known = np.unique(self.time_B)
            weight = CensoringDistributionEstimator().fit(self.outcomes).predict_proba(known)
        else:  # scikit-survival refuses it; no event ties with a censoring, so the plain estimate is the reverse one
            known, weight = kaplan_meier(self.time_B, ~self.event_B)
        self.end = float(known[weight > 0].max(initial=0.0))
        self.tau = min(float(np.quantile(self.time_B, 0.9)), self.end)

    def clip(self, time_B: np.ndarray, event_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Test outcomes as far as G reaches.

        Returns:
            Times, events (bool), and how many times were clipped.
        """
        beyond_B = time_B > self.end
        return np.minimum(time_B, self.end), np.asarray(event_B).astype(bool) & ~beyond_B, int(beyond_B.sum())


@dataclass(frozen=True)
class CurveScores:
    """A score at several times, and its summary.

    Attributes:
        times: Where it was taken, ascending.
        scores: Its values there.
        summary: Over the whole grid; null with a reason where there is none.
    """

    times: tuple[float, ...]
    scores: tuple[float, ...]
    summary: Metric


def uno_c(
    train: Followup, time_B: np.ndarray, event_B: np.ndarray, risk_B: np.ndarray, *, tau: float | None = None
) -> Metric:
    """Uno's concordance index (Uno et al. 2011): pairs weigh 1 / G(T_i)^2, and events from `tau` on do not count.

    Args:
        train: Follow-up of the training part.
        time_B: Follow-up times of the test part.
        event_B: 1 where the event was observed, 0 where censored.
        risk_B: Finite risks; larger means earlier.
        tau: Where to stop; None takes `train.tau`.

    Returns:
        The index. Null with reason `too_few`, `no_training_events`, `no_events`, `tau_too_small` (no test time before
        tau) or `no_comparable_pairs`; the warning `collapsed` when all risks are equal.
    """
    tau = train.tau if tau is None else min(tau, train.end)
    time_B, event_B, _ = train.clip(time_B, event_B)
    if len(time_B) < 2:
        return Metric(None, "too_few")
    if not train.event_B.any():
        return Metric(None, "no_training_events")
    if not (time_B < tau).any():
        return Metric(None, "tau_too_small")
    if not event_B.any():
        return Metric(None, "no_events")
    if time_B[event_B].min() >= tau or not has_comparable_pair(time_B, event_B):
        return Metric(None, "no_comparable_pairs")
    found = concordance_index_ipcw(
        train.outcomes, Surv.from_arrays(event_B, time_B), risk_B, tau=tau, tied_tol=TIED_RISK
    )
    return Metric(float(found[0]), "collapsed" if np.ptp(risk_B) <= TIED_RISK else None)


def time_grid(train: Followup, time_B: np.ndarray) -> np.ndarray:
    """Times at which curves are judged: quantiles of the training event times that lie inside the test follow-up.

    Returns:
        Ascending times from the smallest test time up to, but without, the largest, and up to where G reaches; may be
        empty.
    """
    if not train.event_B.any() or len(time_B) == 0:
        return np.empty(0)
    grid = np.unique(np.quantile(train.time_B[train.event_B], GRID_QUANTILES))
    last = np.minimum(time_B, train.end).max()
    inside: np.ndarray = grid[(grid >= time_B.min()) & (grid < last)]
    return inside


def auc_over_time(
    train: Followup, time_B: np.ndarray, event_B: np.ndarray, risk_B: np.ndarray, times: np.ndarray
) -> CurveScores:
    """Cumulative/dynamic AUC (Uno et al. 2007): those dead by t against those alive after t.

    Args:
        train: Follow-up of the training part.
        time_B: Follow-up times of the test part.
        event_B: 1 where the event was observed, 0 where censored.
        risk_B: Finite risks; larger means earlier.
        times: As `time_grid` gives them.

    Returns:
        The AUC at each time, and its mean weighed by the drop of the test part's Kaplan-Meier curve; null with reason
        `no_training_events`, `no_events` or `no_times`. Times before the first event have no cases and are left out.
    """
    if not train.event_B.any():
        return CurveScores((), (), Metric(None, "no_training_events"))
    time_B, event_B, _ = train.clip(time_B, event_B)
    if not event_B.any():
        return CurveScores((), (), Metric(None, "no_events"))
    times = times[times >= time_B[event_B].min()]
    if len(times) == 0:
        return CurveScores((), (), Metric(None, "no_times"))
    scores_T, mean = cumulative_dynamic_auc(train.outcomes, Surv.from_arrays(event_B, time_B), risk_B, times)
    return CurveScores(tuple(times.tolist()), tuple(scores_T.tolist()), Metric(float(mean)))


def brier_over_time(
    train: Followup, time_B: np.ndarray, event_B: np.ndarray, survival_BT: np.ndarray | None, times: np.ndarray
) -> CurveScores:
    """Brier score of survival curves (Graf et al. 1999), and its integral over the grid (IBS).

    Args:
        train: Follow-up of the training part.
        time_B: Follow-up times of the test part.
        event_B: 1 where the event was observed, 0 where censored.
        survival_BT: Predicted chance to live past each of the times; None takes the Kaplan-Meier curve of the training
            part for everybody, which is what any model should undercut.
        times: As `time_grid` gives them.

    Returns:
        The score at each time, and the area under it divided by the span of the grid; null with reason
        `no_training_events`, `too_few_times` for fewer than two, or `no_events`.

    Raises:
        DataError: The curves do not have one finite value per bag and time.
    """
    if not train.event_B.any():
        return CurveScores((), (), Metric(None, "no_training_events"))
    if len(times) < 2:
        return CurveScores((), (), Metric(None, "too_few_times"))
    if survival_BT is None:
        known, survival = kaplan_meier(train.time_B, train.event_B)
        at_T = survival[np.searchsorted(known, times, side="right") - 1]
        survival_BT = np.tile(at_T, (len(time_B), 1))
    if survival_BT.shape != (len(time_B), len(times)) or not np.isfinite(survival_BT).all():
        raise DataError(
            f"survival curves have shape {survival_BT.shape}; {len(time_B)} bags at {len(times)} times need one finite "
            "value each"
        )
    time_B, event_B, _ = train.clip(time_B, event_B)
    if not event_B.any():
        return CurveScores((), (), Metric(None, "no_events"))
    _, scores_T = brier_score(train.outcomes, Surv.from_arrays(event_B, time_B), survival_BT, times)
    integral = float(np.trapezoid(scores_T, times) / (times[-1] - times[0]))
    return CurveScores(tuple(times.tolist()), tuple(scores_T.tolist()), Metric(integral))


def d_calibration(own_survival_B: np.ndarray, event_B: np.ndarray) -> tuple[tuple[float, ...], Metric]:
    """D-calibration (Haider et al. 2020): at their own time patients' predicted survival should be spread evenly.

    An event adds 1 to the tenth its value S lies in. A patient censored at S could have died at any lower value, so 1
    is spread over the tenths below, in proportion to their part of [0, S].

    Args:
        own_survival_B: Predicted chance of each patient to live past its own time, in [0, 1].
        event_B: 1 where the event was observed, 0 where censored.

    Returns:
        Patients in each tenth, lowest first, and the p-value of the chi-square test that they are spread evenly; null
        with reason `too_few` where fewer than 5 are expected per tenth.

    Raises:
        DataError: A value outside [0, 1].
    """
    if ((own_survival_B < 0) | (own_survival_B > 1) | ~np.isfinite(own_survival_B)).any():
        raise DataError("predicted survival lies outside [0, 1]; the curves are broken")
    lower_T = np.arange(CALIBRATION_BINS) / CALIBRATION_BINS
    width = 1 / CALIBRATION_BINS
    own_B = np.minimum((own_survival_B * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    is_event_B = np.asarray(event_B).astype(bool)
    counts_T = np.bincount(own_B[is_event_B], minlength=CALIBRATION_BINS).astype(np.float64)
    for value in own_survival_B[~is_event_B]:
        parts_T = np.clip(value - lower_T, 0, width)
        counts_T += parts_T / value if value > 0 else lower_T == 0
    expected = len(own_survival_B) / CALIBRATION_BINS
    if expected < 5:
        return tuple(counts_T.tolist()), Metric(None, "too_few")
    statistic = np.square(counts_T - expected).sum() / expected
    return tuple(counts_T.tolist()), Metric(float(chi2.sf(statistic, CALIBRATION_BINS - 1)))
