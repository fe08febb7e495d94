"""`python -m asmil.run`: what it prints and writes, exact resume, the sealed test part, and debugging in it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from asmil.data.sealed import read_ledger
from asmil.data.splits import InnerSplit
from asmil.engine.checkpoint import CHECKPOINT
from asmil.engine.predict import predict
from asmil.evaluation import metrics_tree
from asmil.experiment import Experiment, Trained, load_model, open_experiment, train_once
from asmil.run import main
from tasks.classification import PreparedClassification
from tasks.spec import ExperimentSpec, load_experiment
from tests.run_support import (
    CLASSIFICATION,
    Bags,
    Tiny,
    class_table,
    classification,
    draw_bags,
    events_of,
    history_of,
    result_of,
    start,
    survival,
    write_experiment,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in one order, so that numbers of this process and of others can be compared bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def opened(tiny: Tiny, out: Path) -> tuple[ExperimentSpec, Experiment, InnerSplit]:
    spec = load_experiment(tiny.file)
    experiment = open_experiment(spec, out)
    return spec, experiment, experiment.plan.development(0, 0).inner[0]


def ledger_lines(tiny: Tiny) -> list[dict[str, Any]]:
    return read_ledger(tiny.store / "ledger.jsonl")


def assert_same_training(first: Path, second: Path) -> None:
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert history_of(first) == history_of(second)
    for key in ("metrics", "intervals"):
        assert result_of(first)[key]["validation"] == result_of(second)[key]["validation"]


def measured(prepared: Any, predictions: Any) -> dict[str, Any]:
    found = prepared.evaluate(predictions) | prepared.intervals(predictions) | prepared.details(predictions)
    return metrics_tree(found)


PROGRESS = re.compile(
    r"epoch (?P<epoch>\d+)/3  loss (?P<loss>[\d.]+)  KL (?P<kl>[\d.]+)  (?P<metric>\w+) (?P<value>\S+)"
    r"(  attention JSD (?P<jsd>\S+))?  (?P<speed>[\d.]+) bags/s"
)


@pytest.mark.parametrize(("make", "monitored"), [(classification, "macro_auc"), (survival, "c_index")])
def test_every_epoch_is_told_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Tiny], monitored: str
) -> None:
    out = make(tmp_path).run()
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    recorded = history_of(out)
    assert len(told) == len(recorded) == 3
    for line, (epoch, record) in zip(told, recorded.items(), strict=True):
        found = PROGRESS.fullmatch(line)
        assert found, line
        assert (int(found["epoch"]), found["metric"]) == (epoch, monitored)
        assert found["loss"] == f"{record['loss']:.4f}"
        assert found["kl"] == f"{record['kl']:.4f}"
        assert float(found["value"]) == pytest.approx(record["metrics"][monitored]["value"], abs=5e-4)
        assert float(found["speed"]) > 0
        assert (found["jsd"] is None) == (epoch == 1)
        if found["jsd"] is not None:
            assert float(found["jsd"]) == pytest.approx(record["stability"]["jsd"], rel=0.01)


@pytest.mark.parametrize("make", [classification, survival])
def test_the_result_says_what_was_run_and_nothing_of_the_test_part(
    tmp_path: Path, make: Callable[[Path], Tiny]
) -> None:
    tiny = make(tmp_path)
    out = tiny.run()
    result = result_of(out)
    spec, experiment, _ = opened(tiny, out)
    assert {"task", "config", "metrics", "intervals", "seconds"} <= result.keys()
    assert (result["task"], result["config"]) == (spec.task.kind, spec.tree())
    assert result["metrics"]["test"] is None
    assert result["intervals"]["test"] is None
    assert result["metrics"]["validation"].keys() >= result["intervals"]["validation"].keys()
    assert result["seconds"] > 0
    assert (result["data_id"], result["split"]) == (experiment.cohort.dataset_id, experiment.plan.hash)
    assert result["ledger"] == []
    assert not (tiny.store / "ledger.jsonl").exists()
    events = events_of(out)
    assert [event["event"] for event in events] == ["start", *["epoch"] * 3, "end"]
    assert events[-1]["metrics"] == result["metrics"]


@pytest.mark.parametrize("make", [classification, survival])
def test_the_exported_model_is_the_trained_one_without_its_anchor(tmp_path: Path, make: Callable[[Path], Tiny]) -> None:
    tiny = make(tmp_path)
    out = tiny.run()
    spec, experiment, inner = opened(tiny, out)
    trained = train_once(
        spec, experiment.cohort, experiment.task, train_ids=inner.train, validation_ids=inner.validation, seed=7
    )
    exported, online = load_file(out / "model.safetensors"), trained.fitted.model.aggregator.state_dict()
    assert exported.keys() == online.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in online.items())
    anchored = trained.fitted.model.state_dict()["anchor.path.projection.weight"]
    assert not torch.equal(anchored, online["score_path.projection.weight"])

    def predicted(model: Any, prepared: Any) -> Any:
        return predict(model, prepared, experiment.cohort, inner.validation, data=spec.data, train=spec.train)

    before = predicted(trained.fitted.model, trained.prepared)
    model, prepared = load_model(out)
    after = predicted(model, prepared)
    assert model.anchor is None
    assert after.outputs.keys() == before.outputs.keys()
    for name, values in before.outputs.items():
        np.testing.assert_array_equal(after.outputs[name], values, err_msg=name)
    assert measured(prepared, after) == result_of(out)["metrics"]["validation"]


@pytest.mark.parametrize("make", [classification, survival])
def test_the_test_part_is_opened_on_request_once_and_with_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Tiny]
) -> None:
    tiny = make(tmp_path)
    out = tiny.run("--test", "--fold", 1)
    result = result_of(out)
    (line,) = ledger_lines(tiny)
    assert result["ledger"] == [line]
    assert (line["repeat"], line["fold"], line["split"]) == (0, 1, result["split"])
    assert str(out) in line["why"]
    assert "test (epoch 3): " in capsys.readouterr().out
    assert len(history_of(out, "refit")) == 3
    spec, experiment, _ = opened(tiny, out)
    development = set(experiment.plan.development(0, 1).bag_ids)
    test_ids = [bag_id for bag_id in experiment.cohort.bag_ids if bag_id not in development]
    model, prepared = load_model(out / "refit")
    predictions = predict(model, prepared, experiment.cohort, test_ids, data=spec.data, train=spec.train)
    assert measured(prepared, predictions) == result["metrics"]["test"]
    assert result["intervals"]["test"].keys() == result["intervals"]["validation"].keys()


def test_a_store_named_by_address_keeps_its_splits_and_ledger(tmp_path: Path) -> None:
    tiny = classification(tmp_path)
    by_path = tiny.run("--epochs", 1, "--test")
    by_address = tiny.run("--epochs", 1, "--test", "--set", f"data.store=file://{tiny.store}")
    assert len(ledger_lines(tiny)) == len(result_of(by_address)["ledger"]) == 2
    assert len(list((tiny.store / "splits").iterdir())) == 1
    assert history_of(by_path) == history_of(by_address)


def test_same_seed_same_numbers_and_its_own_file_repeats_a_run(tmp_path: Path) -> None:
    tiny = classification(tmp_path)
    first, second = tiny.run("--epochs", 2), tiny.run("--set", "train.epochs=2")
    assert_same_training(first, second)
    third = Tiny(first / "experiment.yaml", tiny.store).run("--out", tmp_path / "third")
    assert_same_training(first, third)
    other = tiny.run("--epochs", 2, "--set", "train.seed=8")
    assert history_of(other)[2]["loss"] != history_of(first)[2]["loss"]
    assert result_of(other)["job"] == {"repeat": 0, "fold": 0, "seed": 8}


def test_variant_demo_and_settings_are_applied_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = {
        "variants": {"fast": {"train.epochs": 2, "train.lr": 0.5}},
        "demo": {"train": {"lr": 0.25, "seed": 1}},
    }
    tiny = classification(tmp_path, changes=overrides)
    monkeypatch.chdir(tmp_path)
    command = [str(tiny.file), "--variant", "fast", "--demo", "--set", "train.seed=2", "--epochs", "1"]
    assert [main(command), main(command)] == [0, 0]
    folder = Path("runs/experiment-fast-demo")
    assert sorted(path.name for path in folder.iterdir()) == ["run-001", "run-002"]
    train = result_of(folder / "run-001")["config"]["train"]
    assert (train["epochs"], train["lr"], train["seed"]) == (1, 0.25, 2)


def test_limit_trains_on_few_bags_of_every_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = classification(tmp_path).run("--limit", 3, "--epochs", 1)
    assert "3 training and 3 validation bags" in capsys.readouterr().out
    assert result_of(out)["limit"] == 3
    assert result_of(out)["metrics"]["validation"]["macro_auc"] is not None


@pytest.mark.parametrize("simulated", [True, False])
def test_made_up_data_are_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], simulated: bool) -> None:
    out = classification(tmp_path, simulated=simulated).run("--epochs", 1)
    assert ("SIMULATED" in capsys.readouterr().out) is simulated
    assert result_of(out)["simulated"] is simulated
    assert json.loads((out / "model.json").read_text())["simulated"] is simulated


def test_one_class_in_validation_gives_null_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bags = draw_bags()
    labels = class_table(bags).assign(split=["val" if index % 8 == 1 else "train" for index in range(len(bags))])
    labels.loc[20:, "split"] = "test"
    changes = {"protocol": {"scheme": "official"}, "data.labels.split": "split"}
    out = write_experiment(tmp_path, CLASSIFICATION, bags, labels, changes=changes).run()
    metrics = result_of(out)["metrics"]["validation"]
    assert metrics["macro_auc"] is None
    assert metrics["reasons"]["macro_auc"] == "one_class"
    assert isinstance(metrics["accuracy"], float)
    assert result_of(out)["intervals"]["validation"]["macro_auc"] is None
    assert "macro_auc n/a (one_class)" in capsys.readouterr().out


def test_a_run_resumed_after_ctrl_c_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    tiny, options = classification(tmp_path), ["--epochs", "30", "--set", "train.bags_per_step=1"]
    out = tmp_path / "interrupted"
    words = ["-m", "asmil.run", tiny.file, *options, "--out", out]
    with start(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch  2/"):
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--out {out} --resume goes on from here" in errors
    assert (out / CHECKPOINT).exists()
    assert not (out / "result.json").exists()
    assert 2 <= len(history_of(out)) < 30
    tiny.run(*options, "--out", out, "--resume")
    assert_same_training(out, tiny.run(*options))
    assert [event["epoch"] for event in events_of(out) if event["event"] == "epoch"] == list(range(1, 31))


def test_ctrl_c_in_the_last_validation_keeps_the_test_part_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, out, calls = classification(tmp_path), tmp_path / "out", []
    evaluate = PreparedClassification.evaluate

    def interrupt(self: PreparedClassification, predictions: Any) -> Any:
        calls.append(predictions)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(self, predictions)

    monkeypatch.setattr(PreparedClassification, "evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tiny.run("--test", "--out", out)
    monkeypatch.undo()
    assert ledger_lines(tiny) == []
    tiny.run("--test", "--out", out, "--resume")
    assert_same_training(out, tiny.run())
    assert len(ledger_lines(tiny)) == 1


def test_resuming_mends_an_event_log_that_a_kill_cut_short(tmp_path: Path) -> None:
    tiny = classification(tmp_path)
    out = tiny.run()
    whole = (out / "events.jsonl").read_text()
    (out / "events.jsonl").write_text(whole[: whole.rindex('"end"')])
    tiny.run("--out", out, "--resume")
    events = events_of(out)
    assert [event["event"] for event in events] == ["start", *["epoch"] * 3, "start", "end"]


OFFICIAL = {"protocol": {"scheme": "official"}, "data.labels.split": "split"}


def official_run(bags: Bags, labels: pd.DataFrame) -> tuple[dict[int, dict[str, Any]], dict[str, torch.Tensor]]:
    """History and weights of a run whose last eight bags are the test part."""
    parts = ["train"] * 12 + ["val"] * 4 + ["test"] * 8
    with tempfile.TemporaryDirectory() as folder:
        tiny = write_experiment(Path(folder), CLASSIFICATION, bags, labels.assign(split=parts), changes=OFFICIAL)
        out = tiny.run("--epochs", 2)
        return history_of(out), load_file(out / "model.safetensors")


def assert_equal_runs(first: Any, second: Any) -> None:
    assert first[0] == second[0]
    assert all(torch.equal(first[1][name], tensor) for name, tensor in second[1].items())


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(1, 2**32), flips=st.lists(st.integers(16, 23), max_size=8))
def test_nothing_of_the_test_part_reaches_the_training(seed: int, flips: list[int]) -> None:
    bags = draw_bags()
    labels = class_table(bags)
    before = official_run(bags, labels)
    others = draw_bags(seed=seed)
    changed = labels.copy()
    for row in flips:
        changed.loc[row, "label"] = "normal" if changed.loc[row, "label"] == "tumor" else "tumor"
    test_ids = list(bags)[16:]
    assert_equal_runs(before, official_run({**bags, **{bag: others[bag] for bag in test_ids}}, changed))


def test_the_training_is_handed_no_test_bag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, handed = classification(tmp_path), []

    def keep(*arguments: Any, **options: Any) -> Trained:
        handed.append(arguments[1].bag_ids)
        return train_once(*arguments, **options)

    monkeypatch.setattr("asmil.run.train_once", keep)
    monkeypatch.setattr("asmil.experiment.train_once", keep)
    out = tiny.run("--test", "--epochs", 1)
    development = opened(tiny, out)[1].plan.development(0, 0)
    assert [sorted(bag_ids) for bag_ids in handed] == [sorted(development.bag_ids)] * 2


def test_a_changed_training_bag_is_felt() -> None:
    bags, others = draw_bags(), draw_bags(seed=1)
    changed = {**bags, "s00": others["s00"]}
    assert official_run(bags, class_table(bags))[0] != official_run(changed, class_table(bags))[0]


def test_a_saved_split_outlives_corrected_labels_of_the_test_part(tmp_path: Path) -> None:
    bags = draw_bags()
    labels, table = class_table(bags), tmp_path / "labels.csv"
    labels.to_csv(table, index=False)
    tiny = write_experiment(tmp_path, CLASSIFICATION, bags, None, changes={"data.labels.table": str(table)})
    options = ["--test", "--epochs", 12, "--set", "train.lr=0.03"]
    before = tiny.run(*options)
    development = opened(tiny, tmp_path)[1].plan.development(0, 0).bag_ids
    swapped = {"normal": "tumor", "tumor": "normal"}
    in_test = ~labels["slide"].isin(development)
    labels.loc[in_test, "label"] = labels.loc[in_test, "label"].map(swapped)
    labels.to_csv(table, index=False)
    after = tiny.run(*options)
    assert history_of(before) == history_of(after)
    assert history_of(before, "refit") == history_of(after, "refit")
    accuracies = [result_of(out)["metrics"]["test"]["accuracy"] for out in (before, after)]
    assert accuracies[0] > 0.6
    assert sum(accuracies) == pytest.approx(1)


STOP_ONCE = """
import sys
import asmil.engine.fit as engine
from asmil.run import main

