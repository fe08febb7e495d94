"""Wrong input of every kind ends with one paragraph that says what is wrong and what to do, and with its exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from asmil.data import pack
from asmil.data.store import BagStore
from asmil.data.writer import BagWriter
from asmil.engine.checkpoint import CHECKPOINT
from asmil.experiment import load_model
from asmil.run import main
from tests.data.stores import flip_bit, shard_paths
from tests.run_support import (
    CLASSIFICATION,
    NUM_FEATURES,
    SURVIVAL,
    Refusal,
    Tiny,
    class_table,
    classification,
    draw_bags,
    outcome_table,
    refusal,
    result_of,
    start,
    write_experiment,
    write_file,
)

CONFIGURATION_OR_DATA, INTEGRITY, ENVIRONMENT, TRAINING = 2, 3, 4, 5

Refuse = Callable[..., Refusal]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return classification(tmp_path)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refuse:
    """Runs an experiment that must be refused; nothing may then look like a result."""

    def run(tiny: Tiny, *options: object, out: Path | None = None) -> Refusal:
        out = out or tmp_path / "refused"
        words = [str(tiny.file), *map(str, options), "--out", str(out)]
        found = refusal(lambda: main(words), capsys)
        assert not (out / "result.json").exists()
        return found

    return run


def assert_says(found: Refusal, code: int, *texts: object) -> None:
    assert found.code == code, found.message
    for text in texts:
        assert str(text) in found.message


# Configuration


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"train.epochz": 2}, ["train.epochz: unknown key", "'train.epochs'"]),
        ({"model.aggregator.tokns": 2}, ["model.aggregator.tokns: unknown key", "'model.aggregator.tokens'"]),
        ({"trane": {"epochs": 2}}, ["trane: unknown key", "'train'"]),
        ({"train.epochs": "many"}, ["train.epochs: got 'many'", "integer"]),
        ({"train.epochs": 0}, ["train.epochs: got 0", "greater than or equal to 1"]),
        ({"train.lr": -1}, ["train.lr: got -1", "greater than 0"]),
        ({"train": 5}, ["train: got 5", "a section"]),
        ({"train.seed": 10**30}, ["train.seed: got 1000", "less than"]),
        ({"train.optimizer": "adm"}, ["train.optimizer: got 'adm'", "'adam'"]),
        ({"task.kind": "clasification"}, ["task.kind: got 'clasification'", "'classification'"]),
        ({"model.aggregator.heads": 3}, ["inner_dim 8 is not a multiple of aggregator.heads 3"]),
    ],
)
def test_a_wrong_setting_is_named_with_file_and_path(
    tiny: Tiny, refused: Refuse, changes: dict[str, Any], texts: list[str]
) -> None:
    wrong = write_file(tiny.file.parent, CLASSIFICATION, changes)
    assert_says(refused(wrong), CONFIGURATION_OR_DATA, wrong.file, *texts)


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--set", "train.lr"], ["--set train.lr:", "path=value"]),
        (["--set", "=3"], ["--set =3:", "path=value"]),
        (["--set", "train..lr=3"], ["--set train..lr=3:", "path=value"]),
        (["--set", "train.lr=["], ["--set train.lr=[", "column"]),
        (["--set", "train.lr=fast"], ["train.lr: got 'fast'", "number"]),
        (["--epochs", "-1"], ["train.epochs: got -1"]),
        (["--variant", "large"], ["no variant 'large'", "small, wide"]),
        (["--demo"], ["no demo: section", "store of your own"]),
        (["--fold", "99"], ["--fold: got 99", "3 folds, 0 to 2"]),
        (["--fold", "-1"], ["--fold: got -1", "3 folds, 0 to 2"]),
        (["--limit", "0"], ["--limit: got 0", "1 or more"]),
        (["--limit", "4", "--test"], ["--limit and --test", "leave one of them out"]),
        (["--set", "model.inner_dim=auto", "--set", "model.aggregator.heads=3"], ["heads: got 3", "inner width 128"]),
        (["--set", "data.labels.target=lable"], ["data.labels.target", "no column 'lable'", "'label'"]),
        (["--set", "data.labels.target=null"], ["data.labels.target", "task.kind classification", "name the column"]),
        (["--set", "data.bag=patient"], ["data.bag", "data.labels.group"]),
        (["--set", "protocol.scheme=official"], ["protocol.scheme", "data.labels.split"]),
        (["--set", "protocol.folds=13"], ["13 folds", "'normal' has 12 groups", "use fewer folds"]),
        (["--resume"], ["--resume: needs --out with the directory of an earlier run", "leave --resume out"]),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, refused: Refuse, options: list[str], texts: list[str]) -> None:
    tiny = classification(tmp_path, changes={"variants": {"small": {}, "wide": {"model.inner_dim": 16}}})
    assert_says(refused(tiny, *options), CONFIGURATION_OR_DATA, *texts)


def test_resume_needs_a_directory(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    found = refusal(lambda: main([str(tiny.file), "--resume"]), capsys)
    assert_says(found, CONFIGURATION_OR_DATA, "--resume: needs --out", "got None")


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("task: {kind: classification\n", ["line 2"]),
        ("- a\n- b\n", ["expected a mapping of sections"]),
        ("task: {kind: classification}\ntask: {kind: survival}\n", ["line 2", "duplicate key 'task'"]),
        ("task: {kind: classification}\n", ["data: required but missing"]),
    ],
)
def test_a_file_that_is_no_experiment(tiny: Tiny, refused: Refuse, content: str, texts: list[str]) -> None:
    tiny.file.write_text(content)
    assert_says(refused(tiny), CONFIGURATION_OR_DATA, tiny.file, *texts)


def test_an_absent_file_ends_the_process_with_a_message_and_no_traceback(tiny: Tiny) -> None:
    absent = tiny.file.with_name("experimnt.yaml")
    with start(["-m", "asmil.run", absent], stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        told, errors = process.communicate(timeout=60)
    assert process.returncode == CONFIGURATION_OR_DATA
    assert errors == f"error: {absent}: no such file; did you mean {tiny.file}?\n"
    assert told == ""


def test_a_second_run_into_a_directory_is_refused_and_leaves_it_alone(tiny: Tiny, capsys: Any) -> None:
    out = tiny.run("--epochs", 1)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    found = refusal(lambda: main([str(tiny.file), "--out", str(out), "--epochs", "2"]), capsys)
    assert_says(found, CONFIGURATION_OR_DATA, f"--out: {out} is not empty", "another directory", "--resume")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("train.lr=0.5", "train.lr: 0.01 -> 0.5"),
        ("train.epochs=9", "train.epochs: 1 -> 9"),
        ("model.inner_dim=16", "model.inner_dim: 8 -> 16"),
        ("model.anchor=null", "model.anchor.ema_factor: 0.9 -> None"),
    ],
)
def test_resuming_under_other_settings_is_refused(tiny: Tiny, capsys: Any, option: str, text: str) -> None:
    out = tiny.run("--epochs", 1)
    words = [str(tiny.file), "--out", str(out), "--resume", "--set", "train.epochs=1", "--set", option]
    before = (out / "result.json").read_bytes()
    assert_says(refusal(lambda: main(words), capsys), CONFIGURATION_OR_DATA, out, text, "restore them")
    assert (out / "result.json").read_bytes() == before


def test_resuming_on_other_features_is_refused(tiny: Tiny, capsys: Any) -> None:
    out = tiny.run("--epochs", 1)
    shutil.rmtree(tiny.store)
    wider = {name: np.hstack([features_ND, features_ND]) for name, features_ND in draw_bags().items()}
    with BagWriter(tiny.store, num_features=2 * NUM_FEATURES) as writer:
        for slide_id, features_ND in wider.items():
            writer.add(slide_id, features_ND)
        writer.set_labels(class_table(wider))
    found = refusal(lambda: main([str(tiny.file), "--out", str(out), "--resume", "--epochs", "1"]), capsys)
    assert_says(found, CONFIGURATION_OR_DATA, out, "data_id: ", "restore them")


# Stores and labels


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("nowhere", ["no such directory"]),
        ("empty", ["an empty directory"]),
        ("other", ["not a store", "notes.txt"]),
        ("file", ["a file, but a store is a directory"]),
    ],
)
def test_a_missing_store_says_how_to_make_one(tiny: Tiny, refused: Refuse, name: str, texts: list[str]) -> None:
    folder = tiny.file.parent
    (folder / "empty").mkdir()
    (folder / "other").mkdir()
    (folder / "other" / "notes.txt").write_text("x")
    (folder / "file").write_text("x")
    found = refused(tiny, "--set", f"data.store={folder / name}")
    assert_says(found, CONFIGURATION_OR_DATA, folder / name, *texts, "python -m asmil.data.pack", "--demo")


def test_an_unknown_builtin_store_is_not_replaced_by_another(tiny: Tiny, refused: Refuse) -> None:
    found = refused(tiny, "--set", "data.store=builtin:digit")
    assert_says(found, CONFIGURATION_OR_DATA, "data.store", "'digit'", "did you mean builtin:digits?", "builtin:cohort")


def relabelled(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame], **changes: Any) -> Tiny:
    bags = draw_bags()
    return write_experiment(folder, CLASSIFICATION, bags, change(class_table(bags)), changes=changes)


OFFICIAL = {"protocol": {"scheme": "official"}, "data.labels.split": "split"}


def parts(labels: pd.DataFrame, train: slice, test: slice) -> pd.DataFrame:
    """The official split in which these rows are training and test part and all others validate."""
    column = np.full(len(labels), "val", dtype=object)
    column[train], column[test] = "train", "test"
    return labels.assign(split=column)


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        (lambda t: t.iloc[:-2], ["2 bags without a label: s22, s23", "correct the table", "allow_missing"]),
        (lambda t: pd.concat([t, t.iloc[:1].assign(slide="s99")]), ["1 labels without a bag: s99", "allow_missing"]),
        (lambda t: pd.concat([t, t.iloc[:1].assign(label="odd")]), ["'s00' (label: ", "and odd)", "keep one each"]),
        (lambda t: t.assign(label="tumor"), ["'label' has one class in the cohort ('tumor')", "data.labels.target"]),
        (lambda t: t.assign(label=["benign", *t["label"][1:]]), ["class 'benign' of bag 's00'", "task.classes"]),
        (lambda t: t.assign(label=[None, *t["label"][1:]]), ["no class for bag 's00'", "correct or remove"]),
    ],
)
def test_labels_that_do_not_fit_name_the_bags(
    tmp_path: Path, refused: Refuse, change: Callable[[pd.DataFrame], pd.DataFrame], texts: list[str]
) -> None:
    tiny = relabelled(tmp_path, change)
    assert_says(refused(tiny), CONFIGURATION_OR_DATA, tiny.store, *texts)


def test_a_store_without_labels_asks_for_a_table(tmp_path: Path, refused: Refuse) -> None:
    tiny = write_experiment(tmp_path, CLASSIFICATION, draw_bags(), None)
    assert_says(refused(tiny), CONFIGURATION_OR_DATA, tiny.store, "no label table", "data.labels.table")
    found = refused(tiny, "--set", f"data.labels.table={tmp_path / 'labels.csv'}")
    assert_says(found, CONFIGURATION_OR_DATA, tmp_path / "labels.csv", "no such label table")


def test_bags_without_a_patient_are_refused(tiny: Tiny, refused: Refuse) -> None:
    found = refused(tiny, "--set", "protocol.independent_bags=false")
    assert_says(found, CONFIGURATION_OR_DATA, tiny.store, "24 bags have no group", "protocol.independent_bags")


def test_a_patient_in_two_parts_is_refused(tmp_path: Path, refused: Refuse) -> None:
    def change(labels: pd.DataFrame) -> pd.DataFrame:
        patients = ["p-torn" if row in (0, 23) else f"p{row}" for row in range(len(labels))]
        return parts(labels, slice(0, 14), slice(18, 24)).assign(patient=patients)

    tiny = relabelled(tmp_path, change, **OFFICIAL, **{"data.labels.group": "patient"})
    found = refused(tiny)
    assert_says(found, CONFIGURATION_OR_DATA, tiny.store, "'split'", "p-torn (test, train)", "correct the label table")


def test_one_class_in_the_training_part_is_refused(tmp_path: Path, refused: Refuse) -> None:
    def change(labels: pd.DataFrame) -> pd.DataFrame:
        ordered = labels.assign(label=sorted(labels["label"]))
        return parts(ordered, slice(0, 10), slice(18, 24))

    tiny = relabelled(tmp_path, change, **OFFICIAL)
    found = refused(tiny)
    assert_says(found, CONFIGURATION_OR_DATA, tiny.store, "one class in the training fold ('normal')", "fewer folds")


def test_one_class_in_validation_cannot_choose_the_epoch(tmp_path: Path, refused: Refuse) -> None:
    def change(labels: pd.DataFrame) -> pd.DataFrame:
        ordered = labels.assign(label=["tumor"] * 4 + ["normal", "tumor"] * 10)
        return parts(ordered, slice(4, 18), slice(18, 24))

    tiny = relabelled(tmp_path, change, **OFFICIAL)
    out = tiny.run("--epochs", 2)
    metrics = result_of(out)["metrics"]["validation"]
    assert (metrics["macro_auc"], metrics["reasons"]["macro_auc"]) == (None, "one_class")
    found = refused(tiny, "--epochs", 2, "--set", "protocol.epoch_rule=best_validation")
    assert_says(found, TRAINING, "best_validation", "macro_auc", "4 validation bags (one_class)", "use last")


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        ({"event": 0}, ["no events in the training fold", "data.labels.event"]),
        ({"event": 2}, ["'event' is neither 0 nor 1 for 15 bags ('p00'", "use 1 where the event was observed"]),
        ({"months": -1.0}, ["'months' is negative for 15 bags ('p00'", "expected the time"]),
        ({"months": 0.0}, ["'months' is 0 for 15 bags ('p00'", "task.zero_time"]),
        ({"months": "soon"}, ["'months' holds no finite number for 15 bags ('p00'", "'soon'"]),
    ],
)
def test_outcomes_that_cannot_be_used(
    tmp_path: Path, refused: Refuse, change: dict[str, Any], texts: list[str]
) -> None:
    bags = draw_bags(30)
    tiny = write_experiment(tmp_path, SURVIVAL, bags, outcome_table(bags).assign(**change))
    assert_says(refused(tiny), CONFIGURATION_OR_DATA, tiny.store, *texts)


def written(folder: Path, features_ND: np.ndarray) -> Callable[[], None]:
    def write() -> None:
        with BagWriter(folder, num_features=3) as writer:
            writer.add("good", np.ones((2, 3), dtype=np.float32))
            writer.add("bad", features_ND)

    return write


@pytest.mark.parametrize(
    ("features_ND", "texts"),
    [
        (np.array([[1, 2, 3], [np.nan, 1, np.inf]]), ["2 feature values are NaN or infinite", "first in row 1"]),
        (np.array([[1, 2, 7e4]]), ["1 exceed the float16 range", "first in row 0", "wider dtype"]),
        (np.ones((0, 3)), ["0 instances", "expected at least 1", "leave slides without tissue out"]),
        (np.ones((4, 5)), ["shape (4, 5), expected [N, 3]"]),
    ],
)
def test_features_that_cannot_be_stored(tmp_path: Path, capsys: Any, features_ND: np.ndarray, texts: list[str]) -> None:
    found = refusal(written(tmp_path / "store", features_ND), capsys)
    assert_says(found, CONFIGURATION_OR_DATA, "slide 'bad'", *texts)
    assert not (tmp_path / "store").exists()


def test_nan_features_of_another_tool_are_not_converted(tmp_path: Path, capsys: Any) -> None:
    features_ND = np.ones((4, 3), dtype=np.float32)
    features_ND[2, 1] = np.nan
    with h5py.File(tmp_path / "slide7.h5", "w") as file:
        file["features"], file["coords"] = features_ND, np.zeros((4, 2), dtype=np.int64)
    words = [str(tmp_path / "slide7.h5"), "--out", str(tmp_path / "store"), "--mpp", "0.5"]
    found = refusal(lambda: pack.main(words), capsys)
    assert_says(found, CONFIGURATION_OR_DATA, "slide7: ", "1 feature values are NaN", "row 2", "extract the slide")
    assert not (tmp_path / "store").exists()


# Damaged files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_feature_of_training_bag(tiny: Tiny) -> None:
    row = BagStore.open(str(tiny.store)).index.row("s00")
    flip_bit(shard_paths(tiny.store)[row.shard], row.feat_offset + 3)


DAMAGES: dict[str, tuple[Callable[[Tiny], object], list[str]]] = {
    "shard cut": (lambda t: cut(shard_paths(t.store)[0]), ["part-00000.arrow has", "bytes, dataset.json says"]),
    "shard gone": (lambda t: shard_paths(t.store)[0].unlink(), ["part-00000.arrow is missing"]),
    "byte flipped": (flip_feature_of_training_bag, ["part-00000.arrow", "bag 's00'", "checksum mismatch: expected"]),
    "index gone": (lambda t: (t.store / "index.arrow").unlink(), ["index.arrow cannot be read"]),
    "index cut": (lambda t: cut(t.store / "index.arrow"), ["index.arrow has sha256", "dataset.json says"]),
    "labels flipped": (lambda t: flip_bit(t.store / "labels.arrow", 200), ["labels.arrow has sha256"]),
    "facts cut": (lambda t: cut(t.store / "dataset.json"), ["dataset.json: not a JSON object"]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_store_is_not_trained_on(tiny: Tiny, refused: Refuse, name: str) -> None:
    damage, texts = DAMAGES[name]
    damage(tiny)
    found = refused(tiny, "--set", "protocol.scheme=holdout", "--set", "protocol.test_fraction=0.05")
    assert_says(found, INTEGRITY, tiny.store, *texts, "convert again")


def test_without_its_completion_mark_there_is_no_store(tiny: Tiny, refused: Refuse) -> None:
    (tiny.store / "dataset.json").unlink()
    found = refused(tiny)
    assert_says(found, CONFIGURATION_OR_DATA, tiny.store, "dataset.json is missing", "index.arrow", "delete")


def test_an_edited_split_file_is_refused(tiny: Tiny, refused: Refuse) -> None:
    tiny.run("--epochs", 1)
    (path,) = (tiny.store / "splits").iterdir()
    tree = json.loads(path.read_text())
    tree["cuts"][0]["validations"][0].pop()
    path.write_text(json.dumps(tree))
    assert_says(refused(tiny), INTEGRITY, path, "edited or damaged", "restore it")


def test_a_split_of_other_data_is_refused(tiny: Tiny, refused: Refuse) -> None:
    tiny.run("--epochs", 1)
    (path,) = (tiny.store / "splits").iterdir()
    saved = path.read_bytes()
    shutil.rmtree(tiny.store)
    bags = draw_bags(seed=1)
    other = write_experiment(tiny.file.parent, CLASSIFICATION, bags, class_table(bags))
    (tiny.store / "splits").mkdir()
    path.write_bytes(saved)
    assert_says(refused(other), CONFIGURATION_OR_DATA, path, "made with other the stored bags", "another run directory")


def test_without_an_intact_checkpoint_a_run_is_not_resumed(tiny: Tiny, capsys: Any) -> None:
    out = tiny.run("--epochs", 1)
    flip_bit(out / CHECKPOINT, 1000)
    found = refusal(lambda: main([str(tiny.file), "--out", str(out), "--resume", "--epochs", "1"]), capsys)
    assert_says(found, INTEGRITY, out / CHECKPOINT, "checksum does not match", "start again without --resume")


@pytest.mark.parametrize(
    ("damage", "code", "texts"),
    [
        (lambda d: flip_bit(d / "model.safetensors", 2000), INTEGRITY, ["model.safetensors: not the weights"]),
        (lambda d: cut(d / "model.json"), INTEGRITY, ["model.json: damaged"]),
        (lambda d: (d / "model.json").unlink(), CONFIGURATION_OR_DATA, ["no exported model", "asmil.run"]),
        (lambda d: (d / "model.safetensors").unlink(), CONFIGURATION_OR_DATA, ["model.safetensors", "asmil.run"]),
        (lambda d: edit(d, num_features=7), INTEGRITY, ["model.json: damaged or edited", "size mismatch"]),
        (lambda d: edit(d, format="asmil-model/9"), CONFIGURATION_OR_DATA, ["'asmil-model/9'", "'asmil-model/1'"]),
        (lambda d: edit(d, fitted={}), INTEGRITY, ["model.json: damaged or edited"]),
        (lambda d: exchange_weights(d), INTEGRITY, ["model.safetensors: not the weights"]),
    ],
)
def test_a_damaged_export_is_not_loaded(
    tiny: Tiny, capsys: Any, damage: Callable[[Path], object], code: int, texts: list[str]
) -> None:
    out = tiny.run("--epochs", 1)
    damage(out)

    def load() -> None:
        load_model(out)

    assert_says(refusal(load, capsys), code, out, *texts)


def edit(directory: Path, **values: object) -> None:
    tree = json.loads((directory / "model.json").read_text())
    (directory / "model.json").write_text(json.dumps({**tree, **values}))


def exchange_weights(directory: Path) -> None:
    """The weights of another model of the same shape."""
    path = directory / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)


# The machine


def test_an_output_directory_that_cannot_be_made(tiny: Tiny, refused: Refuse) -> None:
    found = refused(tiny, out=tiny.file / "below-a-file")
    assert_says(found, ENVIRONMENT, tiny.file / "below-a-file", "cannot serve as run directory", "another place")


def test_a_data_directory_that_cannot_be_made(tiny: Tiny, refused: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASMIL_DATA", str(tiny.file / "below-a-file"))
    found = refused(tiny, "--set", "data.store=builtin:digits")
    assert_says(found, ENVIRONMENT, tiny.file / "below-a-file", "built-in data sets", "another place")


@pytest.mark.parametrize("device", ["cuda:99", "quantum", "meta", "mps"])
def test_a_device_that_cannot_be_used(tiny: Tiny, refused: Refuse, tmp_path: Path, device: str) -> None:
    found = refused(tiny, "--device", device)
    assert_says(found, ENVIRONMENT, f"train.device: {device!r} is not", "auto")
    assert not (tmp_path / "refused").exists()


def test_a_ledger_that_cannot_be_written_keeps_the_test_part_sealed(tiny: Tiny, refused: Refuse) -> None:
    (tiny.store / "ledger.jsonl").mkdir()
    found = refused(tiny, "--test", "--epochs", 1)
    assert_says(found, ENVIRONMENT, tiny.store / "ledger.jsonl", "the test part stays sealed", "choose another place")


# Training


def test_a_loss_that_is_not_finite_ends_the_training(tiny: Tiny, refused: Refuse) -> None:
    found = refused(tiny, "--set", "train.lr=1e30")
    assert_says(found, TRAINING, "epoch 1, step 2: the gradient is not finite", "lower train.lr (now 1e+30)", "verify")


@pytest.mark.parametrize("options", [[], ["--test"]])
def test_weights_that_diverge_in_the_last_step_are_noticed(tiny: Tiny, refused: Refuse, options: list[str]) -> None:
    found = refused(tiny, *options, "--epochs", 1, "--set", "train.lr=1e30", "--set", "train.bags_per_step=100")
    assert_says(found, TRAINING, "outputs are not finite for bags s", "lower train.lr (now 1e+30)")


def test_features_too_large_to_compute_with(tmp_path: Path, refused: Refuse) -> None:
    bags = draw_bags()
    bags = {name: features_ND * np.float32(3e37) for name, features_ND in bags.items()}
    tiny = write_experiment(tmp_path, CLASSIFICATION, bags, class_table(bags))
    assert_says(refused(tiny), TRAINING, "is not finite", "check the features with python -m asmil.data.verify")
