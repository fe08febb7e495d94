"""What the report and `result.json` say about a finished search: openings, spread, figures, the paired difference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from optuna.trial import TrialState, create_trial

from asmil.engine.protocols import Baseline, Figure, Monitor, Predictions
from asmil.evaluation import Evaluation
from asmil.experiment import Experiment
from asmil.metrics.values import Metric
from asmil.report.content import HeadlineRow, ReportContent
from tests.run_support import result_of
from tests.tune.finished import METRIC, finished_search, studies
from tune.evaluation import FoldOutcome
from tune.outcome import write_outcome
from tune.rundir import OuterFold, RunDirectory
from tune.study import CONTINUES, SearchStudy


class MeanOfScores:
    """A prepared task whose only metric is the mean score, with a figure that shows how many parts it was given.

    Its record is the number of bags, its baseline a constant 0.45.
    """

    meanings: Mapping[str, str] = {"bags": "bags of a part"}

    def details(self, predictions: Predictions) -> dict[str, Metric]:
        return {"bags": Metric(float(len(predictions.bag_ids)))}

    def baseline(self, predictions: Predictions) -> Baseline:
        return Baseline("a guess", replace(predictions, outputs={"score": np.full(20, 0.45)}))

    def evaluate(self, predictions: Predictions) -> dict[str, Metric]:
        return {METRIC: Metric(float(predictions.outputs["score"].mean()))}

    def figures(self, predictions: Sequence[Predictions]) -> tuple[Figure, ...]:
        return (Figure("bars", "Scores", {"parts": len(predictions)}),)


def evaluation(seed: int, score: float, fold: int) -> Evaluation:
    ids = tuple(f"p{fold}{row}" for row in range(20))
    predictions = Predictions(ids, ids, {"score": np.full(20, score)}, {})
    return Evaluation(seed, MeanOfScores(), predictions, ())  # type: ignore[arg-type]


@pytest.fixture
def content(monkeypatch: pytest.MonkeyPatch) -> list[ReportContent]:
    """What would be written into the report."""
    kept: list[ReportContent] = []
    monkeypatch.setattr("tune.outcome.write_report", lambda path, content: kept.append(content))
    return kept


def write(
    run: RunDirectory, experiment: Experiment, stored: Mapping[OuterFold, SearchStudy] | None = None
) -> dict[str, Any]:
    """Write the outcome of two seeds per fold that score 0.6 and 0.8, beside 0.5 for both without anchor."""

    def evaluations(fold: OuterFold, *scores: float) -> tuple[Evaluation, ...]:
        return tuple(evaluation(seed, score, fold.fold) for seed, score in enumerate(scores, start=3))

    outcomes = [
        FoldOutcome(fold, study, evaluations(fold, 0.6, 0.8), evaluations(fold, 0.5, 0.5))
        for fold, study in (stored or studies(run, experiment)).items()
    ]
    write_outcome(run.path, experiment, outcomes, title="t", refit_seconds=1.0)
    return result_of(run.path)


def add_opening(experiment: Experiment, *, year: int, split: str | None = None) -> None:
    entry = {
        "time": f"{year}-01-01T00:00:00+00:00",
        "dataset_id": experiment.plan.dataset_id,
        "split": split or experiment.plan.hash,
        "repeat": 0,
        "fold": 1,
        "why": "a test",
    }
    with experiment.ledger.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def test_openings_before_the_search_ended_are_put_at_the_top(tmp_path: Path, content: list[ReportContent]) -> None:
    run = finished_search(tmp_path)
    experiment = run.open()
    add_opening(experiment, year=2020, split="another")
    add_opening(experiment, year=2999)
    write(run, experiment)
    add_opening(experiment, year=2020)
    write(run, experiment)
    later, earlier = content
    assert later.notices == ()
    assert any("only then was the test part opened" in line for line in later.protocol)
    assert earlier.notices == ("The test part was opened 1 time(s) before this search ended; see the ledger.",)
    assert not any("only then" in line for line in earlier.protocol)


def test_single_models_are_listed_and_their_range_stands_beside_the_mean(
    tmp_path: Path, content: list[ReportContent]
) -> None:
    run = finished_search(tmp_path)
    result = write(run, run.open())
    assert [(one["fold"], one["seed"], one["metrics"][METRIC]) for one in result["per_fold"]] == [
        (fold, seed, pytest.approx(score)) for fold in range(3) for seed, score in ((3, 0.6), (4, 0.8))
    ]
    assert [one["metrics"][METRIC] for one in result["without_anchor"]["per_fold"]] == [0.5] * 6
    assert result["metrics"]["test"][METRIC] == pytest.approx(0.7)
    note = content[0].headline[0].note
    assert note == "mean of 2 seed(s) on each of 3 test part(s); single models 0.600 to 0.800"


def test_an_interrupted_trial_that_went_on_under_another_number_is_no_failure(
    tmp_path: Path, content: list[ReportContent]
) -> None:
    run = finished_search(tmp_path)
    experiment = run.open()
    stored = studies(run, experiment)
    first = stored[OuterFold(0, 0)].study
    first.add_trial(create_trial(state=TrialState.FAIL))
    first.add_trial(create_trial(state=TrialState.COMPLETE, value=0.6, user_attrs={CONTINUES: 1}))
    result = write(run, experiment, stored)
    assert (result["trials"]["fail"], result["trials"]["continued"], result["trials"]["complete"]) == (0, 1, 4)
    assert [row.number for row in content[0].searches[0].trials] == [0, 2]
    assert any("4 trials counted in all" in line for line in content[0].protocol)


def difference(content: ReportContent) -> HeadlineRow:
    (row,) = [row for row in content.headline if "difference to the plain model" in row.metric]
    return row


@pytest.mark.parametrize(("direction", "expected"), [("max", 0.2), ("min", -0.2)])
def test_the_difference_is_positive_where_ours_is_better(
    tmp_path: Path, content: list[ReportContent], direction: Literal["max", "min"], expected: float
) -> None:
    run = finished_search(tmp_path)
    experiment = run.open()
    stored = studies(run, experiment)
    monitor = Monitor(METRIC, direction)
    write(run, replace(experiment, task=SimpleNamespace(monitor=monitor)), stored)
    row = difference(content[0])
    assert row.note is not None
    assert "not tuned again; positive: ours is better" in row.note
    assert row.result.value == pytest.approx(expected)
    assert (row.result.interval, row.result.reason) == (None, "no_spread")


def test_the_tasks_baseline_and_its_record_stand_beside_the_result(
    tmp_path: Path, content: list[ReportContent]
) -> None:
    run = finished_search(tmp_path)
    result = write(run, run.open())
    assert result["details"] == {"bags": 20.0}
    assert all(one["details"] == {"bags": 20.0} for one in result["per_fold"])
    assert result["baseline"]["name"] == "a guess"
    assert result["baseline"]["metrics"][METRIC] == pytest.approx(0.45)
    assert result["baseline"]["difference"][METRIC] == pytest.approx(0.25)
    assert result["baseline"]["difference_intervals"][METRIC] is None
    [page] = content
    assert page.further == (("bags of a part", Metric(20.0)),)
    rows = {row.metric: row for row in page.headline}
    assert rows[f"{METRIC}: difference to a guess"].result.value == pytest.approx(0.25)
    beside = {reference.name: reference.result.value for reference in rows[f"{METRIC} on test"].references}
    assert beside["a guess (clinical baseline, same folds)"] == pytest.approx(0.45)


@pytest.mark.parametrize(("repeats", "which"), [(1, "seed 3"), (2, "seed 3, repeat 0")])
def test_figures_show_one_model_per_fold_of_one_repeat_and_say_which(
    tmp_path: Path, content: list[ReportContent], repeats: int, which: str
) -> None:
    run = finished_search(tmp_path, **{"protocol.repeats": repeats})
    result = write(run, run.open())
    assert len(result["per_fold"]) == 2 * 3 * repeats
    assert content[0].figures == (Figure("bars", f"Scores ({which})", {"parts": 3}),)
    drawn = "patients with their rows of all repeats" if repeats > 1 else "patients within folds"
    assert any(f"Intervals resample {drawn}" in line for line in content[0].protocol)
