"""Imported splits are used as they are: outer folds or repeated holdouts, validation parts, and bags left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from asmil.data.cohort import Cohort
from asmil.data.config import DataConfig, InnerConfig, LabelColumns, ProtocolConfig
from asmil.data.schema import DATASET_FILE, SPLITS_FILE
from asmil.data.sealed import open_test
from asmil.data.splits import SplitPlan, load_or_make_splits, make_splits
from asmil.data.store import BagStore
from asmil.data.tables.given import GivenFold, GivenSplits
from asmil.data.verify import damages
from asmil.data.writer import BagWriter
from asmil.errors import DataError, IntegrityError

GIVEN = ProtocolConfig(scheme="given", inner=InnerConfig(holdout=0.25))


def names(*rows: int) -> tuple[str, ...]:
    return tuple(f"S{row:02d}" for row in rows)


def fold(train: Sequence[int], test: Sequence[int], val: Sequence[int] = (), name: str = "f") -> GivenFold:
    return GivenFold(name=name, train=names(*train), val=names(*val), test=names(*test))


def given(*folds: GivenFold, **fields: Any) -> GivenSplits:
    return GivenSplits(layout="clam", files={}, folds=folds, **fields)


def make_store(directory: Path, splits: GivenSplits | None, num_slides: int = 12) -> Path:
    """Slides S00, S01, … of patients P0 (S00, S01), P1 (S02, S03), …; every other patient has label 1."""
    labels = pd.DataFrame(
        {
            "slide": names(*range(num_slides)),
            "patient": [f"P{row // 2}" for row in range(num_slides)],
            "label": [row // 2 % 2 for row in range(num_slides)],
        }
    )
    with BagWriter(directory, num_features=1) as writer:
        for slide_id in labels["slide"]:
            writer.add(slide_id, np.ones((1, 1), np.float32))
        writer.set_labels(labels)
        if splits is not None:
            writer.set_splits(splits.to_bytes())
    return directory


def cohort_of(directory: Path, bag: str = "slide") -> Cohort:
    columns = LabelColumns(group="patient", target="label")
    return Cohort.open(DataConfig(store=str(directory), labels=columns, bag=bag), independent_bags=False)


def plan_of(cohort: Cohort, protocol: ProtocolConfig = GIVEN) -> SplitPlan:
    return make_splits(cohort, list(cohort.labels["label"]), protocol, None)


def opened_tests(plan: SplitPlan, tmp_path: Path) -> Mapping[tuple[int, int], tuple[str, ...]]:
    where = [(repeat, number) for repeat in range(plan.repeats) for number in range(plan.folds)]
    return {at: open_test(plan, *at, ledger=tmp_path / "ledger", why="test") for at in where}


def test_disjoint_tests_become_outer_folds_with_the_imported_validation_part(tmp_path: Path) -> None:
    splits = given(fold(range(4, 12), (0, 1), (2, 3)), fold((0, 1, 2, 3, 8, 9, 10, 11), (4, 5), (6, 7)))
    cohort = cohort_of(make_store(tmp_path / "s", splits))
    plan = plan_of(cohort, ProtocolConfig(scheme="given", inner=InnerConfig(folds=2)))
    assert opened_tests(plan, tmp_path) == {(0, 0): names(0, 1), (0, 1): names(4, 5)}
    development = plan.development(0, 0)
    assert development.bag_ids == names(*range(2, 12))
    assert [(part.train, part.validation) for part in development.inner] == [(names(*range(4, 12)), names(2, 3))]
    assert [part.validation for part in plan.development(0, 1).inner] == [names(6, 7)]


def test_overlapping_tests_become_repeats_of_one_fold(tmp_path: Path) -> None:
    splits = given(fold(range(4, 12), range(4)), fold((0, 1, *range(6, 12)), range(2, 6)))
    plan = plan_of(cohort_of(make_store(tmp_path / "s", splits)))
    assert opened_tests(plan, tmp_path) == {(0, 0): names(*range(4)), (1, 0): names(*range(2, 6))}


def test_without_a_validation_part_the_inner_rule_cuts_training_patients(tmp_path: Path) -> None:
    plan = plan_of(cohort_of(make_store(tmp_path / "s", given(fold(range(4, 12), range(4))))))
    (inner,) = plan.development(0, 0).inner
    assert sorted(inner.train + inner.validation) == list(names(*range(4, 12)))
    assert inner.validation
    assert not {int(b[1:]) // 2 for b in inner.train} & {int(b[1:]) // 2 for b in inner.validation}
    folds = plan_of(
        cohort_of(tmp_path / "s"), ProtocolConfig(scheme="given", inner=InnerConfig(folds=2))
    ).development(0, 0)  # fmt: skip
    validated = [bag_id for part in folds.inner for bag_id in part.validation]
    assert sorted(validated) == list(names(*range(4, 12)))


def test_patient_bags_take_the_part_of_their_slides(tmp_path: Path) -> None:
    cohort = cohort_of(make_store(tmp_path / "s", given(fold(range(4, 12), range(4)))), bag="patient")
    plan = plan_of(cohort)
    assert opened_tests(plan, tmp_path) == {(0, 0): ("P0", "P1")}
    torn = make_store(tmp_path / "t", given(fold(range(5, 12), range(5))))
    with pytest.raises(DataError, match=r"imported fold 0 \(f\): the slides of 1 bags .* P2 \(test, train\)"):
        plan_of(cohort_of(torn, bag="patient"))
    with pytest.raises(DataError, match="test part: 1 groups lie on both sides: P2"):
        plan_of(cohort_of(torn))


def test_a_bag_in_no_part_is_refused_or_neither_trained_on_nor_tested(tmp_path: Path) -> None:
    lacking = fold(range(4, 11), range(4))
    with pytest.raises(DataError, match=r"1 labelled bags are in no part: S11; .*--allow-incomplete-splits"):
        plan_of(cohort_of(make_store(tmp_path / "s", given(lacking))))
    cohort = cohort_of(make_store(tmp_path / "t", given(lacking, allow_incomplete=True)))
    plan = plan_of(cohort)
    development = plan.development(0, 0)
    seen = {*development.bag_ids, *opened_tests(plan, tmp_path)[0, 0]}
    seen.update(bag_id for inner in development.inner for bag_id in inner.train + inner.validation)
    assert seen == set(names(*range(11)))
    plan.save(tmp_path / "plan.json")
    assert SplitPlan.load(tmp_path / "plan.json").development(0, 0) == development


def test_every_inner_part_leaves_out_the_slide_in_no_part(tmp_path: Path) -> None:
    splits = given(fold((4, 6, 7, 8, 9, 10, 11), range(4)), allow_incomplete=True)
    cohort = cohort_of(make_store(tmp_path / "s", splits))
    development = plan_of(cohort, ProtocolConfig(scheme="given", inner=InnerConfig(folds=2))).development(0, 0)
    validated = [bag_id for part in development.inner for bag_id in part.validation]
    assert sorted(validated) == list(names(4, 6, 7, 8, 9, 10, 11))
    assert development.bag_ids == names(4, 6, 7, 8, 9, 10, 11)


def test_labels_of_a_part_only(tmp_path: Path) -> None:
    directory = make_store(tmp_path / "s", given(fold(range(4, 12), range(4))))
    table = pd.DataFrame({"slide": names(4, 6, 8), "patient": ["P2", "P3", "P4"], "label": [0, 1, 0]})
    table.to_csv(tmp_path / "t.csv", index=False)
    columns = LabelColumns(table=str(tmp_path / "t.csv"), group="patient")
    data = DataConfig(store=str(directory), labels=columns, allow_missing=True)
    with pytest.raises(DataError, match="no labelled bag is in its part 'test'"):
        plan_of(Cohort.open(data, independent_bags=False))


def test_a_store_without_splits_says_how_to_get_them(tmp_path: Path) -> None:
    cohort = cohort_of(make_store(tmp_path / "s", None))
    with pytest.raises(DataError, match=r"'given', but the store holds no imported splits; .*--splits PATH"):
        plan_of(cohort)
    with pytest.raises(ValueError, match="set repeats to 1, got 2"):
        ProtocolConfig(scheme="given", repeats=2)


def test_another_import_is_noticed_and_the_same_one_is_reused(tmp_path: Path) -> None:
    splits = given(fold(range(4, 12), range(4)))
    cohort, path = cohort_of(make_store(tmp_path / "s", splits)), tmp_path / "plan.json"
    strata = list(cohort.labels["label"])
    plan = load_or_make_splits(path, cohort, strata, GIVEN, None)
    assert load_or_make_splits(path, cohort, strata, GIVEN, None).hash == plan.hash
    other = cohort_of(make_store(tmp_path / "t", given(fold(range(4, 12), range(4), name="g"))))
    assert other.dataset_id == cohort.dataset_id
    with pytest.raises(DataError, match=r"made with other protocol\.imported"):
        load_or_make_splits(path, other, strata, GIVEN, None)


def test_workers_see_no_imported_splits_and_damage_is_found(tmp_path: Path) -> None:
    splits = given(fold(range(4, 12), range(4)))
    directory = make_store(tmp_path / "s", splits)
    store = BagStore.open(str(directory))
    content = store.given_splits()
    assert content is not None
    assert GivenSplits.from_bytes(content, "x") == splits
    assert store.restrict(names(5)).given_splits() is None
    (directory / SPLITS_FILE).write_bytes(content.replace(b"S00", b"S09"))
    with pytest.raises(IntegrityError, match=r"splits\.json has sha256"):
        store.given_splits()
    assert any("splits.json has sha256" in damage for damage in damages(store))
    for damaged in (b"", b"[]", b'{"format": "asmil-given-splits/1"}', content.replace(b"splits/1", b"splits/2")):
        with pytest.raises(IntegrityError, match="not a file of imported splits"):
            GivenSplits.from_bytes(damaged, "x")


def test_a_store_written_before_splits_could_be_imported_still_opens(tmp_path: Path) -> None:
    directory = make_store(tmp_path / "s", None)
    tree = json.loads((directory / DATASET_FILE).read_text())
    assert tree.pop("splits_sha256") is None
    (directory / DATASET_FILE).write_text(json.dumps(tree))
    assert BagStore.open(str(directory)).given_splits() is None


def test_a_failed_conversion_leaves_no_splits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no bags"), BagWriter(tmp_path / "s", num_features=1) as writer:
        writer.set_splits(b"{}")
    assert not (tmp_path / "s").exists()
