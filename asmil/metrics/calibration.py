"""How far predicted probabilities can be trusted, and the temperature and threshold that make the best of them.

Both are fitted on bags that the model was not trained on: on training bags a network is surer than it should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import minimize_scalar

from asmil.metrics.values import Metric

__all__ = [
    "DEFAULT_THRESHOLD",
    "FittedNumber",
    "best_temperature",
    "best_threshold",
    "brier_score",
    "calibration_error",
    "log_loss",
]

DEFAULT_THRESHOLD = 0.5
TEMPERATURES = (0.05, 20.0)
NUM_BINS = 15
SMALLEST = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class FittedNumber:
    """A temperature or threshold.

    Attributes:
        value: What is used.
        reason: Why it is the default (`one_class`), or a warning (`at_bound`).
    """

    value: float
    reason: str | None = None

    @property
    def metric(self) -> Metric:
        """As a figure of a result."""
        return Metric(self.value, self.reason)


def log_loss(probabilities_BC: np.ndarray, labels_B: np.ndarray) -> float:
    """Mean negative logarithm of the probability of the true class, which is taken as 2.2e-16 where it is smaller."""
    true_B = probabilities_BC[np.arange(len(labels_B)), labels_B]
    return float(-np.log(np.maximum(true_B, SMALLEST)).mean())


def brier_score(probabilities_BC: np.ndarray, labels_B: np.ndarray) -> float:
    """Mean squared error of the probabilities, of class 1 for two classes (0 to 1), else over all classes (0 to 2)."""
    squares_B = np.square(probabilities_BC - np.eye(probabilities_BC.shape[1])[labels_B]).sum(axis=1)
    return float(squares_B.mean()) / (2 if probabilities_BC.shape[1] == 2 else 1)


def calibration_error(confidence_B: np.ndarray, correct_B: np.ndarray) -> float:
    """Expected calibration error: the gap between confidence and accuracy in 15 bins of equal width, by their bags.

    It is above 0 by chance alone where bins hold few bags, so compare it between models on the same bags only.

    Args:
        confidence_B: Probability of the answer that was given.
        correct_B: Whether it was right.
    """
    bin_B = np.clip(np.ceil(confidence_B * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    gaps = np.bincount(bin_B, confidence_B - correct_B, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(confidence_B))


def best_temperature(loss: Callable[[float], float]) -> FittedNumber:
    """The temperature from 0.05 to 20 with the least loss; with the reason `at_bound` where that is an end.

    Args:
        loss: Mean log loss of the logits divided by a temperature. It has one minimum: it is convex in 1 / T.
    """
    low, high = (math.log(bound) for bound in TEMPERATURES)
    found = minimize_scalar(
        lambda log: loss(math.exp(log)), bounds=(low, high), method="bounded", options={"xatol": 1e-7}
    )
    at_bound = min(found.x - low, high - found.x) < 1e-3
    return FittedNumber(math.exp(found.x), "at_bound" if at_bound else None)


def best_threshold(score_B: np.ndarray, positive_B: np.ndarray, figure: Literal["macro_f1", "f1"]) -> FittedNumber:
    """The threshold with the best F1, a score above it counting as positive; of equals the one nearest to 0.5.

    Tried are 0.5 and the middle between every two neighbouring scores.

    Args:
        score_B: Probability of the positive class.
        positive_B: The truth.
        figure: `f1` of the positive class, or `macro_f1`, its mean with that of the negative class.

    Returns:
        The threshold; 0.5 with the reason `one_class` if all bags, or none, are positive.
    """
    if positive_B.all() or not positive_B.any():
        return FittedNumber(DEFAULT_THRESHOLD, "one_class")
    levels = np.unique(score_B)
    cuts = np.concatenate([[DEFAULT_THRESHOLD], (levels[1:] + levels[:-1]) / 2])
    positives, negatives = np.sort(score_B[positive_B]), np.sort(score_B[~positive_B])
    missed = np.searchsorted(positives, cuts, side="right")
    rejected = np.searchsorted(negatives, cuts, side="right")
    found, alarms = len(positives) - missed, len(negatives) - rejected
    values = 2 * found / (2 * found + missed + alarms)
    if figure == "macro_f1":
        values = (values + 2 * rejected / (2 * rejected + missed + alarms)) / 2
    best = cuts[values >= values.max() - 1e-12]
    return FittedNumber(float(best[np.argmin(np.abs(best - DEFAULT_THRESHOLD))]))
