"""The aggregators an experiment can name."""

from __future__ import annotations

from asmil.nn.aggregators.abmil import AbmilAggregator
from asmil.nn.aggregators.asmil import AsmilAggregator
from asmil.nn.aggregators.base import Aggregator
from asmil.nn.config import AbmilConfig, AggregatorConfig, AsmilConfig
from asmil.nn.heads import HeadSpec

__all__ = ["AGGREGATORS", "Aggregator", "build_aggregator"]

AGGREGATORS: tuple[tuple[type, type], ...] = (
    (AsmilConfig, AsmilAggregator),
    (AbmilConfig, AbmilAggregator),
)


def build_aggregator(config: AggregatorConfig, in_dim: int, dim: int, head: HeadSpec) -> Aggregator:
    """Build the aggregator its settings belong to.

    Args:
        config: Settings of one of `AGGREGATORS`.
        in_dim: Stored feature width D.
        dim: Inner width d.
        head: The task's head.

    Returns:
        The aggregator with fresh weights from torch's global generator.
    """
    (aggregator,) = (made for settings, made in AGGREGATORS if isinstance(config, settings))
    built = aggregator(config, in_dim, dim, head)
    assert isinstance(built, Aggregator)
    return built
