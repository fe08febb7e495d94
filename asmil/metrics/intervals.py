"""Wilson's 95 % interval of a proportion; intervals of patients with several rows are in `resampling`."""

from __future__ import annotations

from scipy.stats import binomtest

from asmil.errors import DataError

__all__ = ["wilson_interval"]


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    It assumes independent trials: give it one bag per patient, and use `resampling.bootstrap` otherwise.

    Args:
        successes: How many trials succeeded.
        n: How many trials there were.

    Returns:
        Lower and upper 95 % limit.

    Raises:
        DataError: No trials, or more successes than trials.

    Example:
        >>> [round(limit, 3) for limit in wilson_interval(8, 10)]
        [0.49, 0.943]
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"no proportion can be formed of {successes} successes in {n} trials; evaluate some bags first")
    limits = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(limits.low), float(limits.high)
