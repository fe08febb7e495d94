"""`--folds`: every job once, figures over all of them, one opening of each test part, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asmil import crossval
from asmil.data.sealed import read_ledger
from asmil.errors import ConfigError
from asmil.evaluation import load_predictions
from asmil.run import main
from asmil.run_folds import chosen_folds
from tests.run_support import Tiny, classification, events_of, survival


def figures(out: Path, part: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((out / f"{part}.json").read_text(encoding="utf-8"))
    return tree


def values(tree: dict[str, Any], metric: str) -> np.ndarray:
    """[repeats x folds, seeds]"""
    seeds = len({job["seed"] for job in tree["jobs"]})
    return np.array([job["metrics"][metric] for job in tree["jobs"]]).reshape(-1, seeds)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Path, dict[str, Any]]:
    """Three folds, two seeds, their test parts."""
    tiny = survival(tmp_path_factory.mktemp("folds"))
    out = tiny.run("--folds", "all", "--seeds", 2, "--test")
    return tiny, out, figures(out, "test")


def test_the_mean_is_over_seeds_and_folds_with_its_spreads(ran: tuple[Tiny, Path, dict[str, Any]]) -> None:
    _, _, tree = ran
    c_FS = values(tree, "c_index")
    assert c_FS.shape == (3, 2)
    assert tree["metrics"]["c_index"] == pytest.approx(c_FS.mean())
    assert tree["sd_over_folds"]["c_index"] == pytest.approx(c_FS.mean(axis=1).std())
    assert tree["sd_over_seeds"]["c_index"] == pytest.approx(c_FS.mean(axis=0).std(ddof=1))
    assert (tree["intervals"]["c_index"] is None) == ("reasons" in tree["metrics"]), "five patients may give none"
    assert tree["folds"] == {"used": [0, 1, 2], "of": 3, "repeats": 1, "seeds": 2}


def test_every_patient_is_tested_once_and_each_part_opened_once(ran: tuple[Tiny, Path, dict[str, Any]]) -> None:
    tiny, out, tree = ran
    first_seeds = [out / "test" / f"repeat0-fold{fold}-seed7" / "predictions.npz" for fold in range(3)]
    patients = [bag for path in first_seeds for bag in load_predictions(path).bag_ids]
    assert sorted(patients) == [f"p{number:02d}" for number in range(15)]
    ledger = read_ledger(tiny.store / "ledger.jsonl")
    assert [entry["fold"] for entry in ledger] == [0, 1, 2]
    assert all("2 trainings of this fold are done" in entry["why"] for entry in ledger)
    assert tree["ledger"] == ledger


def test_jobs_that_are_done_are_not_done_again(
    ran: tuple[Tiny, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny, out, tree = ran
    trained: list[int] = []
    refit = crossval.refit
    monkeypatch.setattr(
        crossval, "refit", lambda *given, seed, **named: trained.append(seed) or refit(*given, seed=seed, **named)
    )
    tiny.run("--folds", "all", "--seeds", 3, "--test", "--out", out, "--resume")
    assert trained == [9, 9, 9]
    assert "repeat0-fold0-seed7, repeat0-fold0-seed8: predictions are there" in capsys.readouterr().out
    more = figures(out, "test")
    np.testing.assert_array_equal(values(more, "c_index")[:, :2], values(tree, "c_index"))


def test_a_stopped_run_goes_on_to_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = classification(tmp_path)
    whole = figures(tiny.run("--folds", "all"), "validation")
    out = tmp_path / "stopped"
    predict = crossval.predict
    calls = iter(range(9))

    def stop_at_the_second(*given: Any, **named: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return predict(*given, **named)

    monkeypatch.setattr(crossval, "predict", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        main([str(tiny.file), "--folds", "all", "--out", str(out)])
    assert not (out / "validation.json").exists()
    monkeypatch.undo()
    tiny.run("--folds", "all", "--out", out, "--resume")
    resumed = figures(out, "validation")
    assert resumed["jobs"] == whole["jobs"]
    assert resumed["intervals"] == whole["intervals"]
    assert not (tiny.store / "ledger.jsonl").exists()


def test_validation_and_test_jobs_are_trained_apart(tmp_path: Path) -> None:
    tiny = classification(tmp_path)
    out = tiny.run("--folds", "0,2")
    tiny.run("--folds", "0,2", "--test", "--out", out, "--resume")
    for fold in (0, 2):
        weights = [(out / part / f"repeat0-fold{fold}-seed7/model.safetensors").read_bytes() for part in
                   ("validation", "test")]  # fmt: skip
        assert weights[0] != weights[1]
    assert figures(out, "test")["folds"]["used"] == [0, 2]


def test_some_folds_are_said_to_be_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = classification(tmp_path)
    tiny.run("--folds", "1")
    assert "NOT ALL FOLDS" in capsys.readouterr().out
    tiny.run("--folds", "all", "--repeats", 2, "--epochs", 1)
    told = capsys.readouterr().out
    assert "NOT ALL FOLDS" not in told
    assert "6 trainings (2 repeats x 3 folds x 1 seed)" in told


def test_folds_finished_by_an_earlier_command_stay_in_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = classification(tmp_path)
    options = ("--seeds", 2, "--epochs", 1)
    whole = figures(tiny.run("--folds", "all", *options), "validation")
    out = tiny.run("--folds", "2", *options)
    capsys.readouterr()
    tiny.run("--folds", "0", *options, "--out", out, "--resume")
    told, some = capsys.readouterr().out, figures(out, "validation")
    assert "figures over folds 0, 2; done before: 2\n" in told
    assert "NOT ALL FOLDS" in told
    assert some["folds"] == {"used": [0, 2], "of": 3, "repeats": 1, "seeds": 2}
    assert some["jobs"] == [job for job in whole["jobs"] if job["fold"] != 1]
    tiny.run("--folds", "1", *options, "--out", out, "--resume")
    assert "NOT ALL FOLDS" not in capsys.readouterr().out
    united = figures(out, "validation")
    assert united["folds"] == whole["folds"]
    for name in ("metrics", "intervals", "sd_over_folds", "sd_over_seeds", "details", "jobs"):
        assert united[name] == whole[name]


def test_a_fold_without_every_seed_is_left_out_and_so_is_another_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = classification(tmp_path)
    out = tiny.run("--folds", "0", "--epochs", 1)
    tiny.run("--folds", "1", "--epochs", 1, "--seeds", 2, "--out", out, "--resume")
    told = capsys.readouterr().out
    assert "fold 0: 1 of its 2 trainings are there, left out of the figures\n" in told
    assert told.count("NOT ALL FOLDS") == 2
    assert figures(out, "validation")["folds"]["used"] == [1]
    tiny.run("--folds", "2", "--epochs", 1, "--test", "--out", out, "--resume")
    assert figures(out, "test")["folds"]["used"] == [2]
    assert [entry["fold"] for entry in read_ledger(tiny.store / "ledger.jsonl")] == [2]


def test_other_settings_are_refused(ran: tuple[Tiny, Path, dict[str, Any]]) -> None:
    tiny, out, _ = ran
    with pytest.raises(ConfigError, match=r"begun with other settings \(train\.lr"):
        tiny.run("--folds", "all", "--set", "train.lr=0.5", "--out", out, "--resume")
    assert events_of(out)[0]["event"] == "start"


@pytest.mark.parametrize("text", ["3", "0,3", "-1", "", "first", "0;1"])
def test_folds_that_are_not_there(text: str) -> None:
    with pytest.raises(ConfigError, match="give all, or numbers from 0 to 2"):
        chosen_folds(text, 3)


def test_a_limit_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--limit and --folds"):
        classification(tmp_path).run("--folds", "all", "--limit", 4)
