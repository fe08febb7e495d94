"""The search space: what is proposed, what it stands for, and what is refused."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asmil.config import merge, parse_config
from asmil.errors import ConfigError
from tasks.spec import ExperimentSpec
from tune.space import SearchSpace

PARAMS: dict[str, Any] = {
    "model.anchor.ema_factor": {"complement": {"low": 1e-4, "high": 1e-1, "log": True}},
    "model.anchor.kl_weight": {"low": 1e-2, "high": 10.0, "log": True},
    "model.aggregator.drop_rate": {"low": 0.0, "high": 0.8},
    "model.aggregator.tokens": {"choices": [2, 4, 8, 16]},
    "train.bags_per_step": {"low": 1, "high": 32, "integer": True, "log": True},
}


def experiment(params: dict[str, Any], **overrides: Any) -> ExperimentSpec:
    model = {"aggregator": {"kind": "asmil"}}
    tree = {"task": {"kind": "survival"}, "data": {"store": "x"}, "model": model, "search": {"params": params}}
    return parse_config(ExperimentSpec, merge(tree, overrides), "test.yaml")


def ask(space: SearchSpace, seed: int = 0) -> tuple[dict[str, Any], optuna.Trial]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    return space.suggest(trial), trial


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_every_suggestion_lies_in_its_bounds_and_is_a_valid_experiment(seed: int) -> None:
    spec = experiment(PARAMS)
    overrides, _ = ask(SearchSpace(spec), seed)
    assert set(overrides) == set(PARAMS)
    changed = spec.override(overrides, "trial")
    assert changed.model.anchor is not None
    assert 0.9 <= changed.model.anchor.ema_factor <= 1 - 1e-4
    assert 1e-2 <= changed.model.anchor.kl_weight <= 10
    assert 0 <= overrides["model.aggregator.drop_rate"] <= 0.8
    assert overrides["model.aggregator.tokens"] in (2, 4, 8, 16)
    assert isinstance(changed.train.bags_per_step, int)
    assert 1 <= changed.train.bags_per_step <= 32


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_stored_parameters_stand_for_the_same_overrides(seed: int) -> None:
    space = SearchSpace(experiment(PARAMS))
    overrides, trial = ask(space, seed)
    assert space.suggest(optuna.trial.FixedTrial(trial.params)) == overrides


def test_a_complement_is_drawn_on_the_log_scale_of_the_small_number() -> None:
    space = SearchSpace(experiment({"model.anchor.ema_factor": PARAMS["model.anchor.ema_factor"]}))
    drawn = [1 - ask(space, seed)[0]["model.anchor.ema_factor"] for seed in range(300)]
    assert 60 < sum(x < 1e-3 for x in drawn) < 140  # one of three decades; 3 of 300 on a linear scale


def test_the_defaults_are_the_experiment_itself() -> None:
    spec = experiment(PARAMS, **{"model.anchor.ema_factor": 0.99, "train.bags_per_step": 5})
    space = SearchSpace(spec)
    assert spec.override(space.suggest(optuna.trial.FixedTrial(space.defaults())), "defaults") == spec


def test_defaults_outside_the_bounds_move_to_the_nearest_and_unknown_choices_are_left_open() -> None:
    changes = {"model.anchor.ema_factor": 0.5, "model.anchor.kl_weight": 50.0, "model.aggregator.tokens": 3}
    defaults = SearchSpace(experiment(PARAMS, **changes)).defaults()
    assert defaults["1 - model.anchor.ema_factor"] == 0.1
    assert defaults["model.anchor.kl_weight"] == 10.0
    assert "model.aggregator.tokens" not in defaults


def test_a_default_that_is_no_number_is_left_open() -> None:
    params = {"model.inner_dim": {"low": 8, "high": 64, "integer": True}, "train.lr": {"low": 1e-5, "high": 1e-3}}
    assert SearchSpace(experiment(params, **{"model.aggregator.heads": 1})).defaults() == {"train.lr": 1e-4}


CONDITIONAL: dict[str, Any] = {
    "model.aggregator.tokens": {"choices": [2, 4]},
    "model.aggregator.hidden": {"choices": [32, 64]},
    "model.aggregator.kind": {"choices": ["asmil", "abmil"]},
}


def test_settings_of_a_kind_that_was_not_drawn_are_absent() -> None:
    spec = experiment(CONDITIONAL)
    space = SearchSpace(spec)
    kinds = set()
    for seed in range(12):
        overrides, _ = ask(space, seed)
        aggregator = spec.override(overrides, "trial").model.aggregator
        kinds.add(aggregator.kind)
        own = "tokens" if aggregator.kind == "asmil" else "hidden"
        assert set(overrides) == {"model.aggregator.kind", f"model.aggregator.{own}"}
    assert kinds == {"asmil", "abmil"}


def test_other_settings_of_the_chosen_kind_are_kept() -> None:
    spec = experiment(CONDITIONAL, **{"model.aggregator.dropout": 0.35})
    for seed in range(12):
        overrides, _ = ask(SearchSpace(spec), seed)
        aggregator = spec.override(overrides, "trial").model.aggregator
        assert getattr(aggregator, "dropout", 0.35) == 0.35


@pytest.mark.parametrize(
    ("params", "overrides", "message"),
    [
        ({}, {}, "search.params: empty"),
        ({"model.anchor.kl_wieght": {"low": 0, "high": 1}}, {}, "did you mean 'model.anchor.kl_weight'"),
        ({"model.anchor.kl_weight": {"low": 0, "high": 1}}, {"model.anchor": None}, "no such setting"),
        ({"model.aggregator.drop_rate": {"low": 0, "high": 1.5}}, {}, r"search.params.model.aggregator.drop_rate.*1.5"),
        ({"model.aggregator.normalizer": {"choices": ["softmax", "sotfmax"]}}, {}, "sotfmax"),
        ({"protocol.folds": {"low": 2, "high": 5, "integer": True}}, {}, "cannot be searched"),
        ({"task.zero_time": {"choices": ["reject", "shift"]}}, {}, "cannot be searched"),
        ({"task.merge.itc": {"choices": ["negative", "micro"]}}, {}, "it changes what is predicted"),
        ({"train.evaluate_every": {"low": 1, "high": 5, "integer": True}}, {}, "the epochs at which trials"),
        ({"train.bags_per_step": {"low": 1, "high": 8}}, {}, "search.params.train.bags_per_step.*got 5.9"),
        ({"train.epochs": {"low": 2, "high": 5, "integer": True}}, {}, "early stopping"),
        ({"model.aggregator.kind": {"low": 2, "high": 5}}, {}, "searched by choices"),
    ],
)
def test_what_cannot_be_searched_is_refused(params: dict[str, Any], overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchSpace(experiment(params, **overrides))


@pytest.mark.parametrize("path", ["task.monitor", "task.classes", "train.checkpoint_seconds", "train.stability_bags"])
def test_the_objective_and_what_only_measures_are_no_hyperparameters(path: str) -> None:
    with pytest.raises(ConfigError, match=f"search.params.{path}: cannot be searched"):
        SearchSpace(experiment({path: {"choices": [1, 2]}}))
