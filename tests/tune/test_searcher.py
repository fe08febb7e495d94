"""The searcher under Ray Tune: how trials end up in the study, which processes run them, and what a kill costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray import tune as ray_tune
from ray.tune.schedulers import AsyncHyperBandScheduler

from tests.tune.trainables import EPOCHS, broken, killed_once, troubled, well_behaved
from tune.searcher import EPOCH, FINISHED, OBJECTIVE, KeyedSampler, StudySearch
from tune.study import REASON, Counts, Identity, SearchStudy, open_storage

SPACE = {"x": optuna.distributions.FloatDistribution(0, 1)}


class OneParameter:
    """Stands in for `SearchSpace`: the trials below need no experiment."""

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        return {"x": trial.suggest_float("x", 0, 1)}


def open_study(directory: Path) -> SearchStudy:
    directory.mkdir(exist_ok=True)
    storage = open_storage(directory / "study.journal")
    return SearchStudy(storage, "repeat0-fold0", "max", Identity({}, "d", "s", "l"))


def search(
    directory: Path,
    trainable: Callable[[dict[str, Any]], None],
    *,
    budget: int,
    max_failures: int = 0,
    asha: bool = True,
) -> SearchStudy:
    study = open_study(directory)
    searcher = StudySearch(study, OneParameter(), sampler="random", seed=0, budget=budget)  # type: ignore[arg-type]
    scheduler = AsyncHyperBandScheduler(
        time_attr=EPOCH, metric=OBJECTIVE, mode="max", max_t=EPOCHS + 1, grace_period=1, reduction_factor=2
    )
    ray_tune.Tuner(
        ray_tune.with_resources(trainable, {"cpu": 1}),
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler if asha else None,
            num_samples=-1,
            max_concurrent_trials=2,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['number']:05d}",
        ),
        run_config=ray_tune.RunConfig(
            name="trials",
            storage_path=str(directory.absolute()),
            failure_config=ray_tune.FailureConfig(max_failures=max_failures),
            verbose=0,
        ),
    ).fit()
    return open_study(directory)


@pytest.mark.ray
def test_finished_trials_are_complete_and_stopped_ones_pruned(ray_cluster: None, tmp_path: Path) -> None:
    study = search(tmp_path, well_behaved, budget=10)
    counts = study.counts()
    assert counts.finished == 10
    assert counts.fail == counts.running == 0
    assert counts.complete >= 1
    assert counts.pruned >= 3
    for trial in study.study.trials:
        epochs = sorted(trial.intermediate_values)
        assert trial.value == pytest.approx(trial.params["x"] * epochs[-1])
        assert (epochs[-1] == EPOCHS) == (trial.state == TrialState.COMPLETE)
        assert epochs == list(range(1, epochs[-1] + 1))


@pytest.mark.ray
def test_without_a_scheduler_all_trials_are_complete_and_two_processes_served_them(
    ray_cluster: None, tmp_path: Path
) -> None:
    study = search(tmp_path, well_behaved, budget=8, asha=False)
    assert study.counts() == Counts(complete=8)
    logs = [path.read_text().splitlines() for path in (tmp_path / "trials").glob("*/result.json")]
    assert len(logs) == 8
    assert len({json.loads(line)["pid"] for log in logs for line in log}) <= 2


@pytest.mark.ray
def test_errors_and_missing_objectives_fail_with_a_reason_and_are_replaced(ray_cluster: None, tmp_path: Path) -> None:
    study = search(tmp_path, troubled, budget=3, asha=False)
    assert study.counts() == Counts(complete=3, fail=2)
    assert {trial.number: trial.user_attrs[REASON] for trial in study.study.trials if REASON in trial.user_attrs} == {
        1: "worker_lost_or_raised",
        2: "diverged",
    }


@pytest.mark.ray
def test_a_search_in_which_everything_fails_ends(ray_cluster: None, tmp_path: Path) -> None:
    counts = search(tmp_path, broken, budget=1).counts()
    assert counts.finished == counts.running == 0
    assert 5 <= counts.fail <= 7


@pytest.mark.ray
def test_a_killed_worker_loses_no_trial_and_goes_on_from_its_checkpoint(ray_cluster: None, tmp_path: Path) -> None:
    study = search(tmp_path, killed_once, budget=3, max_failures=2, asha=False)
    assert study.counts() == Counts(complete=3)
    lines = (tmp_path / "trials" / "00001" / "result.json").read_text().splitlines()
    reports = [json.loads(line) for line in lines]
    assert [(entry[EPOCH], entry["started"]) for entry in reports] == [(1, 0), (2, 0), (3, 2), (4, 2)]
    assert study.study.trials[1].value == pytest.approx(0.4)
    assert sorted(study.study.trials[1].intermediate_values) == [1, 2, 3, 4]


@pytest.mark.ray
def test_trials_of_a_dead_driver_are_finished_under_new_numbers(ray_cluster: None, tmp_path: Path) -> None:
    study = open_study(tmp_path)
    lost = study.study.ask(SPACE)
    study.recover()
    finished = search(tmp_path, well_behaved, budget=3, asha=False)
    assert finished.counts() == Counts(complete=3, continued=1)
    assert finished.study.trials[1].params == lost.params


def test_proposals_depend_on_the_study_and_not_on_the_driver() -> None:
    def run(restart: int) -> list[float]:
        storage = optuna.storages.InMemoryStorage()
        drawn = []
        for number in range(14):
            if number in (0, restart):
                sampler = KeyedSampler("tpe", key="k")
                study = optuna.create_study(
                    storage=storage, study_name="s", sampler=sampler, load_if_exists=True, direction="maximize"
                )
            trial = study.ask()
            drawn.append(trial.suggest_float("x", 0, 1))
            study.tell(trial, -((drawn[-1] - 0.3) ** 2))
        return drawn

    uninterrupted = run(restart=0)
    assert run(restart=12) == uninterrupted
    assert len(set(uninterrupted)) == 14


def test_the_streams_of_two_keys_and_of_two_parameters_differ() -> None:
    def first(key: str) -> tuple[float, float]:
        trial = optuna.create_study(sampler=KeyedSampler("random", key=key)).ask()
        return trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)

    assert len({*first("a"), *first("b")}) == 4
    assert first("a") == first("a")


def test_tpe_moves_towards_what_was_good() -> None:
    study = optuna.create_study(sampler=KeyedSampler("tpe", key="k"), direction="maximize")
    study.optimize(lambda trial: -((trial.suggest_float("x", 0, 1) - 0.8) ** 2), n_trials=40)
    late = [trial.params["x"] for trial in study.trials[20:]]
    assert sum(abs(x - 0.8) for x in late) / len(late) < 0.15


def test_nothing_more_is_proposed_once_the_budget_is_spent_or_under_way(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    searcher = StudySearch(study, OneParameter(), sampler="random", seed=0, budget=2)  # type: ignore[arg-type]
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert (first["number"], second["number"]) == (0, 1)
    assert searcher.suggest("c") is None
    started = time.monotonic()
    for trial_id in ("a", "b"):
        searcher.on_trial_complete(trial_id, {OBJECTIVE: 0.5, EPOCH: EPOCHS, FINISHED: True})
    assert searcher.suggest("c") == searcher.FINISHED
    assert time.monotonic() - started < 5
