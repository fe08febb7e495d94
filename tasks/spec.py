"""One YAML file is one experiment: the root of the configuration and how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from asmil.config import StrictModel, apply_overrides, content_hash, load_yaml, merge, parse_config
from asmil.data.config import DataConfig, ProtocolConfig
from asmil.engine.config import TrainConfig
from asmil.errors import ConfigError
from asmil.nn.config import ModelConfig
from tasks.base import TaskConfig

__all__ = ["AshaConfig", "ExperimentSpec", "ParamSpec", "SearchConfig", "load_experiment"]


class Range(StrictModel):
    """A number between two bounds; integers when both bounds are and `integer` is set.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Draw on a logarithmic scale.
        integer: Draw whole numbers.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range needs low > 0, got {self.low}")
        return self


class Complement(StrictModel):
    """One minus a number from a range: how an EMA factor near 1 is searched on a log scale."""

    complement: Range


class Choices(StrictModel):
    """One of several values."""

    choices: tuple[bool | int | float | str, ...] = Field(min_length=1)


ParamSpec = Annotated[Range | Complement | Choices, Field(union_mode="left_to_right")]


class AshaConfig(StrictModel):
    """Early stopping of trials (asynchronous successive halving).

    Attributes:
        grace_epochs: Epochs every trial gets.
        reduction: One in `reduction` trials survives a rung.
    """

    grace_epochs: int = Field(default=2, ge=1)
    reduction: int = Field(default=3, ge=2)


class SearchConfig(StrictModel):
    """The hyperparameter search.

    Attributes:
        trials: Finished trials (complete or stopped early) per outer fold.
        params: Dotted path of a setting to what may be tried for it.
        sampler: `tpe` or `random`.
        asha: Early stopping; None runs every trial to its end.
        refit_seeds: Training seeds of the best configuration's refit.
        max_concurrent: Trials at once; `auto` fills the cluster.
        cpus_per_trial: CPUs one trial holds.
        gpus_per_trial: GPUs one trial holds; a fraction shares one. `auto`: 1 where the cluster has GPUs, else 0.
        max_failures: Times a trial whose worker died is resumed from its checkpoint.
        seed: Seed of the sampler.
    """

    trials: int = Field(default=64, ge=1)
    params: dict[str, ParamSpec] = Field(default_factory=dict)
    sampler: Literal["tpe", "random"] = "tpe"
    asha: AshaConfig | None = AshaConfig()
    refit_seeds: int = Field(default=5, ge=1)
    max_concurrent: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    cpus_per_trial: float = Field(default=1, gt=0)
    gpus_per_trial: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    max_failures: int = Field(default=2, ge=0)
    seed: int = Field(default=0, ge=0)


class ExperimentSpec(StrictModel):
    """A whole experiment, resolved: variant, demo and overrides are already applied."""

    task: TaskConfig
    protocol: ProtocolConfig = ProtocolConfig()
    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()

    def tree(self) -> dict[str, Any]:
        """The experiment as plain data; `ExperimentSpec.model_validate` of it gives the same experiment."""
        return self.model_dump(mode="json")

    def hash(self) -> str:
        """Identity of the experiment: every setting that can change a number (not paths, budgets or devices)."""
        tree = self.tree()
        for path in ("data.store", "data.prefetch_threads", "train.device", "search.trials", "search.max_concurrent",
                     "search.cpus_per_trial", "search.gpus_per_trial", "search.max_failures"):
            section, _, key = path.partition(".")
            tree[section].pop(key, None)
        return content_hash(tree)

    def override(self, values: dict[str, Any], source: str) -> ExperimentSpec:
        """The experiment with dotted settings replaced, validated again.

        Args:
            values: Dotted path to value, as a trial's suggestion is.
            source: What to name in errors.

        Returns:
            The new experiment.
        """
        return parse_config(ExperimentSpec, merge(self.tree(), values), source)


def load_experiment(
    path: str | Path, *, assignments: Sequence[str] = (), variant: str | None = None, demo: bool = False
) -> ExperimentSpec:
    """Read an experiment file and apply variant, demo and `--set`, in this order.

    Args:
        path: The YAML file.
        assignments: `path=value` texts.
        variant: Name of an entry of the file's `variants:` section.
        demo: Apply the file's `demo:` section.

    Returns:
        The checked experiment.

    Raises:
        ConfigError: Anything wrong with the file or an override; the message names file and dotted path.
    """
    tree = load_yaml(path)
    variants = tree.pop("variants", {}) or {}
    demo_overrides = tree.pop("demo", None)
    for name, section in (("variants", variants), ("demo", demo_overrides or {})):
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: {name}: expected a mapping of overrides, got {section!r}")
    if variant is not None:
        if not isinstance(variants.get(variant), dict):
            raise ConfigError(f"{path}: no variant {variant!r}; this file has: {', '.join(variants) or 'none'}")
        tree = merge(tree, variants[variant])
    if demo:
        if demo_overrides is None:
            raise ConfigError(f"{path}: has no demo: section, so --demo does not apply; run it on a store of your own")
        tree = merge(tree, demo_overrides)
    return parse_config(ExperimentSpec, apply_overrides(tree, assignments), str(path))
