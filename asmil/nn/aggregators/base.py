"""What every aggregator is: a score path that can be anchored, and a read-out from weights to outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from asmil.bags import BagBatch
from asmil.nn.attention import log_softmax

__all__ = ["Aggregator", "Branch", "Encoded", "Readout", "ScorePath", "uniform_per_bag"]


@dataclass(frozen=True)
class Encoded:
    """Instances as attention sees them.

    Attributes:
        features_MD: Encoded instances, bag after bag.
        offsets: Int64 [B + 1] row boundaries of the bags.
        extra_rows: Rows at the end of every bag that are not instances (tokens that serve as keys).
    """

    features_MD: Tensor
    offsets: Tensor
    extra_rows: int = 0


@dataclass(frozen=True)
class Branch:
    """A further output that is trained with the task's own loss.

    Attributes:
        name: For the log.
        logits_XC: Outputs, one row per element of the branch.
        bag_index_X: The bag each row belongs to.
        weight: Weight of the branch's mean loss per bag.
    """

    name: str
    logits_XC: Tensor
    bag_index_X: Tensor
    weight: float


@dataclass(frozen=True)
class Readout:
    """What an aggregator makes of a batch.

    Attributes:
        logits_BC: The head's outputs.
        embedding_BD: Bag embeddings, if the method has them.
        kept_BT: Which tokens the bag embedding was made from in this pass; None means all.
        branches: Further outputs to train.
        penalties: Further terms of the loss by name, each [B].
    """

    logits_BC: Tensor
    embedding_BD: Tensor | None = None
    kept_BT: Tensor | None = None
    branches: tuple[Branch, ...] = ()
    penalties: Mapping[str, Tensor] = field(default_factory=dict)


class ScorePath(nn.Module, ABC):
    """Everything that turns features into attention scores. An anchor is a frozen EMA copy of exactly this."""

    @abstractmethod
    def encode(self, batch: BagBatch) -> Encoded:
        """Encode the instances of a batch."""

    @abstractmethod
    def scores(self, encoded: Encoded) -> Tensor:
        """Attention scores before normalization, float32 [M, K], column k = head * T + token."""


class Aggregator(nn.Module, ABC):
    """Base class of all aggregators.

    Attributes:
        needs: Inputs beyond features: `coords`, `clusters`, `class_target`.
        tokens: Number T of attention columns per head.
        score_path: What the anchor copies.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    tokens: int
    score_path: ScorePath

    def log_weights(self, scores_MK: Tensor, offsets: Tensor) -> Tensor:
        """Logarithm of the online attention weights [M, K]; softmax over the instances by default."""
        return log_softmax(scores_MK, offsets)

    def scalars(self) -> dict[str, float]:
        """Trained numbers worth a place in the log of every epoch, by name."""
        return {}

    @abstractmethod
    def pool(self, encoded: Encoded, weights_MK: Tensor, batch: BagBatch) -> Readout:
        """Read the outputs of each bag from the encoded instances and their weights."""


def uniform_per_bag(batch: BagBatch, count: int, device: torch.device) -> Tensor:
    """`count` uniform numbers for each bag, float32 [B, count].

    With `batch.seeds_B` each bag has its own stream, so its numbers do not depend on the batch, the order or the rank
    it is computed in. Without, they come from torch's global generator.
    """
    if batch.seeds_B is None:
        return torch.rand(batch.num_bags, count, device=device)
    generator = torch.Generator()
    rows = [torch.rand(count, generator=generator.manual_seed(seed)) for seed in batch.seeds_B.tolist()]
    return torch.stack(rows).to(device, non_blocking=True)
