"""The study: identity, recovery after a dead driver, budget, closing, best and importance."""

from __future__ import annotations

from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from asmil.errors import ConfigError
from tune.study import CONTINUES, Counts, Identity, SearchStudy, any_closed, open_storage

IDENTITY = Identity(settings={"train": {"lr": 1e-4, "epochs": 5}}, dataset_id="d1", splits="s1", labels="l1")


def open_study(directory: Path, *, direction: str = "max", identity: Identity = IDENTITY) -> SearchStudy:
    return SearchStudy(open_storage(directory / "study.journal"), "repeat0-fold0", direction, identity)  # type: ignore[arg-type]


def add(study: SearchStudy, state: TrialState, value: float | None, x: float = 0.5) -> None:
    intermediate = {1: value} if value is not None else {}
    study.study.add_trial(
        create_trial(
            state=state,
            value=value if state == TrialState.COMPLETE else None,
            params={"x": x},
            distributions={"x": FloatDistribution(0, 1)},
            intermediate_values=intermediate,
        )
    )


def test_an_opened_study_goes_on_where_it_was(tmp_path: Path) -> None:
    add(open_study(tmp_path), TrialState.COMPLETE, 0.7)
    again = open_study(tmp_path)
    assert again.counts() == Counts(complete=1)
    assert [trial.value for trial in again.study.trials] == [0.7]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Identity({"train": {"lr": 1e-3, "epochs": 5}}, "d1", "s1", "l1"), r"train.lr: 0.0001 -> 0.001"),
        (Identity({"train": {"lr": 1e-4}}, "d1", "s1", "l1"), r"train.epochs: 5 -> None"),
        (Identity(IDENTITY.settings, "d2", "s1", "l1"), r"dataset_id: 'd1' -> 'd2'"),
        (Identity(IDENTITY.settings, "d1", "s2", "l1"), r"splits: 's1' -> 's2'"),
        (Identity(IDENTITY.settings, "d1", "s1", "l2"), r"labels: 'l1' -> 'l2'"),
    ],
)
def test_another_experiment_is_refused_with_the_difference(tmp_path: Path, other: Identity, message: str) -> None:
    open_study(tmp_path)
    with pytest.raises(ConfigError, match=message):
        open_study(tmp_path, identity=other)


def test_identities_survive_the_journal_whatever_they_hold(tmp_path: Path) -> None:
    identity = Identity({"a": {"b": (1, 2)}, "c": None, "d": [], "e": {}}, "d", "s", "l1")
    first = open_study(tmp_path, identity=identity)
    assert open_study(tmp_path, identity=identity).name == first.name
    with pytest.raises(ConfigError, match=r"a\.b"):
        open_study(tmp_path, identity=replace(identity, settings={**identity.settings, "a": {"b": (1, 3)}}))


