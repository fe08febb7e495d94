"""ABMIL: (gated) attention-based MIL (Ilse, Tomczak, Welling, ICML 2018) on projected features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asmil.bags import BagBatch
from asmil.nn.aggregators.base import Aggregator, Encoded, Readout, ScorePath
from asmil.nn.attention import weighted_sums
from asmil.nn.config import AbmilConfig
from asmil.nn.heads import HeadSpec

__all__ = ["AbmilAggregator", "GatedAttention"]


class GatedAttention(nn.Module):
    """`w^T (tanh(V h + b_V) * sigmoid(U h + b_U)) + b_w` (Eq. 9); without the gate, Eq. 8.

    Scores are computed in the precision of the parameters, also under autocast. b_w takes no gradient: softmax ignores
    it, and what reached it would be rounding noise (see `asmil.nn.aggregators.asmil.TokenScores`).
    """

    def __init__(self, dim: int, *, hidden: int, columns: int = 1, gated: bool = True) -> None:
        super().__init__()
        self.tanh = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden) if gated else None
        self.score = nn.Linear(hidden, columns)

    def forward(self, features_MD: Tensor) -> Tensor:
        """Scores [M, columns]."""
        hidden = self.tanh(features_MD).tanh()
        if self.gate is not None:
            hidden = hidden * self.gate(features_MD).sigmoid()
        with torch.autocast(hidden.device.type, enabled=False):
            weight = self.score.weight
            return F.linear(hidden.to(weight.dtype), weight, self.score.bias.detach())


class AbmilScores(ScorePath):
    """Projection `ReLU(W x)` and the attention network."""

    def __init__(self, in_dim: int, dim: int, *, hidden: int, gated: bool) -> None:
        super().__init__()
        self.projection = nn.Linear(in_dim, dim, bias=False)
        self.attention = GatedAttention(dim, hidden=hidden, gated=gated)

    def encode(self, batch: BagBatch) -> Encoded:
        """Projected instances [M, d]."""
        features_MD = batch.features_MD.to(self.projection.weight.dtype)
        return Encoded(F.relu(self.projection(features_MD)), batch.offsets)

    def scores(self, encoded: Encoded) -> Tensor:
        """Scores [M, 1]."""
        scores_M1: Tensor = self.attention(encoded.features_MD)
        return scores_M1


class AbmilAggregator(Aggregator):
    """Attention-weighted mean of projected instances under a head.

    Args:
        config: Its settings.
        in_dim: Stored feature width D.
        dim: Inner width d.
        head: The task's head.
    """

    def __init__(self, config: AbmilConfig, in_dim: int, dim: int, head: HeadSpec) -> None:
        super().__init__()
        self.tokens = 1
        self.score_path = AbmilScores(in_dim, dim, hidden=config.hidden, gated=config.gated)
        self.head = head.build(dim)

    def pool(self, encoded: Encoded, weights_MK: Tensor, batch: BagBatch) -> Readout:
        """Bag embedding [B, d] and the head's outputs."""
        weights_MK = weights_MK.to(encoded.features_MD.dtype)
        embedding_Bd = weighted_sums(weights_MK, encoded.features_MD, encoded.offsets)[:, 0]
        return Readout(logits_BC=self.head(embedding_Bd), embedding_BD=embedding_Bd)
