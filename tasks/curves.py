"""Survival curves from the outputs of a discrete-time head, and the times and risk scores read from them.

`S_k`, column k of a curve, is the probability to live past the end of bin k. Everything is computed in float64: in
float32 the risks of a nearly collapsed model lie closer together than the tie tolerance of the concordance index.
Shape letters: B bags, K time bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "RiskScore",
    "breslow_hazard",
    "mean_time_left_edge",
    "median_time",
    "restricted_mean",
    "risk_score",
    "survival_at",
    "survival_from_hazards",
    "survival_from_incidence",
]

RiskScore = Literal["neg_sum_S", "neg_rmst", "vlsa_mean_time", "horizon"]


def survival_from_incidence(logits_BK: Tensor, *, tail: bool = False) -> Tensor:
    """Curves of an incidence head.

    Args:
        logits_BK: One logit per bin.
        tail: The head was trained with a fixed zero logit for the time beyond the last bin.

    Returns:
        Float64 [B, K]; the last column is 0 without a tail.
    """
    logits_BK = logits_BK.double()
    mass_BK = (functional.pad(logits_BK, (0, 1)) if tail else logits_BK).softmax(dim=1)
    from_here_BK = mass_BK.flip(1).cumsum(1).flip(1)
    return from_here_BK[:, 1:] if tail else functional.pad(from_here_BK[:, 1:], (0, 1))


def survival_from_hazards(logits_BK: Tensor) -> Tensor:
    """Curves of a hazard head, float64 [B, K]."""
    return functional.logsigmoid(-logits_BK.double()).cumsum(dim=1).exp()


def breslow_hazard(risk_B: np.ndarray, time_B: np.ndarray, event_B: np.ndarray, at_K: np.ndarray) -> np.ndarray:
    """Breslow's cumulative baseline hazard: at each event time, events divided by the summed risks of those at risk.

    Args:
        risk_B: Log relative hazards theta of the training bags.
        time_B: Their follow-up times.
        event_B: 1 where the event was observed, 0 where censored.
        at_K: Times to tell it at.

    Returns:
        H0 at each of the times, in units in which exp(-H0(t) exp(theta)) is the survival function.
    """
    times_T = np.unique(time_B[np.asarray(event_B).astype(bool)])
    events_T = ((time_B == times_T[:, None]) & np.asarray(event_B).astype(bool)).sum(axis=1)
    at_risk_T = ((time_B >= times_T[:, None]) * np.exp(risk_B)).sum(axis=1)
    hazard_T = np.concatenate(([0.0], np.cumsum(events_T / at_risk_T)))
    hazard_K: np.ndarray = hazard_T[np.searchsorted(times_T, at_K, side="right")]
    return hazard_K


def survival_at(survival_BK: np.ndarray, edges: Sequence[float], times_BT: np.ndarray) -> np.ndarray:
    """Curves, drawn straight from edge to edge, at times of each bag's own.

    Args:
        survival_BK: Curves; before the first edge they are 1, beyond the last they stay what they were there.
        edges: The K + 1 finite edges.
        times_BT: Times of each bag.

    Returns:
        Float64 [B, T].
    """
    knots_BE = np.pad(survival_BK, ((0, 0), (1, 0)), constant_values=1.0)
    rows = [np.interp(times_T, edges, knots_E) for times_T, knots_E in zip(times_BT, knots_BE, strict=True)]
    return np.stack(rows) if rows else np.empty(times_BT.shape)


def restricted_mean(survival_BK: Tensor, edges: Sequence[float]) -> Tensor:
    """Mean survival time up to the last edge, the curve drawn straight from edge to edge.

    Args:
        survival_BK: Curves.
        edges: The K + 1 finite edges.

    Returns:
        Times [B] in the unit of the edges.
    """
    widths_K = survival_BK.new_tensor(edges).diff()
    return (widths_K * (_at_bin_starts(survival_BK) + survival_BK) / 2).sum(dim=1)


def median_time(survival_BK: Tensor, edges: Sequence[float]) -> Tensor:
    """Time at which each curve, drawn straight from edge to edge, first reaches one half.

    Args:
        survival_BK: Curves.
        edges: The K + 1 finite edges.

    Returns:
        Times [B]; infinity where the curve stays above one half.
    """
    edges_E = survival_BK.new_tensor(edges)
    below_BK = survival_BK <= 0.5
    bin_B1 = below_BK.int().argmax(dim=1, keepdim=True)
    start_B = _at_bin_starts(survival_BK).gather(1, bin_B1).squeeze(1)
    end_B = survival_BK.gather(1, bin_B1).squeeze(1)
    bin_B = bin_B1.squeeze(1)
    crossing_B = edges_E[bin_B] + (start_B - 0.5) / (start_B - end_B) * edges_E.diff()[bin_B]
    return torch.where(below_BK.any(dim=1), crossing_B, torch.inf)


def mean_time_left_edge(survival_BK: Tensor, cuts: Sequence[float]) -> Tensor:
    """Mean time as the published VLSA evaluator takes it; for comparison with its numbers only.

    It places S_k, which holds at the end of bin k, at its left edge, and continues a curve that does not reach 0 along
    the straight line from (0, 1) through its last point.

    Args:
        survival_BK: Curves.
        cuts: The K left edges.

    Returns:
        Times [B] in the unit of the cuts.
    """
    cuts_K, last_B = survival_BK.new_tensor(cuts), survival_BK[:, -1]
    inside_B = torch.trapezoid(survival_BK, cuts_K, dim=1)
    fall_B = (1 - last_B).clamp_min(torch.finfo(last_B.dtype).eps)
    return inside_B + last_B.square() * cuts_K[-1] / fall_B / 2


def risk_score(
    survival_BK: Tensor, edges: Sequence[float], score: RiskScore, *, horizon: float | None = None
) -> Tensor:
    """One number per bag that grows with the risk of an early event.

    Args:
        survival_BK: Curves.
        edges: The K + 1 finite edges.
        score: `neg_sum_S`, minus the sum of the curve (for an incidence head minus the expected bin); `neg_rmst`,
            minus the restricted mean, which weighs bins by width; `vlsa_mean_time`, minus the published evaluator's
            mean time; `horizon`, the chance to die up to a time.
        horizon: That time.

    Returns:
        Risks [B].
    """
    assert score in get_args(RiskScore), score
    if score == "neg_rmst":
        return -restricted_mean(survival_BK, edges)
    if score == "horizon":
        assert horizon is not None
        times_B1 = np.full((len(survival_BK), 1), horizon)
        return 1 - torch.from_numpy(survival_at(survival_BK.detach().cpu().numpy(), edges, times_B1))[:, 0].to(
            survival_BK
        )
    if score == "vlsa_mean_time":
        return -mean_time_left_edge(survival_BK, edges[:-1])
    return -survival_BK.sum(dim=1)


def _at_bin_starts(survival_BK: Tensor) -> Tensor:
    return functional.pad(survival_BK[:, :-1], (1, 0), value=1.0)
