"""Survival metrics on continuous times, with the answers this project gives where the libraries raise or return NaN.

Events are marked 1 (death seen) and 0 (censored) everywhere; a larger risk means an earlier expected event. Bins and
probabilities are not this file's business: times are never binned before they are ranked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import chi2
from sksurv.metrics import concordance_index_censored
from sksurv.nonparametric import kaplan_meier_estimator

from asmil.errors import DataError
from asmil.metrics.values import Metric

__all__ = ["harrell_c", "has_comparable_pair", "kaplan_meier", "log_rank", "null_c_spread", "number_at_risk"]

TIED_RISK = 1e-8
"""Risks closer than this count as equal."""


def harrell_c(
    time_B: np.ndarray, event_B: np.ndarray, risk_B: np.ndarray, *, bag_ids: Sequence[str] | None = None
) -> Metric:
    """Harrell's concordance index between risks and observed times.

    A pair is comparable if the earlier of two times is an event, or if the times are equal and exactly one is an
    event. It scores 1 if the earlier event has the larger risk, 0.5 if the risks differ by at most 1e-8, else 0.

    Args:
        time_B: Follow-up times, any unit, not negative.
        event_B: 1 where the event was observed, 0 where censored.
        risk_B: Predicted risks.
        bag_ids: Names of the bags for error messages; row numbers are used without it.

    Returns:
        The share of concordant comparable pairs. Null with reason `too_few` (fewer than two bags), `no_events` or
        `no_comparable_pairs`; 0.5 with the warning `collapsed` when all risks are equal.

    Raises:
        DataError: Non-finite risks (the bags are named), bad times or event marks, or lengths that differ.

    Example:
        >>> harrell_c(np.array([1.0, 2.0, 3.0]), np.array([1, 1, 0]), np.array([0.9, 0.1, 0.4])).value
        0.6666666666666666
    """
    time_B, event_B = _checked_outcomes(time_B, event_B, bag_ids)
    risk_B = np.asarray(risk_B, dtype=np.float64)
    _check_risks(risk_B, len(time_B), bag_ids)
    if len(time_B) < 2:
        return Metric(None, "too_few")
    if not event_B.any():
        return Metric(None, "no_events")
    if not has_comparable_pair(time_B, event_B):
        return Metric(None, "no_comparable_pairs")
    concordance = float(concordance_index_censored(event_B, time_B, risk_B, tied_tol=TIED_RISK)[0])
    return Metric(concordance, "collapsed" if np.ptp(risk_B) <= TIED_RISK else None)


def has_comparable_pair(time_B: np.ndarray, event_B: np.ndarray) -> bool:
    """Whether anybody outlives the first event, of which there must be one; `event_B` is boolean."""
    first_event = time_B[event_B].min()
    return bool((time_B > first_event).any() or ((time_B == first_event) & ~event_B).any())


def kaplan_meier(time_B: np.ndarray, event_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kaplan-Meier estimate of the survival function.

    Args:
        time_B: Follow-up times.
        event_B: 1 where the event was observed, 0 where censored.

    Returns:
        Times, starting at 0 and then each distinct observed time, and the survival from each time on.

    Raises:
        DataError: No bags, bad times or event marks.

    Example:
        >>> kaplan_meier(np.array([1.0, 2.0, 3.0]), np.array([1, 0, 1]))[1]
        array([1.        , 0.66666667, 0.66666667, 0.        ])
    """
    time_B, event_B = _checked_outcomes(time_B, event_B, None)
    if len(time_B) == 0:
        raise DataError("a survival curve needs at least one bag, got none; leave the empty group out")
    times, survival = kaplan_meier_estimator(event_B, time_B)
    if times[0] == 0:
        return times, survival
    return np.concatenate(([0.0], times)), np.concatenate(([1.0], survival))


def number_at_risk(time_B: np.ndarray, at: np.ndarray) -> np.ndarray:
    """How many bags are still followed up just before each of the times `at`.

    Example:
        >>> number_at_risk(np.array([1.0, 2.0, 2.0]), np.array([0.0, 2.0, 3.0]))
        array([3, 2, 0])
    """
    return len(time_B) - np.searchsorted(np.sort(time_B), at, side="left")