learning_rate = engine.learning_rate

def stop_once(*arguments):
    engine.learning_rate = learning_rate
    breakpoint()
    return learning_rate(*arguments)

engine.learning_rate = stop_once
sys.exit(main(sys.argv[1:]))
"""


def test_breakpoint_stops_in_the_training_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)  # Ray sets it in the processes it is started in
    tiny = classification(tmp_path, changes={"data.prefetch_threads": 2})
    (tmp_path / "debug.py").write_text(STOP_ONCE)
    terminal, theirs = pty.openpty()
    words = [tmp_path / "debug.py", tiny.file, "--out", tmp_path / "out", "--epochs", 1]
    try:
        with start(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
            until(terminal, "(Pdb) ")
            for typed, answer in (("p 40+2", "\n42\n"), ("up", "_step("), ("p micro.bags_in_step", "\n4\n")):
                os.write(terminal, f"{typed}\n".encode())
                assert answer in until(terminal, "(Pdb) ").removeprefix(typed)
            os.write(terminal, b"c\n")
            until(terminal, "result.json written")
            assert process.wait(timeout=60) == 0
    finally:
        os.close(theirs)  # kept open until now: a terminal nobody has open may drop its last words
        os.close(terminal)


def until(terminal: int, expected: str, seconds: float = 60) -> str:
    """What a terminal shows up to and including the expected text."""
    shown, deadline = "", time.monotonic() + seconds
    while expected not in shown:
        ready, _, _ = select.select([terminal], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"waited for {expected!r}, got {shown!r}"
        shown += os.read(terminal, 4096).decode().replace("\r", "")
    return shown
