"""The `model` section of an experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from asmil.config import StrictModel

__all__ = ["AbmilConfig", "AggregatorConfig", "AnchorConfig", "AsmilConfig", "ModelConfig"]


class AsmilConfig(StrictModel):
    """ASMIL's aggregator.

    Attributes:
        tokens: Trainable FEAT tokens T.
        heads: Attention heads Hh; they must divide the inner width.
        drop_rate: Share of tokens dropped in training.
        drop_mode: `bernoulli` keeps each token by itself and at least one; `exact` drops round(rate * T) of them.
        dropout: Dropout after each attention block's output projection.
        normalizer: Online attention: `softmax`, `nsf`, or `mixture` of the two with a trained weight.
        tokens_as_keys: FEAT tokens attend to each other as well as to the instances.
    """

    kind: Literal["asmil"] = "asmil"
    tokens: int = Field(default=8, ge=1, le=256)
    heads: int = Field(default=8, ge=1)
    drop_rate: float = Field(default=0.5, ge=0, le=1)
    drop_mode: Literal["bernoulli", "exact"] = "bernoulli"
    dropout: float = Field(default=0.1, ge=0, lt=1)
    normalizer: Literal["softmax", "nsf", "mixture"] = "softmax"
    tokens_as_keys: bool = False


class AbmilConfig(StrictModel):
    """Attention-based MIL (Ilse et al., ICML 2018).

    Attributes:
        hidden: Width of the attention network.
        gated: Multiply by a sigmoid gate.
    """

    kind: Literal["abmil"] = "abmil"
    hidden: int = Field(default=128, ge=1)
    gated: bool = True


AggregatorConfig = Annotated[AsmilConfig | AbmilConfig, Field(discriminator="kind")]


class AnchorConfig(StrictModel):
    """The attention anchor: what the online attention is pulled towards.

    Attributes:
        target: `ema`, a slowly moving copy of what makes the scores; `temporal`, each bag's own past attention.
        ema_factor: m of `anchor <- m anchor + (1 - m) online`.
        kl_weight: Weight of the divergence in the loss (beta).
        normalizer: Anchor attention: normalized sigmoid (`nsf`, Eq. 5), `softmax` or `entmax`.
        temperature: tau, divides the anchor's scores.
        alpha: alpha of `entmax`, 1 < alpha <= 2; 2 is sparsemax.
        nsf_eps: Added to the sum of sigmoids; the authors' script uses 1e-8.
        update: Move the anchor after every optimizer `step` or `epoch`.
        start: Begin as a `copy` of the online model, or `independent` (random, as the authors' script).
        kl_reduction: `sum` over the instances of a bag, or `instance_mean` (cross-entropy as the authors' script).
        kl_tokens: `all` FEAT tokens enter the divergence, or only those `kept` by the random drop.
        gamma: Memory of the `temporal` target.
    """

    target: Literal["ema", "temporal"] = "ema"
    ema_factor: float = Field(default=0.999, ge=0, le=1)
    kl_weight: float = Field(default=1.0, ge=0)
    normalizer: Literal["nsf", "softmax", "entmax"] = "nsf"
    temperature: float = Field(default=1.0, gt=0)
    alpha: float = Field(default=1.5, gt=1, le=2)
    nsf_eps: float = Field(default=0.0, ge=0)
    update: Literal["step", "epoch"] = "step"
    start: Literal["copy", "independent"] = "copy"
    kl_reduction: Literal["sum", "instance_mean"] = "sum"
    kl_tokens: Literal["all", "kept"] = "all"
    gamma: float = Field(default=0.9, ge=0, lt=1)


class ModelConfig(StrictModel):
    """Aggregator, anchor and inner width.

    Attributes:
        inner_dim: d, or `auto` by the feature width of the store.
        aggregator: Which aggregator, with its own settings.
        anchor: The anchor; None trains without one.
    """

    inner_dim: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    aggregator: AggregatorConfig = AsmilConfig()
    anchor: AnchorConfig | None = AnchorConfig()

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        heads = getattr(self.aggregator, "heads", 1)
        if isinstance(self.inner_dim, int) and self.inner_dim % heads:
            raise ValueError(f"inner_dim {self.inner_dim} is not a multiple of aggregator.heads {heads}")
        return self
