"""The `train` section of an experiment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asmil.config import StrictModel

__all__ = ["TrainConfig"]


class TrainConfig(StrictModel):
    """How a model is trained.

    Attributes:
        epochs: Passes over the training bags.
        optimizer: `adam` (L2 added to the gradient), `adamw` (decoupled decay) or `sgd` (Nesterov momentum 0.9).
        lr: Peak learning rate.
        weight_decay: Strength of the decay.
        decay_vectors: Decay one-dimensional parameters (biases, norms) too.
        schedule: `cosine` to zero over all steps, or `constant`.
        bags_per_step: Bags of one optimizer step; micro-batches are bounded by `data.batch_instances` instead.
        clip_norm: Global gradient-norm bound; None for no clipping.
        precision: `auto` is bfloat16 autocast on devices that have it and float32 elsewhere.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        seed: Seed of initial weights, order, drops and dropout.
        evaluate_every: Epochs between validations; the last epoch is always validated.
        checkpoint_seconds: Least time between checkpoints; 0 saves one after every epoch.
        stability_bags: Training bags whose attention is compared from epoch to epoch; 0 turns it off.
    """

    epochs: int = Field(default=50, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=1e-5, ge=0)
    decay_vectors: bool = True
    schedule: Literal["cosine", "constant"] = "cosine"
    bags_per_step: int = Field(default=1, ge=1)
    clip_norm: float | None = Field(default=5.0, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    seed: int = Field(default=0, ge=0, lt=2**63)
    evaluate_every: int = Field(default=1, ge=1)
    checkpoint_seconds: float = Field(default=20.0, ge=0)
    stability_bags: int = Field(default=8, ge=0)
