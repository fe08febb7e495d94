"""--resume goes on only with the conversion that began, and an unfinished one is never taken for something else."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asmil.data.directory import DirectoryLock
from asmil.data.pack import PackOptions
from asmil.data.packing.matching import LabelOptions
from asmil.data.sources import ReadOptions
from asmil.data.store import BagStore
from asmil.errors import DataError
from tests.data.foreign import tiles, write_trident
from tests.data.packing.support import MIB_ROWS, MIB_WIDTH, contents, options, run, spoil, write_large_slides

NAMES = ["S0", "S1", "S2"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write_large_slides(tmp_path / "features", NAMES)
    spoil(folder / "S1.h5", np.nan)
    return folder


@pytest.fixture
def unfinished(source: Path, tmp_path: Path) -> Path:
    """A conversion with two of three shards done."""
    with pytest.raises(DataError, match="S1: 1 feature values"):
        run([source], tmp_path / "store")
    assert len(list((tmp_path / "store/shards").iterdir())) == 2
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("given", "difference"),
    [
        (options(dtype="float32"), "--dtype was 'float16' and is 'float32'"),
        (options(shard_mib=3), "--shard-mib was 1 and is 3"),
        (options(facts={"mpp": 0.5}), "--mpp was not given and is 0.5"),
    ],
)
def test_other_settings_are_refused_with_the_difference(
    source: Path, unfinished: Path, given: PackOptions, difference: str
) -> None:
    before = contents(unfinished)
    with pytest.raises(DataError, match="this is not the conversion that began here: ") as refused:
        run([source], unfinished, replace(given, resume=True))
    assert f": {difference}; give the same command and sources" in str(refused.value)
    assert contents(unfinished) == before


def test_other_options_of_the_reader_are_refused_with_the_difference(tmp_path: Path) -> None:
    source, out = tmp_path / "features", tmp_path / "store"
    source.mkdir()
    features_ND = np.ones((MIB_ROWS, MIB_WIDTH), "f2")
    np.savez(source / "S0.npz", features=features_ND, embeddings=features_ND)
    np.savez(source / "S1.npz", features=np.nan * features_ND, embeddings=features_ND)
    with pytest.raises(DataError, match="S1: 560000 feature values"):
        run([source], out, options(read=ReadOptions(features="features")))
    with pytest.raises(DataError, match="--features was 'features' and is 'embeddings'; give the same command"):
        run([source], out, options(read=ReadOptions(features="embeddings"), resume=True))


def test_other_sources_are_refused_with_the_difference(source: Path, unfinished: Path) -> None:
    before = contents(unfinished)
    os.utime(source / "S0.h5", ns=(1, 1))
    with pytest.raises(DataError, match=r"S0\.h5 was \d+ bytes, mtime \d+ and is \d+ bytes, mtime 1; give the same"):
        run([source], unfinished, options(resume=True))
    write_trident(source / "S7.h5", *tiles(3, 1_600))
    with pytest.raises(DataError, match=r"S7\.h5 was absent and is \d+ bytes"):
        run([source], unfinished, options(resume=True))
    assert contents(unfinished) == before


def test_other_workers_limits_and_labels_are_no_other_conversion(source: Path, unfinished: Path) -> None:
    table = source.parent / "labels.csv"
    table.write_text("slide,label\n" + "".join(f"{name},1\n" for name in NAMES))
    given = options(resume=True, workers=3, skip_bad=True, labels=LabelOptions(table))
    run([source], unfinished, given)
    store = BagStore.open(str(unfinished))
    assert store.slide_ids == ("S0", "S2")
    labels = store.labels()
    assert labels is not None
    assert len(labels) == 3


def test_without_resume_an_unfinished_conversion_is_refused_and_says_so(source: Path, unfinished: Path) -> None:
    before = contents(unfinished)
    with pytest.raises(DataError, match=r"found an unfinished conversion: .*; give --resume with the same command"):
        run([source], unfinished)
    assert contents(unfinished) == before


def test_a_complete_store_is_left_as_it_is(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    run([source], out, options(skip_bad=True))
    before = contents(out)
    said = run([source], out, options(resume=True))
    told = (
        f"{out}: this store is complete; there is nothing to resume. The sources, labels and settings given now were "
    )
    assert said == [f"{told}not looked at; give another --out to convert with them"]
    assert contents(out) == before


@pytest.mark.parametrize("name", ["notes.txt", "shards/mine.arrow", "index.arrow"])
def test_resume_touches_no_directory_that_a_conversion_did_not_make(source: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "store" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(DataError, match="cannot resume here"):
        run([source], tmp_path / "store", options(resume=True))
    assert list(contents(tmp_path / "store")) == [name]
    assert path.read_text() == "mine"


def test_resume_of_nothing_begins(source: Path, tmp_path: Path) -> None:
    run([source], tmp_path / "plain", options(skip_bad=True))
    run([source], tmp_path / "store", options(skip_bad=True, resume=True))
    assert contents(tmp_path / "store") == contents(tmp_path / "plain")


@pytest.mark.parametrize("damage", ["record", "plan", "shard size", "shard gone"])
def test_state_that_cannot_be_used_is_made_again_or_refused(
    source: Path, unfinished: Path, tmp_path: Path, damage: str
) -> None:
    run([source], tmp_path / "plain", options(skip_bad=True))
    if damage == "record":
        (unfinished / ".pack/part-00000.json").write_text("{")
    elif damage == "plan":
        (unfinished / ".pack/plan.json").write_text(json.dumps({"options": []}))
        with pytest.raises(DataError, match=r"plan\.json: cannot be read; delete .* and convert again"):
            run([source], unfinished, options(skip_bad=True, resume=True))
        return
    elif damage == "shard size":
        os.truncate(unfinished / "shards/part-00000.arrow", 100)
    else:
        (unfinished / "shards/part-00000.arrow").unlink()
    said = run([source], unfinished, options(skip_bad=True, resume=True))
    assert "1 of 3 shards were finished before and are kept" in said
    assert contents(unfinished) == contents(tmp_path / "plain")


def test_labels_of_a_run_that_was_killed_while_it_published_do_not_stay(source: Path, unfinished: Path) -> None:
    (unfinished / "labels.arrow").write_bytes(b"old")
    (unfinished / "splits.json").write_bytes(b"old")
    run([source], unfinished, options(skip_bad=True, resume=True))
    assert {path.name for path in unfinished.iterdir()} == {"dataset.json", "index.arrow", "shards"}


def test_two_conversions_into_one_directory_exclude_each_other(source: Path, tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "store")
    for resume in (False, True):
        with pytest.raises(DataError, match="another process is writing this store; wait for it or choose another"):
            run([source], tmp_path / "store", options(resume=resume))
    lock.release()
    assert not (tmp_path / "store").exists()
    lock = DirectoryLock(tmp_path / "store")
    lock.release()


def test_imported_splits_are_stored_for_the_slides_that_are(source: Path, tmp_path: Path) -> None:
    splits = tmp_path / "splits_0.csv"
    splits.write_text(",train,val,test\n0,S0,,S2\n1,S1,,\n")
    given: dict[str, Any] = {"labels": LabelOptions(splits=(splits,)), "skip_bad": True}
    said = run([source], tmp_path / "store", options(**given))
    found = json.loads((tmp_path / "store/splits.json").read_text())
    assert [(fold["train"], fold["test"]) for fold in found["folds"]] == [(["S0"], ["S2"])]
    assert any("1 ids of the splits have no slide here: S1" in line for line in said)
    splits.write_text(",train,val,test\n0,S0,,S0\n1,S1,,\n")
    with pytest.raises(DataError, match="slides are in two parts: S0"):
        run([source], tmp_path / "again", options(**given))
    assert not (tmp_path / "again").exists()
