"""Losses of discrete-time survival: the negative log-likelihood of what was seen of each patient.

Bin k of K covers the times from its cut up to the next one; the last bin has no end. A patient was seen to die in bin
`bin_B`, or to be alive when observation stopped somewhere in it. Everything stays in log space: no probability is
clamped, so a confidently wrong prediction keeps its gradient. Pure functions; nothing here is fitted.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["CensoringMode", "hazard_loss", "incidence_loss"]

CensoringMode = Literal["end_clamp", "end_drop", "tail", "start"]
CLAMP = -math.log(1e-7)
"""Largest loss of a patient under `end_clamp`."""


def incidence_loss(
    logits_BK: Tensor, bin_B: Tensor, event_B: Tensor, *, mode: CensoringMode = "end_drop", alpha: float = 0.0
) -> Tensor:
    """Negative log-likelihood under an incidence head: the softmax of the logits is the mass of each bin.

    A patient's likelihood is the mass of all bins that agree with what was seen: the bin of an event; for a censored
    patient the bins after its own (`start`: its own too). No bin is left for a patient censored in the last one, and
    the modes differ in what happens then:

    - `end_drop`: the patient contributes 0.
    - `end_clamp`: every loss is cut off at -log 1e-7 = 16.118, without gradient beyond it, and that patient gets
      exactly this; the published VLSA code.
    - `tail`: a further bin with a fixed logit of 0 takes the mass beyond the last one; no event lies in it.
    - `start`: the patient's own bin still agrees.

    Args:
        logits_BK: One logit per bin.
        bin_B: Int64 bin of each patient's time.
        event_B: 1 where the event was observed, 0 where censored.
        mode: See above.
        alpha: Censored patients are weighted by 1 - alpha, 0 <= alpha < 1.

    Returns:
        The loss of each patient, shape [B], in float32 or wider.

    Example:
        >>> incidence_loss(torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([1, 0])).exp()
        tensor([4., 2.])
    """
    assert mode in get_args(CensoringMode), mode
    logits_BK = _widened(logits_BK)
    if mode == "tail":
        logits_BK = functional.pad(logits_BK, (0, 1))
    bins_K = torch.arange(logits_BK.shape[1], device=logits_BK.device)
    own_B1, is_event_B1 = bin_B[:, None], event_B.bool()[:, None]
    survived_BK = bins_K >= own_B1 if mode == "start" else bins_K > own_B1
    agrees_BK = torch.where(is_event_B1, bins_K == own_B1, survived_BK)
    unseen_B = ~agrees_BK.any(dim=1)
    log_mass_BK = logits_BK.log_softmax(dim=1).masked_fill(~(agrees_BK | unseen_B[:, None]), -math.inf)
    loss_B = -log_mass_BK.logsumexp(dim=1)
    if mode == "end_clamp":
        loss_B = loss_B.clamp(max=CLAMP)
    loss_B = loss_B.masked_fill(unseen_B, CLAMP if mode == "end_clamp" else 0.0)
    return loss_B * _weights(event_B, alpha, loss_B)


def hazard_loss(logits_BK: Tensor, bin_B: Tensor, event_B: Tensor, *, alpha: float = 0.0) -> Tensor:
    """Negative log-likelihood under a hazard head: sigmoid(logit k) is the chance to die in bin k once it is reached.

    A patient passes every bin before its own; an event stops in its own bin and a censored patient passes it too.

    Args:
        logits_BK: One logit per bin.
        bin_B: Int64 bin of each patient's time.
        event_B: 1 where the event was observed, 0 where censored.
        alpha: Censored patients are weighted by 1 - alpha, 0 <= alpha < 1.

    Returns:
        The loss of each patient, shape [B], in float32 or wider.

    Example:
        >>> hazard_loss(torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([1, 0])).exp()
        tensor([2., 4.])
    """
    logits_BK = _widened(logits_BK)
    bins_K = torch.arange(logits_BK.shape[1], device=logits_BK.device)
    own_B1, is_event_B1 = bin_B[:, None], event_B.bool()[:, None]
    passed_BK = torch.where(is_event_B1, bins_K < own_B1, bins_K <= own_B1)
    stopped_BK = is_event_B1 & (bins_K == own_B1)
    passing_BK = functional.logsigmoid(-logits_BK).masked_fill(~passed_BK, 0.0)
    stopping_BK = functional.logsigmoid(logits_BK).masked_fill(~stopped_BK, 0.0)
    loss_B = -(passing_BK + stopping_BK).sum(dim=1)
    return loss_B * _weights(event_B, alpha, loss_B)


def _widened(logits_BK: Tensor) -> Tensor:
    return logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))


def _weights(event_B: Tensor, alpha: float, like_B: Tensor) -> Tensor:
    return torch.where(event_B.bool(), torch.ones_like(like_B), torch.full_like(like_B, 1 - alpha))
