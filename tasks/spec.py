"""One YAML file is one experiment: the root of the configuration and how it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from asmil.config import (
    StrictModel,
    apply_overrides,
    content_hash,
    load_yaml,
    merge,
    parse_config,
    set_path,
    tagged_sections,
)
from asmil.data.config import DataConfig, ProtocolConfig
from asmil.engine.config import TrainConfig
from asmil.errors import ConfigError
from asmil.nn.config import ModelConfig
from tasks.base import TaskConfig

__all__ = ["AshaConfig", "ExperimentSpec", "ParamSpec", "ReferenceFigure", "SearchConfig", "load_experiment"]


class Range(StrictModel):
    """A number between two bounds.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Draw on a logarithmic scale.
        integer: Draw whole numbers; both bounds must be.
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
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"an integer range needs whole bounds, got {self.low} and {self.high}")
        return self


class Complement(StrictModel):
    """One minus a number from a range: how an EMA factor near 1 is searched on a log scale."""

    complement: Range


class Choices(StrictModel):
    """One of several values."""

    choices: tuple[bool | int | float | str, ...] = Field(min_length=1)


def _param_type(value: Any) -> str:
    if not isinstance(value, Mapping):
        return type(value).__name__ if isinstance(value, Complement | Choices) else "Range"
    return "Complement" if "complement" in value else "Choices" if "choices" in value else "Range"


ParamSpec = Annotated[
    Annotated[Range, Tag("Range")] | Annotated[Complement, Tag("Complement")] | Annotated[Choices, Tag("Choices")],
    Discriminator(_param_type),
]


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

    @field_validator("params", mode="before")
    @classmethod
    def _dotted(cls, params: Any) -> Any:
        return dict(_dotted_leaves(params, "")) if isinstance(params, Mapping) else params


def _dotted_leaves(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """What may be tried, by dotted path; sections may be nested, as they are after `--set search.params.x.y=...`."""
    for key, value in node.items():
        is_section = isinstance(value, Mapping) and value and all(isinstance(item, Mapping) for item in value.values())
        if is_section and "complement" not in value:
            yield from _dotted_leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


class ReferenceFigure(StrictModel):
    """A known figure that reports print beside ours; it changes nothing.

    Attributes:
        metric: The metric it is a value of.
        name: Where it comes from, and anything its comparison depends on.
        value: The figure.
    """

    metric: str
    name: str
    value: float


NOT_HASHED = (
    "references",
    "protocol.seeds",
    "data.store",
    "data.cache",
    "data.read",
    "data.labels.table",
    "data.batch_instances",
    "data.prefetch_threads",
    "data.prefetch_mib",
    "train.device",
    "search.trials",
    "search.max_concurrent",
    "search.cpus_per_trial",
    "search.gpus_per_trial",
    "search.max_failures",
)
"""Paths, budgets, devices and known figures: what an experiment is does not depend on them."""


class ExperimentSpec(StrictModel):
    """A whole experiment, resolved: variant, demo and overrides are already applied."""

    task: TaskConfig
    protocol: ProtocolConfig = ProtocolConfig()
    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    references: tuple[ReferenceFigure, ...] = ()

    @model_validator(mode="after")
    def _memory_needs_all_instances(self) -> ExperimentSpec:
        anchor = self.model.anchor
        if self.data.sample_instances is not None and anchor is not None and anchor.target == "temporal":
            raise ValueError(
                "data.sample_instances trains on other instances in every epoch, but model.anchor.target: temporal "
                "remembers the attention of each; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _steps_are_large_enough(self) -> ExperimentSpec:
        least = self.task.min_bags_per_step
        if self.train.bags_per_step < least:
            raise ValueError(
                f"train.bags_per_step is {self.train.bags_per_step}, but this task compares the bags of a step with "
                f"each other and needs {least} or more (32 is usual)"
            )
        if least > 1 and self.data.group_lengths:
            raise ValueError("data.group_lengths makes steps of similar bags; a task that compares them needs a sample")
        return self

    def tree(self) -> dict[str, Any]:
        """The experiment as plain data; `ExperimentSpec.model_validate` of it gives the same experiment."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """Every setting that can change a number, as plain data: not paths, budgets or devices.

        What the store and the label table contain is not in it; `Cohort.dataset_id` and the split's hash are.
        """
        tree = self.tree()
        for path in NOT_HASHED:
            tree = set_path(tree, path, None)
        return tree

    def hash(self) -> str:
        """Short hash of `identity`."""
        return content_hash(self.identity())

    def override(self, values: dict[str, Any], source: str) -> ExperimentSpec:
        """The experiment with dotted settings replaced, validated again.

        Args:
            values: Dotted path to value, as a trial's suggestion is.
            source: What to name in errors.

        Returns:
            The new experiment.
        """
        return parse_config(ExperimentSpec, merge(self.tree(), values, tagged=TAGGED), source)


TAGGED = tagged_sections(ExperimentSpec)


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
    variants, demo_overrides = (_overrides(tree, name, path) for name in ("variants", "demo"))
    if variant is not None:
        if not isinstance(variants.get(variant), dict):
            raise ConfigError(f"{path}: no variant {variant!r}; this file has: {', '.join(variants) or 'none'}")
        tree = merge(tree, variants[variant], tagged=TAGGED)
    if demo:
        if not demo_overrides:
            raise ConfigError(f"{path}: has no demo: section, so --demo does not apply; run it on a store of your own")
        tree = merge(tree, demo_overrides, tagged=TAGGED)
    return parse_config(ExperimentSpec, apply_overrides(tree, assignments, tagged=TAGGED), str(path))


def _overrides(tree: dict[str, Any], name: str, source: str | Path) -> dict[str, Any]:
    """Take a section of overrides out of an experiment's tree."""
    section = tree.pop(name, None) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{source}: {name}: expected a mapping of overrides, got {section!r}")
    return section
