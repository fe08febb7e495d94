"""A measured number, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Metric"]


@dataclass(frozen=True)
class Metric:
    """One figure of an evaluation.

    A figure that cannot be computed is `value=None` with a reason; never 0, 0.5 or NaN.

    Attributes:
        value: The figure, or None.
        reason: Why there is no value, as a short word such as `no_events`; or a warning beside one (`collapsed`).
        interval: 95 % confidence interval, if one was computed.
    """

    value: float | None
    reason: str | None = None
    interval: tuple[float, float] | None = None
