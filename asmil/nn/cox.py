"""Losses that compare the patients of a step with each other: Cox's partial likelihood and DeepHit's ranking term.

Unlike the losses of `losses.py` they are no sum over patients that could be taken one by one: the loss of a patient
depends on who else is in the step. Pure functions; nothing here is fitted.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["TieRule", "cox_loss", "ranking_loss"]

TieRule = Literal["efron", "breslow"]


def cox_loss(risk_B: Tensor, time_B: Tensor, event_B: Tensor, *, ties: TieRule = "efron") -> Tensor:
    """Negative log partial likelihood: how unlikely it is that of all still at risk just this patient dies now.

    Patient j is at risk at time t if its time is t or later (Cox 1972, eq. 12). Events at the same time share one risk
    set under `breslow` (Breslow 1974); under `efron` (Efron 1977) those tied with them leave it one after another, by
    equal parts: the r-th of m tied events, counted from 0, has the denominator sum(risk set) - r/m sum(tied events).

    Args:
        risk_B: Log of the relative hazard, theta.
        time_B: Follow-up times.
        event_B: 1 where the event was observed, 0 where censored.
        ties: What tied events have as risk sets.

    Returns:
        The term of each patient, shape [B], 0 where censored, in float32 or wider. Their sum divided by the number of
        events is the loss; among tied events only the sum has a meaning.

    Example:
        >>> cox_loss(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 1, 0])).exp()
        tensor([3., 2., 1.])
    """
    assert ties in get_args(TieRule), ties
    order_B = torch.argsort(time_B, descending=True, stable=True)
    theta_B = risk_B.to(torch.promote_types(risk_B.dtype, torch.float32))[order_B]
    is_event_B = event_B.bool()[order_B]
    _, group_B, size_G = torch.unique_consecutive(time_B[order_B], return_inverse=True, return_counts=True)
    end_G = size_G.cumsum(0)
    log_sum_B = theta_B.logcumsumexp(0)[end_G - 1][group_B]
    if ties == "efron":
        share_B = (theta_B - log_sum_B).exp() * is_event_B
        tied_share_G = theta_B.new_zeros(len(size_G)).index_add(0, group_B, share_B)
        log_sum_B = log_sum_B + torch.log1p(-_left_B(is_event_B, group_B, end_G - size_G) * tied_share_G[group_B])
    loss_B = (log_sum_B - theta_B).masked_fill(~is_event_B, 0.0)
    return torch.empty_like(loss_B).index_copy(0, order_B, loss_B)


def _left_B(is_event_B: Tensor, group_B: Tensor, start_G: Tensor) -> Tensor:
    """The share of a group of tied events that left the risk set before each: 0, 1/m, … (m-1)/m in sorted order."""
    before_B = is_event_B.cumsum(0) - is_event_B.long()
    number_B = before_B - before_B[start_G][group_B]
    events_G = torch.zeros_like(start_G).index_add(0, group_B, is_event_B.long())
    return number_B * is_event_B / events_G[group_B].clamp_min(1)


def ranking_loss(
    logits_BK: Tensor,
    bin_B: Tensor,
    time_B: Tensor,
    event_B: Tensor,
    *,
    sigma: float = 0.1,
    tail: bool = False,
) -> Tensor:
    """DeepHit's ranking term (Lee et al. 2018, eq. 7): who dies first should have been the likelier to be dead by then.

    A pair (i, j) counts if i was seen to die and j was then alive: at a later time, or censored at the same. It costs
    exp(-(F_i - F_j) / sigma), F being the predicted chance to die up to the end of i's bin.

    Args:
        logits_BK: One logit per bin; their softmax is the mass of each bin.
        bin_B: Int64 bin of each patient's time.
        time_B: What decides who died first: follow-up times, or `bin_B` as in pycox.
        event_B: 1 where the event was observed, 0 where censored.
        sigma: Scale of differences that matter; positive.
        tail: Whether a further bin with a fixed logit of 0 takes mass too, as in `incidence_loss`.

    Returns:
        Of each patient i, the sum over j divided by B, shape [B], in float32 or wider.

    Example:
        >>> ranking_loss(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([1.0, 9.0]), torch.tensor([1, 0]))
        tensor([0.5000, 0.0000])
    """
    logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
    if tail:
        logits_BK = functional.pad(logits_BK, (0, 1))
    dead_BK = logits_BK.softmax(dim=1).cumsum(dim=1)
    dead_BB = dead_BK[:, bin_B].T
    is_event_B = event_B.bool()
    alive_BB = (time_B[:, None] < time_B) | ((time_B[:, None] == time_B) & ~is_event_B)
    counts_BB = is_event_B[:, None] & alive_BB
    cost_BB = torch.exp((dead_BB - dead_BB.diagonal()[:, None]) / sigma)
    return cost_BB.masked_fill(~counts_BB, 0.0).mean(dim=1)
