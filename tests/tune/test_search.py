"""The search command as a whole: what it refuses, what its workers see, interruption, continuation, result."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from optuna.trial import TrialState, create_trial

from asmil.data.sealed import open_test
from asmil.errors import ConfigError, EnvironmentProblem, TrainingError
from asmil.experiment import Experiment, open_experiment
from tasks.spec import SearchConfig, load_experiment
from tune import finalize, search
from tune.cluster import Slots, connect, plan_slots
from tune.rundir import OuterFold, RunDirectory, default_directory, open_study, outer_folds
from tune.search import FoldSearch
from tune.space import SearchSpace
from tune.study import SearchStudy

REPOSITORY = Path(__file__).resolve().parents[2]
SMOKE = str(REPOSITORY / "tasks" / "smoke.yaml")
FOLD = OuterFold(0, 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data directory whose built-in store is built once for this file."""
    directory = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASMIL_DATA", str(directory))
        yield directory


@pytest.fixture(scope="module")
def experiment(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return open_experiment(load_experiment(SMOKE), tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "protocol.search=on_test"], "protocol.search: got 'on_test'"),
        (["--set", "search.params.train.epochs={low: 1, high: 3, integer: true}"], "search.params.train.epochs"),
        (["--fold", "3"], "--fold 3: this experiment has folds 0 to 0"),
        (["--demo"], "no demo"),
        (["--trials", "0"], "search.trials"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_ray_starts(
    data: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        search.main([SMOKE, "--out", str(tmp_path / "run"), *arguments])


def test_fresh_never_touches_a_directory_that_holds_something(data: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ConfigError, match="nothing is ever deleted"):
        search.main([SMOKE, "--out", str(tmp_path), "--fresh"])
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_the_same_experiment_finds_its_directory_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = load_experiment(SMOKE)
    first = default_directory("smoke", spec, fresh=False, labels=["demo"])
    assert first.parts[:2] == ("runs", "smoke-demo")
    first.mkdir(parents=True)
    assert default_directory("smoke", spec, fresh=False, labels=["demo"]) == first
    second = default_directory("smoke", spec, fresh=True, labels=["demo"])
    assert second != first
    second.mkdir()
    assert default_directory("smoke", spec, fresh=False, labels=["demo"]) == second
    more_trials, other = spec.override({"search.trials": 9}, "x"), spec.override({"train.lr": 0.5}, "x")
    assert default_directory("smoke", more_trials, fresh=False, labels=["demo"]) == second
    assert not default_directory("smoke", other, fresh=False, labels=["demo"]).exists()


def test_workers_are_sent_no_id_and_no_label_of_the_test_part(experiment: Experiment, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    study = open_study(run, experiment, FOLD)
    sent = fold_search(experiment, run, study).payload()
    blob = pickle.dumps(sent).replace(b"pytest-", b"")  # a part of paths that looks like an id
    test_ids = open_test(experiment.plan, 0, 0, ledger=tmp_path / "ledger", why="a test of the search")
    assert len(test_ids) > 100
    assert all(bag_id.encode() in blob for bag_id in sent.split.bag_ids)
    assert not [bag_id for bag_id in test_ids if bag_id.encode() in blob]
    assert len(sent.cohort.labels) == len(sent.split.bag_ids)
    assert sent.device == "cpu"


def test_nested_search_has_one_study_per_outer_fold(data: Path, tmp_path: Path) -> None:
    spec = load_experiment(SMOKE, assignments=["protocol.scheme=kfold", "protocol.folds=3", "protocol.repeats=2"])
    opened = open_experiment(spec, tmp_path)
    names = ["repeat0-fold0", "repeat0-fold1", "repeat0-fold2", "repeat1-fold0", "repeat1-fold1", "repeat1-fold2"]
    assert [fold.name for fold in outer_folds(opened, None)] == names
    assert [fold.name for fold in outer_folds(opened, 1)] == ["repeat0-fold1", "repeat1-fold1"]


def test_finalize_refuses_an_open_study_and_a_directory_without_one(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no search was started here"):
        finalize.main([str(tmp_path)])
    spec = load_experiment(SMOKE)
    with search.Search(spec, RunDirectory(tmp_path), SMOKE, None).claimed():
        pass
    with pytest.raises(ConfigError, match="still open with 0 of 4 trials"):
        finalize.main([str(tmp_path)])


@pytest.mark.ray
def test_slots_fill_the_cluster_and_one_that_does_not_fit_is_refused(ray_cluster: None) -> None:
    assert plan_slots(SearchConfig()) == Slots(1, 0, 2)
    assert plan_slots(SearchConfig(cpus_per_trial=0.5)) == Slots(0.5, 0, 4)
    assert plan_slots(SearchConfig(max_concurrent=1)) == Slots(1, 0, 1)
    with pytest.raises(EnvironmentProblem, match="one trial needs 3 CPUs and 0 GPUs, the cluster has 2 and 0"):
        plan_slots(SearchConfig(cpus_per_trial=3))
    with pytest.raises(EnvironmentProblem, match="1 GPUs"):
        plan_slots(SearchConfig(gpus_per_trial=1))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999"])
def test_a_cluster_that_does_not_answer_is_named_at_once(address: str) -> None:
    with pytest.raises(EnvironmentProblem, match=f"Ray at {address}: nothing answers there"), connect(address):
        pass


def command(out: Path, *more: str) -> subprocess.Popen[str]:
    address = ray.get_runtime_context().gcs_address
    words = [sys.executable, "-m", "tune.search", SMOKE, "--out", str(out), "--address", address, *more]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(f"the command ended without saying {words!r}")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_interrupted_search_goes_on_and_ends_with_a_report(
    ray_cluster: None, experiment: Experiment, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with command(out, "--trials", "50") as first:
        read_until(first, "trial   0")
        first.send_signal(signal.SIGTERM)
        _, errors = first.communicate(timeout=60)
        assert first.returncode == 130
        assert "The same command goes on with it" in errors
        assert "Traceback" not in errors

    study = open_study(RunDirectory(out), experiment, FOLD)
    stopped = {trial.number for trial in study.study.trials if trial.state == TrialState.RUNNING}
    before = study.counts()
    assert not study.closed
    budget = ["--trials", str(before.finished + 2)]
    with command(out, *budget) as second:
        read_until(second, "refitting")
        second.send_signal(signal.SIGTERM)
        _, errors = second.communicate(timeout=60)
        assert second.returncode == 130
        assert "The same command goes on with it" in errors
    with command(out, *budget) as third:
        output, errors = third.communicate(timeout=200)
        assert third.returncode == 0, errors
    study = open_study(RunDirectory(out), experiment, FOLD)
    check_study(study, expected=before.finished + 2, stopped=stopped)
    assert f"report: {out / 'report.html'}" in output
    check_result(json.loads((out / "result.json").read_text()), finished=before.finished + 2)
    assert "<h1>" in (out / "report.html").read_text()
    check_it_is_over(out, finished=before.finished + 2)


def check_study(study: Any, *, expected: int, stopped: set[int]) -> None:
    assert study.closed
    assert study.counts().finished == expected
    assert study.counts().running == 0
    states = {trial.number: trial.state for trial in study.study.trials}
    continued = {trial.user_attrs.get("continues") for trial in study.study.trials} - {None}
    assert all(states[number] == TrialState.FAIL for number in stopped)
    assert continued == stopped
    assert study.failures() == []


def check_result(result: dict[str, Any], *, finished: int) -> None:
    assert result["task"] == "classification"
    assert result["trials"]["complete"] + result["trials"]["pruned"] == finished
    assert result["config"]["search"]["trials"] == finished
    assert 0 < result["metrics"]["test"]["macro_auc"] <= 1
    low, high = result["intervals"]["test"]["macro_auc"]
    assert low <= result["metrics"]["test"]["macro_auc"] <= high
    assert result["metrics"]["validation"]["macro_auc"] == pytest.approx(result["best"][0]["validation"])
    assert [entry["why"].endswith("study repeat0-fold0 closed") for entry in result["ledger"]] == [True]
    assert result["without_anchor"]["metrics"]["macro_auc"] is not None
    assert result["seconds"] > 0


def check_it_is_over(out: Path, *, finished: int) -> None:
    with command(out, "--trials", str(finished)) as again:
        output, _ = again.communicate(timeout=60)
        assert again.returncode == 0
        assert "this search is over" in output
    with command(out, "--trials", str(finished + 1)) as more:
        _, errors = more.communicate(timeout=60)
        assert more.returncode == 2
        assert "cannot grow" in errors
    with pytest.raises(ConfigError, match="evaluated already"):
        finalize.main([str(out)])


def test_a_study_that_another_driver_searches_is_left_alone(data: Path, tmp_path: Path) -> None:
    drivers = RunDirectory(tmp_path).drivers(FOLD)
    drivers.mkdir(parents=True)
    (drivers / "elsewhere-7-ab.json").write_text('{"host": "elsewhere", "pid": 7, "started": ""}')
    with pytest.raises(EnvironmentProblem, match="process 7 on elsewhere is at it now"):
        search.main([SMOKE, "--out", str(tmp_path)])
    assert [path.name for path in drivers.iterdir()] == ["elsewhere-7-ab.json"]
    assert not (tmp_path / "experiment.yaml").exists()


def complete_trial(study: SearchStudy) -> None:
    study.study.add_trial(create_trial(state=TrialState.COMPLETE, value=0.5))


def test_the_record_of_the_experiment_is_written_until_a_study_is_closed(data: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for trials, close, recorded in ((5, False, 5), (6, True, 6), (7, False, 6)):
        asked = search.Search(load_experiment(SMOKE, assignments=[f"search.trials={trials}"]), run, SMOKE, None)
        with asked.claimed():
            assert load_experiment(run.experiment).search.trials == recorded
        if close:
            complete_trial(asked.studies[FOLD])
            asked.studies[FOLD].close()


def test_a_search_is_over_when_its_result_is_there(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = search.Search(load_experiment(SMOKE, assignments=["search.trials=1"]), RunDirectory(tmp_path), SMOKE, None)
    complete_trial(asked.studies[FOLD])
    asked.studies[FOLD].close()
    (tmp_path / "report.html").write_text("written, then killed")
    assert not asked.already_over()
    (tmp_path / "result.json").write_text("{}")
    assert asked.already_over()
    assert "this search is over" in capsys.readouterr().out


def fold_search(experiment: Experiment, run: RunDirectory, study: SearchStudy) -> FoldSearch:
    return FoldSearch(experiment, run, FOLD, study, SearchSpace(experiment.spec), Slots(1, 0, 2))


def test_failures_end_a_search_only_while_its_budget_is_not_spent(experiment: Experiment, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    study = open_study(run, experiment, FOLD)
    complete_trial(study)
    for _ in range(5):
        study.study.add_trial(create_trial(state=TrialState.FAIL))
    spent = replace(experiment, spec=experiment.spec.override({"search.trials": 1}, "test"))
    assert fold_search(spent, run, study).run()
    with pytest.raises(TrainingError, match="5 trials failed"):
        fold_search(experiment, run, study).run()


@pytest.mark.ray
def test_ctrl_c_means_the_same_after_a_search_as_before(
    ray_cluster: None, experiment: Experiment, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGINT)
    run = RunDirectory(tmp_path)
    one = replace(experiment, spec=experiment.spec.override({"search.trials": 1}, "test"))
    assert fold_search(one, run, open_study(run, one, FOLD)).run()
    assert signal.getsignal(signal.SIGINT) is before
