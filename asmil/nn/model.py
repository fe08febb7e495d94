"""The trainable model: an aggregator, and in training an anchor that stabilizes its attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asmil.bags import BagBatch
from asmil.errors import ConfigError
from asmil.nn.aggregators import Aggregator, build_aggregator
from asmil.nn.aggregators.base import Readout
from asmil.nn.anchor import EmaAnchor, TemporalAnchor, build_anchor, divergence_per_column
from asmil.nn.attention import split_bags
from asmil.nn.config import ModelConfig
from asmil.nn.heads import HeadSpec

__all__ = ["AnchoredModel", "ModelOutput", "attention_maps", "auto_inner_dim", "build_model"]

_INNER_DIMS = {384: 128, 512: 256, 768: 384, 1024: 512, 1536: 768}


@dataclass(frozen=True)
class ModelOutput:
    """What a forward pass gives.

    Attributes:
        readout: Logits, embedding, branches and penalties.
        scores_MK: Attention scores before normalization; column k = head * T + token.
        log_weights_MK: Logarithm of the online attention.
        offsets: Row boundaries of the bags in the two fields above.
        extra_rows: Rows at the end of each bag there that are not instances.
    """

    readout: Readout
    scores_MK: Tensor
    log_weights_MK: Tensor
    offsets: Tensor
    extra_rows: int

    @property
    def logits_BC(self) -> Tensor:
        """The head's outputs."""
        return self.readout.logits_BC


class AnchoredModel(nn.Module):
    """An aggregator with an optional anchor.

    Args:
        aggregator: The online model; all there is at inference.
        anchor: What its attention is pulled towards in training.
    """

    def __init__(self, aggregator: Aggregator, anchor: EmaAnchor | TemporalAnchor | None = None) -> None:
        super().__init__()
        self.aggregator = aggregator
        self.anchor = anchor

    def forward(self, batch: BagBatch) -> ModelOutput:
        """Run the online model; the anchor is not evaluated.

        Args:
            batch: Packed bags. In training mode their `seeds_B` drive token drop and dropout.

        Returns:
            The output of every bag.
        """
        encoded = self.aggregator.score_path.encode(batch)
        scores_MK = self.aggregator.score_path.scores(encoded)
        log_weights_MK = self.aggregator.log_weights(scores_MK, encoded.offsets)
        readout = self.aggregator.pool(encoded, log_weights_MK.exp(), batch)
        return ModelOutput(readout, scores_MK, log_weights_MK, encoded.offsets, encoded.extra_rows)

    def anchor_loss(self, output: ModelOutput, batch: BagBatch) -> Tensor | None:
        """Divergence of the online attention from the anchor's, mean over tokens and heads, before its weight.

        Args:
            output: What `forward` gave for the batch.
            batch: The same batch.

        Returns:
            [B], or None without an anchor.
        """
        if self.anchor is None:
            return None
        config = self.anchor.config
        target_log_MK = self.anchor.log_weights(batch, output.log_weights_MK)
        divergence_BK = divergence_per_column(
            target_log_MK, output.log_weights_MK, output.offsets, reduction=config.kl_reduction
        )
        kept_BT = output.readout.kept_BT
        if config.kl_tokens == "all" or kept_BT is None:
            return divergence_BK.mean(dim=1)
        kept_BK = kept_BT.repeat(1, divergence_BK.shape[1] // kept_BT.shape[1])
        return (divergence_BK * kept_BK).sum(dim=1) / kept_BK.sum(dim=1)

    def update_anchor(self, after: str) -> None:
        """Move the anchor, if it moves after a `step` or an `epoch` as given."""
        if self.anchor is not None and self.anchor.config.update == after:
            self.anchor.update(self.aggregator.score_path)


def attention_maps(output: ModelOutput) -> list[Tensor]:
    """The online attention of each bag over its instances, float32 [N, K]; columns sum to 1."""
    maps = []
    for log_NK in split_bags(output.log_weights_MK.detach().float(), output.offsets):
        instances_NK = log_NK[: len(log_NK) - output.extra_rows]
        maps.append(instances_NK.softmax(dim=0) if output.extra_rows else instances_NK.exp())
    return maps


def auto_inner_dim(num_features: int) -> int:
    """Inner width d for a feature width D.

    The authors' script where it has a value; else 128 below 384, and D / 2 rounded down to a multiple of 64, at most
    768.

    Example:
        >>> [auto_inner_dim(width) for width in (64, 512, 1000, 4096)]
        [128, 256, 448, 768]
    """
    if num_features in _INNER_DIMS:
        return _INNER_DIMS[num_features]
    return 128 if num_features < 384 else min(num_features // 2 // 64 * 64, 768)


def build_model(config: ModelConfig, num_features: int, head: HeadSpec, *, seed: int) -> AnchoredModel:
    """Build a model with fresh weights that depend on the seed alone.

    Args:
        config: The `model` section.
        num_features: Feature width D of the store.
        head: The task's head.
        seed: Seed of the weights.

    Returns:
        The model on the CPU, in float32.

    Raises:
        ConfigError: The heads do not divide the inner width.
    """
    dim = auto_inner_dim(num_features) if config.inner_dim == "auto" else config.inner_dim
    heads = getattr(config.aggregator, "heads", 1)
    if dim % heads:
        raise ConfigError(
            f"model.aggregator.heads: got {heads}, which does not divide the inner width {dim} "
            f"(inner_dim: {config.inner_dim}, store features: {num_features}); set model.inner_dim to a multiple of it"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        aggregator = build_aggregator(config.aggregator, num_features, dim, head)
        if config.anchor is None:
            return AnchoredModel(aggregator)
        independent = build_aggregator(config.aggregator, num_features, dim, head).score_path
        return AnchoredModel(aggregator, build_anchor(config.anchor, aggregator.score_path, independent))
