"""After a search: where refits run and what they are sent, how often a test part is opened, what is kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asmil.data.sealed import read_ledger
from asmil.engine.jobs import Job
from asmil.errors import EnvironmentProblem, IntegrityError
from asmil.evaluation import load_predictions, metrics_tree
from asmil.experiment import Experiment, load_model
from tests.run_support import result_of
from tests.tune.finished import METRIC, finished_search
from tune import finalize
from tune.rundir import RunDirectory

FOLDS = 3


@pytest.fixture
def refits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Refits run in this process; the list names the models that were trained."""
    trained = []

    def in_process(refits: Sequence[Any], experiment: Experiment) -> None:
        for one in refits:
            is_new = not (one.directory / "model.json").exists()
            cohort = experiment.cohort.restrict(one.development.bag_ids)
            finalize._train(one, cohort, split=experiment.plan.hash, on_cpu=False)
            trained.extend([f"{one.variant} {one.job.name}"] * is_new)

    monkeypatch.setattr(finalize, "connect", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(finalize, "_run_refits", in_process)
    return trained


def openings(run: RunDirectory) -> list[int]:
    """The folds whose test part was opened, in order."""
    return [entry["fold"] for entry in read_ledger(run.open().ledger)]


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    return fail


@pytest.mark.ray
def test_refits_need_no_path_of_the_driver_and_are_sent_no_test_bag(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the workers stay where they were started
    run = finished_search(tmp_path, **{"data.store": "store"})
    sent, put = [], finalize.ray.put

    def keep(value: Any) -> Any:
        sent.append(value)
        return put(value)

    monkeypatch.setattr(finalize, "connect", lambda address: contextlib.nullcontext())
    monkeypatch.setattr("ray.put", keep)
    assert finalize.main([str(run.path), "--fold", "1"]) == 0
    development = run.open().plan.development(0, 1).bag_ids
    assert {tuple(sorted(cohort.bag_ids)) for cohort in sent} == {tuple(sorted(development))}
    assert (run.model("best", Job(0, 1, 7)) / "model.safetensors").exists()


def test_each_test_part_is_opened_once_whichever_folds_are_asked_for(tmp_path: Path, refits: list[str]) -> None:
    run = finished_search(tmp_path)
    for fold in ("1", "0"):
        finalize.main([str(run.path), "--fold", fold])
    finalize.main([str(run.path)])
    assert openings(run) == [1, 0, 2]
    assert len(refits) == len(set(refits)) == 2 * 2 * FOLDS
    assert result_of(run.path / "fold1")["per_fold"] == result_of(run.path)["per_fold"][2:4]


@pytest.mark.parametrize("step", ["tune.finalize.write_outcome", "tune.outcome.write_report"])
def test_an_interrupted_evaluation_goes_on_without_another_opening(
    tmp_path: Path, refits: list[str], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    run = finished_search(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(step, failing(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            finalize.main([str(run.path)])
    assert not (run.path / "result.json").exists()
    assert finalize.main([str(run.path)]) == 0
    assert (run.path / "report.html").exists()
    assert openings(run) == [0, 1, 2]
    assert len(refits) == len(set(refits))


def test_the_seal_stays_closed_where_the_models_cannot_run(tmp_path: Path, refits: list[str]) -> None:
    run = finished_search(tmp_path, train={"device": "cuda:99"})
    with pytest.raises(EnvironmentProblem, match="cuda:99"):
        finalize.main([str(run.path)])
    assert openings(run) == refits == []


def test_the_seal_of_every_fold_stays_closed_if_one_model_is_damaged(tmp_path: Path, refits: list[str]) -> None:
    run = finished_search(tmp_path)
    damaged = run.model("without_anchor", Job(0, 2, 8))
    damaged.mkdir(parents=True)
    (damaged / "model.json").write_text("{}")
    (damaged / "model.safetensors").touch()
    with pytest.raises(IntegrityError, match=r"model\.json"):
        finalize.main([str(run.path)])
    assert openings(run) == []


def test_predictions_of_every_model_and_bag_are_kept(tmp_path: Path, refits: list[str]) -> None:
    run = finished_search(tmp_path)
    finalize.main([str(run.path)])
    result, experiment = result_of(run.path), run.open()
    seen = []
    for one in result["per_fold"]:
        directory = run.model("best", Job(one["repeat"], one["fold"], one["seed"]))
        predictions = load_predictions(directory / "test.npz")
        _, prepared = load_model(directory)
        assert json.loads(json.dumps(metrics_tree(prepared.evaluate(predictions)))) == one["metrics"]
        assert not set(predictions.bag_ids) & set(experiment.plan.development(0, one["fold"]).bag_ids)
        seen += predictions.bag_ids
    assert sorted(seen) == sorted([*experiment.cohort.bag_ids] * 2)
    mean = np.mean([one["metrics"][METRIC] for one in result["per_fold"]])
    assert result["metrics"]["test"][METRIC] == pytest.approx(mean)


def test_the_report_carries_the_experiments_name_wherever_it_lies(tmp_path: Path, refits: list[str]) -> None:
    run = finished_search(tmp_path)
    finalize.main([str(run.path)])
    assert "<h1>tiny-demo</h1>" in (run.path / "report.html").read_text()


def test_damaged_predictions_are_called_so(tmp_path: Path) -> None:
    (tmp_path / "test.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(IntegrityError, match=r"test\.npz: damaged predictions"):
        load_predictions(tmp_path / "test.npz")
