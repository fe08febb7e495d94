"""Read-outs: what a task puts on top of a bag embedding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

__all__ = ["HeadSpec"]


@dataclass(frozen=True)
class HeadSpec:
    """Describes the head a task needs; the aggregator decides where it goes.

    Attributes:
        out_dim: Number of outputs C: class logits, time bins, hazards, or one risk.
    """

    out_dim: int

    def build(self, dim: int) -> nn.Module:
        """Build a head for embeddings of width `dim`; it maps [..., dim] to [..., out_dim]."""
        return nn.Linear(dim, self.out_dim)
