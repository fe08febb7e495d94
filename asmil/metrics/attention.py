"""How an attention distribution over the instances of a bag moves between epochs, and how concentrated it is.

All figures use the natural logarithm and float64. Arguments are numpy arrays or CPU tensors. N instances, K columns
(attention heads and tokens).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr, rel_entr

__all__ = ["jensen_shannon", "mean_jensen_shannon", "normalized_entropy", "top_mass"]

SUM_TOLERANCE = 1e-2
"""How far weights may sum from 1 by rounding (bfloat16 over many instances); they are rescaled in float64."""


def jensen_shannon(p_N: ArrayLike, q_N: ArrayLike) -> float:
    """Jensen-Shannon divergence between two distributions, from 0 (equal) to ln 2 (disjoint).

    ½ KL(p‖m) + ½ KL(q‖m) with m = ½ (p + q). Reference: ASMIL, equation 3, where p and q are the attention over a
    slide's instances at consecutive epochs.

    Args:
        p_N: Weights that sum to 1.
        q_N: Weights that sum to 1.

    Returns:
        The divergence in nats.

    Example:
        >>> round(jensen_shannon([1.0, 0.0], [0.0, 1.0]), 4)
        0.6931
    """
    return mean_jensen_shannon(np.asarray(p_N)[:, None], np.asarray(q_N)[:, None])


def mean_jensen_shannon(p_NK: ArrayLike, q_NK: ArrayLike) -> float:
    """Mean over the columns of the Jensen-Shannon divergence between corresponding columns.

    Args:
        p_NK: Weights whose columns sum to 1.
        q_NK: Weights whose columns sum to 1.

    Returns:
        The mean divergence in nats.
    """
    p_NK, q_NK = _distributions(p_NK), _distributions(q_NK)
    assert p_NK.shape == q_NK.shape, f"distributions of shapes {p_NK.shape} and {q_NK.shape}"
    middle_NK = (p_NK + q_NK) / 2
    divergence_K = (rel_entr(p_NK, middle_NK) + rel_entr(q_NK, middle_NK)).sum(axis=0) / 2
    return float(divergence_K.clip(0.0, math.log(2.0)).mean())


def normalized_entropy(p_N: ArrayLike) -> float | None:
    """Entropy of a distribution over N instances as a share of the largest possible, ln N.

    Args:
        p_N: Weights that sum to 1.

    Returns:
        From 0 (one instance has all the weight) to 1 (uniform); None for one instance, whose weight has no choice.

    Example:
        >>> normalized_entropy([0.5, 0.5, 0.0, 0.0])
        0.5
    """
    p_N1 = _distributions(np.asarray(p_N)[:, None])
    if len(p_N1) == 1:
        return None
    return min(1.0, float(entr(p_N1).sum() / math.log(len(p_N1))))


def top_mass(p_N: ArrayLike, share: float = 0.01) -> float:
    """Weight on the most attended instances.

    Args:
        p_N: Weights that sum to 1.
        share: Part of the instances that counts as the top, above 0 and at most 1; rounded up to whole instances.

    Returns:
        Their summed weight.

    Example:
        >>> top_mass([0.125, 0.5, 0.375], share=0.5)
        0.875
    """
    assert 0 < share <= 1, f"share {share} is not in (0, 1]"
    p_N1 = _distributions(np.asarray(p_N)[:, None])
    count = math.ceil(share * len(p_N1) - 1e-9)
    return float(np.sort(p_N1[:, 0])[::-1][:count].sum())


def _distributions(weights_NK: ArrayLike) -> np.ndarray:
    weights = np.asarray(weights_NK, dtype=np.float64)
    total_K = weights.sum(axis=0)
    assert weights.ndim == 2, f"weights of shape {weights.shape}"
    assert (weights >= 0).all(), "attention weights are negative or NaN"
    assert (np.abs(total_K - 1) <= SUM_TOLERANCE).all(), f"attention weights sum to {total_K}"
    distributions_NK: np.ndarray = weights / total_K
    return distributions_NK
