"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from asmil.engine.config import TrainConfig

__all__ = ["build_optimizer", "learning_rate"]


def build_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimizer over the given parameters; those that take no gradient are left out.

    Args:
        parameters: The online model's parameters. An anchor never belongs here.
        config: The `train` section.

    Returns:
        The optimizer. Its learning rate is set anew before every step.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    vectors = [parameter for parameter in trained if parameter.dim() < 2]
    matrices = [parameter for parameter in trained if parameter.dim() >= 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": config.weight_decay if config.decay_vectors else 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, fused=True)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, fused=True)


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The learning rate of a step, counted from 0.

    Example:
        >>> config = TrainConfig(lr=0.1, schedule="cosine")
        >>> [round(learning_rate(config, step, 4), 3) for step in range(4)]
        [0.1, 0.085, 0.05, 0.015]
    """
    if config.schedule == "constant":
        return config.lr
    return 0.5 * config.lr * (1 + math.cos(math.pi * step / total_steps))