def test_trials_of_a_dead_driver_fail_and_are_proposed_again(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    asked = [study.study.ask(), study.study.ask()]
    drawn = [trial.suggest_float("x", 0, 1) for trial in asked]
    restarted = open_study(tmp_path)
    assert restarted.recover() == [0, 1]
    assert restarted.counts() == Counts(continued=2)
    offered = [restarted.study.ask(), restarted.study.ask()]
    assert [trial.user_attrs[CONTINUES] for trial in offered] == [0, 1]
    assert [trial.suggest_float("x", 0, 1) for trial in offered] == drawn
    assert restarted.failures() == []
    assert restarted.recover() == [2, 3]
    assert restarted.counts() == Counts(continued=4)
    assert restarted.predecessors(restarted.study.ask()) == [2, 0]
    assert restarted.predecessors(restarted.study.ask()) == [3, 1]


def test_the_defaults_are_enqueued_once(tmp_path: Path) -> None:
    for _ in range(2):
        open_study(tmp_path).enqueue_defaults({"x": 0.25})
    study = open_study(tmp_path).study
    assert [study.ask().suggest_float("x", 0, 1) for _ in range(3)].count(0.25) == 1
    assert study.trials[0].params == {"x": 0.25}


def test_the_budget_counts_complete_and_pruned(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    for state, value in [(TrialState.COMPLETE, 0.1), (TrialState.PRUNED, 0.2), (TrialState.FAIL, None)]:
        add(study, state, value)
    study.study.ask()
    assert study.counts() == Counts(complete=1, pruned=1, fail=1, running=1)
    assert study.counts().finished == 2


def test_best_is_chosen_among_complete_trials_only(tmp_path: Path) -> None:
    for direction, best in (("max", 1), ("min", 2)):
        (tmp_path / direction).mkdir()
        study = open_study(tmp_path / direction, direction=direction)
        assert study.best() is None
        add(study, TrialState.PRUNED, 0.99)
        for value in (0.7, 0.3, 0.7):
            add(study, TrialState.COMPLETE, value)
        add(study, TrialState.PRUNED, 0.01)
        chosen = study.best()
        assert chosen is not None
        assert chosen.number == best


def test_a_study_with_negative_values_has_the_right_best(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    for value in (-3.0, -0.0, -2.0):
        add(study, TrialState.COMPLETE, value)
    chosen = study.best()
    assert chosen is not None
    assert chosen.number == 1


def test_closing_needs_a_complete_trial_and_none_running(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    with pytest.raises(ConfigError, match="0 complete"):
        study.close()
    add(study, TrialState.COMPLETE, 0.5)
    study.study.ask()
    with pytest.raises(ConfigError, match="1 trials running"):
        study.close()
    study.recover()
    assert not study.closed
    study.close()
    assert open_study(tmp_path).closed


def test_a_search_gives_up_when_failures_pile_up(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    for _ in range(4):
        add(study, TrialState.FAIL, None)
    assert not study.gave_up(16)
    add(study, TrialState.FAIL, None)
    assert study.gave_up(16)
    assert not study.gave_up(64)
    assert not open_study(tmp_path).gave_up(16)  # whoever starts the search again has seen to the cause


def test_a_storage_knows_whether_one_of_its_studies_is_closed(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    SearchStudy(study.storage, "repeat0-fold1", "max", IDENTITY)
    assert not any_closed(study.storage)
    add(study, TrialState.COMPLETE, 0.5)
    study.close()
    assert any_closed(study.storage)


def test_importance_finds_the_parameter_that_matters(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    distributions = {"matters": FloatDistribution(0, 1), "idle": FloatDistribution(0, 1)}
    for step in range(24):
        matters, idle = step / 24, (step * 7 % 24) / 24
        trial = create_trial(
            value=matters**2, params={"matters": matters, "idle": idle}, distributions=dict(distributions)
        )
        study.study.add_trial(trial)
    values = study.importance().values
    assert values is not None
    assert next(iter(values)) == "matters"
    assert values["matters"] > 3 * values["idle"]
    assert sum(values.values()) == pytest.approx(1)


def test_importance_without_ground_is_null_with_a_reason(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    for step in range(3):
        add(study, TrialState.COMPLETE, 0.5, x=step / 3)
    assert study.importance().reason == "few_trials"
    for step in range(6):
        add(study, TrialState.COMPLETE, 0.5, x=step / 6)
    assert study.importance().values is None
    assert study.importance().reason == "no_spread"


def _ask_many(directory: str, count: int) -> list[int]:
    study = open_study(Path(directory))
    numbers = []
    for _ in range(count):
        trial = study.study.ask()
        study.study.tell(trial, trial.suggest_float("x", 0, 1))
        numbers.append(trial.number)
    return numbers


def test_drivers_on_one_journal_get_distinct_trials(tmp_path: Path) -> None:
    open_study(tmp_path)
    with get_context("spawn").Pool(2) as pool:
        numbers = pool.starmap(_ask_many, [(str(tmp_path), 10)] * 2)
    assert sorted(numbers[0] + numbers[1]) == list(range(20))
    assert open_study(tmp_path).counts() == Counts(complete=20)