def log_rank(
    time_B: np.ndarray, event_B: np.ndarray, group_B: np.ndarray, *, strata_B: np.ndarray | None = None
) -> Metric:
    """The p-value of the log-rank test that groups share one survival function.

    Groups that were formed by a different model in each fold are compared within folds only: give the fold as the
    stratum, and the observed-minus-expected counts and their covariances are summed over the strata.

    Args:
        time_B: Follow-up times.
        event_B: 1 where the event was observed, 0 where censored.
        group_B: Group of each bag, any sortable values.
        strata_B: Stratum of each bag; one stratum without it.

    Returns:
        The p-value. Null with reason `one_group`, `no_events`, or `no_overlap` when the groups are never at risk
        together at an event, so that the data say nothing about their difference.

    Raises:
        DataError: Bad times or event marks, or lengths that differ.
    """
    time_B, event_B = _checked_outcomes(time_B, event_B, None)
    strata_B = np.zeros(len(time_B)) if strata_B is None else np.asarray(strata_B)
    groups, index_B = np.unique(np.asarray(group_B), return_inverse=True)
    if not len(time_B) == len(index_B) == len(strata_B):
        raise DataError(f"{len(time_B)} times, {len(index_B)} groups and {len(strata_B)} strata; expected one per bag")
    if len(groups) < 2:
        return Metric(None, "one_group")
    if not event_B.any():
        return Metric(None, "no_events")
    excess_G = np.zeros(len(groups))
    covariance_GG = np.zeros((len(groups), len(groups)))
    for stratum in np.unique(strata_B):
        rows = strata_B == stratum
        excess, covariance = _log_rank_score(time_B[rows], event_B[rows], index_B[rows], len(groups))
        excess_G += excess
        covariance_GG += covariance
    # Rows and columns of the covariance sum to 0, so its rank is at most G - 1; a lower one leaves groups unlinked.
    if np.linalg.matrix_rank(covariance_GG, hermitian=True) < len(groups) - 1:
        return Metric(None, "no_overlap")
    statistic = excess_G[1:] @ np.linalg.solve(covariance_GG[1:, 1:], excess_G[1:])
    return Metric(float(chi2.sf(statistic, len(groups) - 1)))


def null_c_spread(time_B: np.ndarray, event_B: np.ndarray) -> float | None:
    """Standard deviation of Harrell's C for risks that know nothing: what chance alone does to these outcomes.

    Exact for untied random risks: two comparable pairs that share a bag are correlated by 1/3 in sign, so with P
    pairs and d_i = (pairs in which bag i fails first) - (pairs in which it outlives), the variance is
    (P + sum of d_i squared) / (12 P squared).

    Args:
        time_B: Follow-up times.
        event_B: 1 where the event was observed, 0 where censored.

    Returns:
        The standard deviation, or None without comparable pairs.

    Raises:
        DataError: Bad times or event marks, or lengths that differ.
    """
    time_B, event_B = _checked_outcomes(time_B, event_B, None)
    later_BB = (time_B[:, None] < time_B) | ((time_B[:, None] == time_B) & ~event_B)
    comparable_BB = event_B[:, None] & later_BB
    pairs = int(comparable_BB.sum())
    if pairs == 0:
        return None
    difference_B = comparable_BB.sum(axis=1) - comparable_BB.sum(axis=0)
    return float(np.sqrt(pairs + np.square(difference_B).sum()) / (np.sqrt(12.0) * pairs))


def _log_rank_score(
    time_B: np.ndarray, event_B: np.ndarray, index_B: np.ndarray, num_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Observed minus expected events of each group, and the covariance of these differences, in one stratum."""
    member_BG = np.eye(num_groups)[index_B]
    event_times = np.unique(time_B[event_B])
    at_risk_TG = (time_B >= event_times[:, None]) @ member_BG
    events_TG = ((time_B == event_times[:, None]) & event_B) @ member_BG
    at_risk_T, events_T = at_risk_TG.sum(axis=1), events_TG.sum(axis=1)
    share_TG = at_risk_TG / at_risk_T[:, None]
    excess_G = (events_TG - events_T[:, None] * share_TG).sum(axis=0)
    variance_T = events_T * (at_risk_T - events_T) / np.maximum(at_risk_T - 1, 1)
    covariance_GG = np.diag(variance_T @ share_TG) - (share_TG * variance_T[:, None]).T @ share_TG
    return excess_G, covariance_GG


def _check_risks(risk_B: np.ndarray, num_bags: int, bag_ids: Sequence[str] | None) -> None:
    if risk_B.shape != (num_bags,):
        raise DataError(f"risks have shape {risk_B.shape}; {num_bags} times need one risk per bag")
    broken = ~np.isfinite(risk_B)
    if broken.any():
        raise DataError(
            f"the risk is not finite for {broken.sum()} of {num_bags} bags ({_first_names(broken, bag_ids)}); "
            f"the model diverged, lower train.lr or use float32 precision"
        )


def _checked_outcomes(
    time_B: np.ndarray, event_B: np.ndarray, bag_ids: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    time_B, event_B = np.asarray(time_B, dtype=np.float64), np.asarray(event_B)
    if time_B.ndim != 1 or time_B.shape != event_B.shape:
        raise DataError(f"times have shape {time_B.shape} and events {event_B.shape}; expected one of each per bag")
    broken = ~(np.isfinite(time_B) & (time_B >= 0))
    if broken.any():
        raise DataError(
            f"the follow-up time is negative or not finite for bags {_first_names(broken, bag_ids)} "
            f"(first: {time_B[broken][0]}); correct the label table"
        )
    broken = ~np.isin(event_B, (0, 1))
    if broken.any():
        raise DataError(
            f"the event mark of bags {_first_names(broken, bag_ids)} is neither 0 nor 1 (first: {event_B[broken][0]}); "
            f"use 1 for an observed event and 0 for censoring"
        )
    return time_B, event_B.astype(bool)


def _first_names(chosen_B: np.ndarray, bag_ids: Sequence[str] | None) -> str:
    rows = np.flatnonzero(chosen_B)
    shown = ", ".join(str(row if bag_ids is None else bag_ids[row]) for row in rows[:5])
    return shown if len(rows) <= 5 else f"{shown} and {len(rows) - 5} more"
