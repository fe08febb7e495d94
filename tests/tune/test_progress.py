"""What the search shows: one line per finished trial, and a table of finished and running ones."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from tune.progress import SearchDisplay
from tune.study import REASON, Identity, SearchStudy, open_storage


@pytest.fixture
def study(tmp_path: Path) -> SearchStudy:
    return SearchStudy(open_storage(tmp_path / "journal"), "repeat0-fold0", "max", Identity({}, "d", "s", "l"))


def display_of(study: SearchStudy, finished: list[int]) -> SearchDisplay:
    return SearchDisplay(
        study, title="repeat0-fold0", metric="c_index", budget=3, epochs=8, on_finished=finished.append
    )


def ray_trial(number: int) -> Any:
    return SimpleNamespace(config={"number": number, "overrides": {"train.lr": 0.001, "model.aggregator.tokens": 8}})


def finish(study: SearchStudy, display: SearchDisplay, values: list[float], state: TrialState) -> None:
    asked = study.study.ask()
    trial = ray_trial(asked.number)
    display.on_trial_start(0, [], trial)
    for epoch, value in enumerate(values, start=1):
        asked.report(value, epoch)
        display.on_trial_result(0, [], trial, {"objective": value, "epoch": epoch, "config": trial.config})
    if state == TrialState.FAIL:
        asked.set_user_attr(REASON, "the gradient is not finite")
    study.study.tell(asked, values[-1] if state == TrialState.COMPLETE else None, state=state)
    (display.on_trial_error if state == TrialState.FAIL else display.on_trial_complete)(0, [], trial)


def test_every_finished_trial_is_one_line(study: SearchStudy, capsys: pytest.CaptureFixture[str]) -> None:
    finished: list[int] = []
    with display_of(study, finished) as display:
        finish(study, display, [0.5, 0.61], TrialState.PRUNED)
        finish(study, display, [0.5, 0.7, 0.65], TrialState.COMPLETE)
        finish(study, display, [0.4], TrialState.FAIL)
    first, second, third = capsys.readouterr().out.splitlines()
    for expected in ("trial   0", "PRUNED", "2/8", "c_index 0.6100", "[1/3, none complete]", "lr=0.001 tokens=8"):
        assert expected in first
    for expected in ("trial   1", "COMPLETE", "3/8", "c_index 0.6500", "[2/3, best 0.6500 in trial 1]"):
        assert expected in second
    for expected in ("trial   2", "FAIL", "1/8", "the gradient is not finite", "[2/3, "):
        assert expected in third
    assert finished == [0, 1]


def test_the_table_holds_finished_and_running_trials(study: SearchStudy) -> None:
    display = display_of(study, [])
    finish(study, display, [0.5, 0.7], TrialState.COMPLETE)
    running = ray_trial(1)
    display.on_trial_start(0, [], running)
    console = Console(file=io.StringIO(), width=120)
    console.print(display._table())
    display.on_trial_result(0, [], running, {"objective": 0.33, "epoch": 5, "config": running.config})
    console.print(display._table())
    shown = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "best 0.7000 in trial 0" in shown
    assert "running │ 0/8 │ - │" in shown
    assert "running │ 5/8 │ 0.3300 │" in shown
