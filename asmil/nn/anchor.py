"""Attention anchors: what the online attention is pulled towards, and the divergence that pulls.

`EmaAnchor` is ASMIL's: a frozen exponential moving average of the score path whose scores pass a normalized sigmoid.
`TemporalAnchor` is the alternative the paper argues against (App. H.1): each bag's own past attention. Both exist in
training only; inference and exported models never evaluate them.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from asmil.bags import BagBatch
from asmil.nn.aggregators.base import Encoded, ScorePath
from asmil.nn.attention import entmax, log_nsf, log_softmax, split_bags, sum_over_instances
from asmil.nn.config import AnchorConfig

__all__ = ["EmaAnchor", "TemporalAnchor", "build_anchor", "divergence_per_column"]


class EmaAnchor(nn.Module):
    """A copy of the score path that follows it as `anchor <- m anchor + (1 - m) online` (buffers included).

    It takes no gradient, is always in evaluation mode and sees the same batch as the online model.

    Args:
        config: Normalizer, temperature and EMA factor.
        online: The score path to copy.
        start: Begin as a copy of this path instead (the authors' script starts from an independent network).
    """

    def __init__(self, config: AnchorConfig, online: ScorePath, *, start: ScorePath | None = None) -> None:
        super().__init__()
        self.config = config
        self.path = copy.deepcopy(online if start is None else start)
        self.path.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> EmaAnchor:
        """Stay in evaluation mode, whatever the model around it does."""
        return super().train(False)

    @torch.no_grad()
    def scores(self, batch: BagBatch) -> tuple[Encoded, Tensor]:
        """The encoded batch and the anchor's scores [M, K]."""
        encoded = self.path.encode(batch)
        return encoded, self.path.scores(encoded)

    @torch.no_grad()
    def log_weights(self, batch: BagBatch, online_log_weights_MK: Tensor) -> Tensor:
        """Logarithm of the target attention [M, K] over each bag's instances; finite also where the weight is 0."""
        encoded, scores_MK = self.scores(batch)
        tau, offsets = self.config.temperature, encoded.offsets
        if self.config.normalizer == "nsf":
            return log_nsf(scores_MK, offsets, temperature=tau, eps=self.config.nsf_eps)
        if self.config.normalizer == "softmax":
            return log_softmax(scores_MK, offsets, temperature=tau)
        return _finite_log(entmax(scores_MK, offsets, alpha=self.config.alpha, temperature=tau))

    @torch.no_grad()
    def update(self, online: ScorePath) -> None:
        """Move one EMA step towards the online score path."""
        weight = 1 - self.config.ema_factor
        torch._foreach_lerp_(list(self.path.parameters()), list(online.parameters()), weight)
        for mine, other in zip(self.path.buffers(), online.buffers(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(other, weight)
            else:
                mine.copy_(other)


class TemporalAnchor(nn.Module):
    """Per bag, an EMA of its past attention, `target <- gamma target + (1 - gamma) attention` (App. H.1).

    Takes K floats of CPU memory per instance of the training set. The first time a bag is seen its target is its own
    attention, so it adds nothing to the loss.
    """

    def __init__(self, config: AnchorConfig) -> None:
        super().__init__()
        self.config = config
        self.memory: dict[str, Tensor] = {}

    @torch.no_grad()
    def log_weights(self, batch: BagBatch, online_log_weights_MK: Tensor) -> Tensor:
        """Logarithm of the target attention [M, K]; remembers the online attention for the next epoch."""
        current_MK = online_log_weights_MK.detach().exp()
        offsets = batch.offsets
        if len(current_MK) != batch.num_instances:
            offsets = offsets + torch.arange(len(offsets)) * ((len(current_MK) - batch.num_instances) // batch.num_bags)
        targets = []
        for bag_id, now_NK in zip(batch.bag_ids, split_bags(current_MK, offsets), strict=True):
            target_NK = self.memory[bag_id].to(now_NK.device) if bag_id in self.memory else now_NK
            self.memory[bag_id] = target_NK.lerp(now_NK, 1 - self.config.gamma).cpu()
            targets.append(target_NK)
        return _finite_log(torch.cat(targets))

    def update(self, online: ScorePath) -> None:
        """Nothing to move: the targets follow the attention itself."""

    def get_extra_state(self) -> dict[str, Tensor]:
        """The remembered attention, part of every checkpoint."""
        return dict(self.memory)

    def set_extra_state(self, state: Any) -> None:
        """Restore what `get_extra_state` returned."""
        self.memory = dict(state)


def build_anchor(config: AnchorConfig, online: ScorePath, independent: ScorePath) -> EmaAnchor | TemporalAnchor:
    """The anchor a configuration asks for.

    Args:
        config: The `model.anchor` section.
        online: The score path to follow.
        independent: Another freshly initialized one, for `start: independent`.

    Returns:
        The anchor.
    """
    if config.target == "temporal":
        return TemporalAnchor(config)
    return EmaAnchor(config, online, start=independent if config.start == "independent" else None)


def _finite_log(weights_MK: Tensor) -> Tensor:
    return weights_MK.log().clamp_min(torch.finfo(weights_MK.dtype).min)


def divergence_per_column(
    target_log_weights_MK: Tensor, online_log_weights_MK: Tensor, offsets: Tensor, *, reduction: str = "sum"
) -> Tensor:
    """Divergence of the online attention from its target, for every bag and column.

    Args:
        target_log_weights_MK: Logarithm of the target weights p'; finite constants.
        online_log_weights_MK: Logarithm of the online weights p.
        offsets: Int64 [B + 1] row boundaries of the bags.
        reduction: `sum` gives KL(p' || p), whose gradient with respect to softmax scores is p - p' (Eq. 8);
            `instance_mean` gives the mean of -p' log p over the instances, as the authors' script.

    Returns:
        [B, K].
    """
    target_log_weights_MK = target_log_weights_MK.to(online_log_weights_MK.dtype)
    target_MK = target_log_weights_MK.exp()
    if reduction == "instance_mean":
        lengths_B1 = offsets.diff().to(online_log_weights_MK)[:, None]
        return sum_over_instances(-target_MK * online_log_weights_MK, offsets) / lengths_B1
    return sum_over_instances(target_MK * (target_log_weights_MK - online_log_weights_MK), offsets)
