"""Attention stability: how much a bag's attention map moves from one epoch to the next (ASMIL, Eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from asmil.metrics.attention import jensen_shannon, mean_jensen_shannon, normalized_entropy, top_mass
from asmil.nn.model import ModelOutput, attention_maps

__all__ = ["AttentionTracker", "Stability"]


@dataclass(frozen=True)
class Stability:
    """Means over the tracked bags.

    Attributes:
        jsd: Jensen-Shannon divergence in nats (0 to ln 2) between this and the previous epoch's map, heads and tokens
            averaged first; None in the first epoch.
        jsd_per_column: The same per head and token, averaged afterwards.
        entropy: Entropy of the map over ln N; 1 is uniform.
        top_mass: Attention on the 1 % of instances that get most.
    """

    jsd: float | None
    jsd_per_column: float | None
    entropy: float | None
    top_mass: float | None


class AttentionTracker:
    """Remembers the last attention of a fixed set of bags."""

    def __init__(self) -> None:
        self.previous: dict[str, Tensor] = {}

    def observe(self, bag_ids: tuple[str, ...], outputs: list[ModelOutput]) -> Stability:
        """Compare the bags' attention with what was last seen of them.

        Args:
            bag_ids: The tracked bags, in the order of the outputs.
            outputs: Evaluation-mode outputs that hold exactly these bags.

        Returns:
            Means over the bags.
        """
        maps = [map_NK.float().cpu() for output in outputs for map_NK in attention_maps(output)]
        pairs = [
            (self.previous[bag_id], map_NK)
            for bag_id, map_NK in zip(bag_ids, maps, strict=True)
            if bag_id in self.previous
        ]
        self.previous = dict(zip(bag_ids, maps, strict=True))
        bag_maps = [map_NK.mean(dim=1) for map_NK in maps]
        return Stability(
            jsd=_mean([jensen_shannon(before.mean(dim=1), now.mean(dim=1)) for before, now in pairs]),
            jsd_per_column=_mean([mean_jensen_shannon(before, now) for before, now in pairs]),
            entropy=_mean([normalized_entropy(map_N) for map_N in bag_maps]),
            top_mass=_mean([top_mass(map_N) for map_N in bag_maps]),
        )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
