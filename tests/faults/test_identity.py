"""Rows 11 to 13: ids that occur twice, lie on both sides of a split, have no counterpart, or try to be a path."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from asmil.data.index import table_to_bytes
from asmil.data.store import BagStore
from tests.data.foreign import tiles, write_acmil, write_clam
from tests.data.stores import draw_bags, write_store
from tests.faults.support import INPUT, INTEGRITY, Commands, edit_manifest, snapshot
from tests.run_support import CLASSIFICATION, class_table, write_experiment
from tests.run_support import draw_bags as draw_run_bags

RULE = "allowed are 1 to 128 ASCII letters, digits and . _ + -, the first a letter or digit"
LOOK_ALIKE = "\N{CYRILLIC SMALL LETTER A}bc"
PATH_LIKE = ["../../x", "/etc/x", "a\0b", "s" * 300, "..", "a/../b"]


def test_row_11_slide_ids_that_occur_twice_are_listed_with_both_files(tmp_path: Path, commands: Commands) -> None:
    for place in ("a/s1.h5", "b/s1.h5", "a/s2.h5", "b/s3.h5", "b/s2.h5"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        write_clam(tmp_path / place, *tiles(3))
    before = snapshot(tmp_path)
    commands.pack(tmp_path / "a", tmp_path / "b", "--out", tmp_path / "store", "--workers", 1).refused(
        INPUT,
        "2 slides are given twice",
        *(f"{name!r} in {tmp_path}/a/{name}.h5 and {tmp_path}/b/{name}.h5" for name in ("s1", "s2")),
        "give only one of the files",
    )
    assert snapshot(tmp_path) == before


def test_row_11_a_patient_in_training_and_test_part_is_listed(tmp_path: Path, commands: Commands) -> None:
    bags = draw_run_bags()
    labels = class_table(bags).assign(
        split=["train"] * 14 + ["val"] * 4 + ["test"] * 6,
        patient=["p-torn" if row in (3, 20) else f"p{row}" for row in range(24)],
    )
    changes = {
        "protocol": {"scheme": "official"},
        "data.labels.split": "split",
        "data.labels.group": "patient",
    }
    tiny = write_experiment(tmp_path, CLASSIFICATION, bags, labels, changes=changes)
    commands.run(tiny.file, "--out", tmp_path / "out").refused(
        INPUT, str(tiny.store), "'split'", "p-torn (test, train)", "correct the label table"
    )
    assert not (tmp_path / "out").exists()


def test_row_11_imported_splits_that_tear_a_patient_are_refused(tmp_path: Path, commands: Commands) -> None:
    slides, labels, splits = tmp_path / "slides", tmp_path / "labels.csv", tmp_path / "splits_0.csv"
    slides.mkdir()
    patients = dict(zip("abcdef", ["p1", "p2", "p3", "p4", "p1", "p5"], strict=True))
    for name in patients:
        write_clam(slides / f"{name}.h5", *tiles(3))
    lines = [f"{name},{patient},0" for name, patient in patients.items()]
    labels.write_text("\n".join(["slide_id,case_id,label", *lines]))
    splits.write_text(",train,val,test\n0,a,c,e\n1,b,d,f\n")
    before = snapshot(tmp_path)
    words = ["--labels", labels, "--id-column", "slide_id", "--group-column", "case_id", "--splits", splits]
    commands.pack(slides, "--out", tmp_path / "store", "--workers", 1, *words).refused(
        INPUT, "splits_0.csv: 1 patients have slides in two parts: p1 (train, test)", "correct the split files"
    )
    assert snapshot(tmp_path) == before


def test_row_12_labels_without_bag_and_bags_without_label_are_counted_and_listed_unless_allowed(
    tmp_path: Path, commands: Commands, caplog: pytest.LogCaptureFixture
) -> None:
    bags = draw_run_bags(36)
    strangers = [f"t{index:02d}" for index in range(11)]
    labels = class_table(bags).iloc[:24]
    labels = pd.concat([labels, pd.DataFrame({"slide": strangers, "label": "tumor"})])
    tiny = write_experiment(tmp_path, CLASSIFICATION, bags, labels)
    words: list[Any] = [tiny.file, "--epochs", 1, "--out", tmp_path / "out"]
    commands.run(*words).refused(
        INPUT,
        f"label table of {tiny.store}",
        f"11 labels without a bag: {', '.join(strangers[:10])} and 1 more",
        f"12 bags without a label: {', '.join(list(bags)[24:34])} and 2 more",
        "correct the table, or set data.allow_missing: true",
    )
    assert not (tmp_path / "out").exists()
    commands.run(*words, "--set", "data.allow_missing=true").succeeded("validation (epoch 1): ")
    assert f"11 labels without a bag: {', '.join(strangers)};" in caplog.text
    assert f"12 bags without a label: {', '.join(list(bags)[24:])};" in caplog.text


def uci_file(path: Path, ids: list[str]) -> Path:
    lines = [f"{name},{name}_1+1,{index},2,3,{index % 2}." for index, name in enumerate(ids)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_row_13_ids_that_are_paths_are_refused_and_nothing_else_is_touched(tmp_path: Path, commands: Commands) -> None:
    path = uci_file(tmp_path / "set.data", ["good", *PATH_LIKE])
    before = snapshot(tmp_path)
    words = [path, "--out", tmp_path / "store", "--workers", 1]
    shown = [repr(name[:160]) for name in PATH_LIKE]
    commands.pack(*words).refused(INPUT, f"{len(PATH_LIKE)} bad slide ids", *shown, RULE, "leave them out")
    assert snapshot(tmp_path) == before
    commands.pack(*words, "--skip-bad").succeeded("1 bags")
    assert BagStore.open(str(tmp_path / "store")).slide_ids == ("good",)
    outside = {name: content for name, content in snapshot(tmp_path).items() if not name.startswith(f"{words[2]}")}
    assert outside == before


@pytest.mark.parametrize("slide_id", ["a\nb", "a\x1b[2Jb", "s" * 300, LOOK_ALIKE], ids=range(4))
def test_row_13_group_names_of_one_hdf5_file_follow_the_rule(tmp_path: Path, commands: Commands, slide_id: str) -> None:
    write_acmil(tmp_path / "all.h5", [("good", *tiles(3), 0), (slide_id, *tiles(4), 1)])
    before = snapshot(tmp_path)
    outcome = commands.pack(tmp_path / "all.h5", "--out", tmp_path / "store", "--workers", 1)
    outcome.refused(INPUT, f"slide id {slide_id[:160]!r}", RULE)
    assert snapshot(tmp_path) == before


def test_row_13_file_names_follow_the_rule(tmp_path: Path, commands: Commands) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    names = ["a\nb", LOOK_ALIKE, "..x", "-x", "s" * 200]
    for name in ["good", *names]:
        write_clam(folder / f"{name}.h5", *tiles(3))
    (folder / "..x.h5").rename(folder / "x y.h5")  # a hidden file is left alone
    before = snapshot(tmp_path)
    commands.pack(folder, "--out", tmp_path / "store", "--workers", 1).refused(
        INPUT, "5 bad slide ids", r"'a\nb'", repr(LOOK_ALIKE), "'-x'", "'x y'", repr("s" * 160), RULE
    )
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("slide_id", [*PATH_LIKE, "a\nb", LOOK_ALIKE], ids=range(8))
def test_row_13_an_index_with_such_an_id_is_not_opened(tmp_path: Path, commands: Commands, slide_id: str) -> None:
    store = write_store(tmp_path / "store", draw_bags([3, 2]))
    table = pa.ipc.open_file((store / "index.arrow").read_bytes()).read_all()
    column = pa.array([slide_id, "S1"])
    content = table_to_bytes(table.set_column(0, table.schema.field(0), column))
    (store / "index.arrow").write_bytes(content)
    edit_manifest(store, index_sha256=hashlib.sha256(content).hexdigest())
    before = snapshot(tmp_path)
    commands.verify(store).refused(INTEGRITY, f"slide id {slide_id[:160]!r}", RULE, "convert the source again")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["../outside.arrow", "/etc/passwd", "shards/../../x.arrow", "shards/a\0.arrow"])
def test_row_13_a_store_whose_shards_lie_outside_is_not_opened(tmp_path: Path, commands: Commands, name: str) -> None:
    store = write_store(tmp_path / "store", draw_bags([3, 2]))
    info = BagStore.open(str(store)).info
    (tmp_path / "outside.arrow").write_bytes((store / info.shards[0].name).read_bytes())
    edit_manifest(store, shards=[info.shards[0].model_dump() | {"name": name}])
    commands.verify(store).refused(INTEGRITY, f"{store}/dataset.json: shards.0.name: ", "restore it or convert again")
