"""From the `search.params` section to what Optuna proposes and what a trial overrides.

Parameters are suggested define-by-run, so a space may be conditional: a searched `kind` is drawn first, and a setting
that the drawn kind does not have is absent from the trial. Nothing here knows Ray.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import optuna

from asmil.errors import ConfigError
from tasks.spec import Choices, Complement, ExperimentSpec, ParamSpec, Range

__all__ = ["SearchSpace", "parameter_name"]

INTERIOR = math.sqrt(0.5)
"""Where between the bounds a range is tried out; irrational, so that a setting that must be whole refuses the value."""
SEARCHABLE_SECTIONS = ("task", "model", "train")
FIXED_PATHS = {
    "task.kind": "the task is what the trials are compared on",
    "task.monitor": "trials are compared by it",
    "task.classes": "it changes what is predicted",
    "task.merge": "it changes what is predicted",
    "task.zero_time": "it changes the outcomes that are predicted",
    "train.epochs": "early stopping compares trials epoch by epoch",
    "train.seed": "a seed is not a hyperparameter; search.refit_seeds repeats over seeds",
    "train.device": "devices belong to the machine, not to the experiment",
    "train.evaluate_every": "the epochs at which trials are compared must be those of all others",
    "train.checkpoint_seconds": "trials save a checkpoint after every epoch",
    "train.stability_bags": "it is a measurement and changes no model",
}


class SearchSpace:
    """The searched settings of one experiment.

    Args:
        spec: The experiment; its own values are the defaults that trial 0 tries.

    Raises:
        ConfigError: Nothing to search, a setting that does not exist or must not be searched, or a bound outside
            what the setting allows; the message starts with `search.params.<path>`.
    """

    def __init__(self, spec: ExperimentSpec) -> None:
        self._spec = spec
        self._kinds = {path: param for path, param in spec.search.params.items() if path.endswith(".kind")}
        self._settings = {path: param for path, param in spec.search.params.items() if path not in self._kinds}
        if not spec.search.params:
            raise ConfigError(
                "search.params: empty, so there is nothing to search; give settings with low and high or with choices, "
                "or train this one configuration with python -m asmil.run"
            )
        self._check()

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Ask the trial for every active parameter.

        Args:
            trial: A running trial.

        Returns:
            Dotted path to value, ready for `ExperimentSpec.override`.
        """
        overrides: dict[str, Any] = {}
        for path, param in self._kinds.items():
            overrides[path] = _suggest(trial, path, param)
        tree = self._spec.override(overrides, "search.params").tree() if overrides else self._spec.tree()
        for path, param in self._settings.items():
            if _holds(tree, path):
                overrides[path] = _suggest(trial, path, param)
        return overrides

    def defaults(self) -> dict[str, Any]:
        """The experiment's own values as Optuna parameters, moved to the nearest bound where they lie outside.

        A default that is not among the choices, or not a number where a range is searched, is left to the sampler.
        """
        tree = self._spec.tree()
        found = {}
        for path, param in self._spec.search.params.items():
            value = _default(_lookup(tree, path), param) if _holds(tree, path) else None
            if value is not None:
                found[parameter_name(path, param)] = value
        return found

    def _check(self) -> None:
        for path in self._spec.search.params:
            for fixed, why in FIXED_PATHS.items():
                if path == fixed or path.startswith(f"{fixed}."):
                    raise ConfigError(f"search.params.{path}: cannot be searched; {why}")
            if path.split(".")[0] not in SEARCHABLE_SECTIONS:
                raise ConfigError(
                    f"search.params.{path}: cannot be searched; settings of {', '.join(SEARCHABLE_SECTIONS)} can"
                )
        inactive = set(self._settings)
        for overrides in self._kind_combinations():
            variant = self._spec.override(overrides, "search.params")
            tree = variant.tree()
            active = [path for path in self._settings if _holds(tree, path)]
            inactive.difference_update(active)
            for path in active:
                for value in _representatives(self._settings[path]):
                    variant.override({path: value}, f"search.params.{path}")
        for path in sorted(inactive):
            raise ConfigError(f"search.params.{path}: no such setting in this experiment{_nearest(self._spec, path)}")

    def _kind_combinations(self) -> Iterator[dict[str, Any]]:
        for path, param in self._kinds.items():
            if not isinstance(param, Choices):
                raise ConfigError(f"search.params.{path}: a kind is searched by choices, got a range")
        values = [_representatives(param) for param in self._kinds.values()]
        for combination in itertools.product(*values):
            yield dict(zip(self._kinds, combination, strict=True))


def parameter_name(path: str, param: ParamSpec) -> str:
    """The parameter's name in the study; a complement is stored as the small number that is drawn."""
    return f"1 - {path}" if isinstance(param, Complement) else path


def _suggest(trial: optuna.trial.BaseTrial, path: str, param: ParamSpec) -> Any:
    name = parameter_name(path, param)
    if isinstance(param, Choices):
        return trial.suggest_categorical(name, param.choices)
    if isinstance(param, Complement):
        return 1 - _draw(trial, name, param.complement)
    return _draw(trial, name, param)


def _draw(trial: optuna.trial.BaseTrial, name: str, span: Range) -> float:
    if span.integer:
        return trial.suggest_int(name, int(span.low), int(span.high), log=span.log)
    return trial.suggest_float(name, span.low, span.high, log=span.log)


def _representatives(param: ParamSpec) -> tuple[Any, ...]:
    """The values whose validity stands for that of all others: both bounds and a fraction between, or every choice."""
    if isinstance(param, Choices):
        return param.choices
    if isinstance(param, Complement):
        return tuple(1 - value for value in _representatives(param.complement))
    if param.integer:
        return int(param.low), int(param.high)
    return param.low, param.high, param.low + (param.high - param.low) * INTERIOR


def _default(value: Any, param: ParamSpec) -> Any:
    if isinstance(param, Choices):
        return value if value in param.choices else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(param, Complement):
        return _default(1 - value, param.complement)
    clipped = min(max(value, param.low), param.high)
    return round(clipped) if param.integer else float(clipped)


def _holds(tree: Mapping[str, Any], path: str) -> bool:
    *sections, last = path.split(".")
    node: Any = tree
    for section in sections:
        node = node.get(section) if isinstance(node, Mapping) else None
    return isinstance(node, Mapping) and last in node


def _lookup(tree: Mapping[str, Any], path: str) -> Any:
    node: Any = tree
    for part in path.split("."):
        node = node[part]
    return node


def _nearest(spec: ExperimentSpec, path: str) -> str:
    leaves = [leaf for section in SEARCHABLE_SECTIONS for leaf in _leaves(spec.tree()[section], section)]
    near = difflib.get_close_matches(path, leaves, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(leaves)}"


def _leaves(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}")
    else:
        yield path
