"""Attention over the instances of packed bags, in log space and float32.

Every function takes scores or weights of all bags of a batch, [M, K] with one column per head and token, and `offsets`
[B + 1]; no bag sees another's instances. Shape letters: `asmil.bags`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "entmax",
    "log_nsf",
    "log_softmax",
    "log_softmax_nsf_mixture",
    "split_bags",
    "sum_over_instances",
    "weighted_sums",
]

ENTMAX_BISECTIONS = 40


def split_bags(values_MK: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
    """The rows of each bag, as views."""
    if len(offsets) == 2:
        return (values_MK,)
    return torch.split(values_MK, offsets.diff().tolist())


def _bag_by_bag(function: Callable[[Tensor], Tensor], values_MK: Tensor, offsets: Tensor) -> Tensor:
    if len(offsets) == 2:
        return function(values_MK)
    return torch.cat([function(values_NK) for values_NK in split_bags(values_MK, offsets)])


def _tempered(scores_MK: Tensor, temperature: float) -> Tensor:
    return scores_MK if temperature == 1 else scores_MK / temperature


def log_softmax(scores_MK: Tensor, offsets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Logarithm of the softmax over the instances of each bag.

    Args:
        scores_MK: Scores before normalization.
        offsets: Int64 [B + 1] row boundaries of the bags.
        temperature: Divides the scores.

    Returns:
        Log weights [M, K]; over each bag the weights of a column sum to 1.

    Example:
        >>> log_softmax(torch.zeros(3, 1), torch.tensor([0, 2, 3])).exp().T
        tensor([[0.5000, 0.5000, 1.0000]])
    """
    return _bag_by_bag(lambda scores_NK: F.log_softmax(scores_NK, dim=0), _tempered(scores_MK, temperature), offsets)


def log_nsf(scores_MK: Tensor, offsets: Tensor, *, temperature: float = 1.0, eps: float = 0.0) -> Tensor:
    """Logarithm of the normalized sigmoid `sigmoid(s / tau) / (sum of sigmoid(s / tau) + eps)` (ASMIL, Eq. 5).

    Computed as the log-softmax of logsigmoid, so that very negative scores, a single instance and half-precision inputs
    stay exact.

    Args:
        scores_MK: Scores before normalization; their constant offset matters, unlike under softmax.
        offsets: Int64 [B + 1] row boundaries of the bags.
        temperature: tau.
        eps: Added to the sum; with eps > 0 the weights of a bag sum to less than 1.

    Returns:
        Log weights [M, K].

    Example:
        >>> log_nsf(torch.tensor([[50.0], [0.0]]), torch.tensor([0, 2])).exp().T
        tensor([[0.6667, 0.3333]])
    """

    def normalize(log_sigmoid_NK: Tensor) -> Tensor:
        if eps == 0:
            return F.log_softmax(log_sigmoid_NK, dim=0)
        log_sum_K = log_sigmoid_NK.logsumexp(dim=0)
        return log_sigmoid_NK - torch.logaddexp(log_sum_K, torch.full_like(log_sum_K, eps).log())

    return _bag_by_bag(normalize, F.logsigmoid(_tempered(scores_MK, temperature)), offsets)


def log_softmax_nsf_mixture(scores_MK: Tensor, offsets: Tensor, mixture_logit: Tensor) -> Tensor:
    """Logarithm of `lambda * softmax + (1 - lambda) * NSF` (ASMIL, Eq. 34).

    Args:
        scores_MK: Scores before normalization.
        offsets: Int64 [B + 1] row boundaries of the bags.
        mixture_logit: Scalar; lambda is its sigmoid.

    Returns:
        Log weights [M, K].
    """
    return torch.logaddexp(
        F.logsigmoid(mixture_logit) + log_softmax(scores_MK, offsets),
        F.logsigmoid(-mixture_logit) + log_nsf(scores_MK, offsets),
    )


def entmax(scores_MK: Tensor, offsets: Tensor, *, alpha: float, temperature: float = 1.0) -> Tensor:
    """alpha-entmax weights over the instances of each bag (Peters et al., ACL 2019); sparse for alpha > 1.

    The threshold is found by bisection. Not differentiated: it serves the anchor only.

    Args:
        scores_MK: Scores before normalization.
        offsets: Int64 [B + 1] row boundaries of the bags.
        alpha: 1 < alpha <= 2; 2 is sparsemax.
        temperature: Divides the scores.

    Returns:
        Weights [M, K], zeros included.

    Example:
        >>> entmax(torch.tensor([[2.0], [1.5], [-9.0]]), torch.tensor([0, 3]), alpha=2.0).T
        tensor([[0.7500, 0.2500, 0.0000]])
    """

    def threshold(scores_NK: Tensor) -> Tensor:
        low_K = scores_NK.amax(dim=0) - 1
        step_K = torch.full_like(low_K, 1 - len(scores_NK) ** (1 - alpha))
        for _ in range(ENTMAX_BISECTIONS):
            step_K = step_K / 2
            weights_NK = (scores_NK - (low_K + step_K)).clamp_min(0) ** (1 / (alpha - 1))
            low_K = torch.where(weights_NK.sum(dim=0) >= 1, low_K + step_K, low_K)
        weights_NK = (scores_NK - low_K).clamp_min(0) ** (1 / (alpha - 1))
        return weights_NK / weights_NK.sum(dim=0)

    with torch.no_grad():
        return _bag_by_bag(threshold, scores_MK * ((alpha - 1) / temperature), offsets)


def weighted_sums(weights_MK: Tensor, features_MD: Tensor, offsets: Tensor) -> Tensor:
    """Sum over each bag's instances of weight times feature, for every column of weights.

    Args:
        weights_MK: One weight per instance and column.
        features_MD: One feature vector per instance.
        offsets: Int64 [B + 1] row boundaries of the bags.

    Returns:
        Pooled features [B, K, D].
    """
    pairs = zip(split_bags(weights_MK, offsets), split_bags(features_MD, offsets), strict=True)
    return torch.stack([weights_NK.T @ features_ND for weights_NK, features_ND in pairs])


def sum_over_instances(values_MK: Tensor, offsets: Tensor) -> Tensor:
    """Sum of each column over the instances of each bag, [B, K]."""
    return torch.stack([values_NK.sum(dim=0) for values_NK in split_bags(values_MK, offsets)])
