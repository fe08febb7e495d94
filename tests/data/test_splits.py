"""Groups stay whole, every bag is tested once, and a saved split is reused or refused."""

from __future__ import annotations

import itertools
import json
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asmil.data.cohort import Cohort
from asmil.data.config import DataConfig, InnerConfig, LabelColumns, ProtocolConfig
from asmil.data.sealed import open_test, read_ledger
from asmil.data.splits import SplitPlan, load_or_make_splits, make_splits
from asmil.data.store import BagStore
from asmil.errors import DataError, EnvironmentProblem, IntegrityError
from tests.data.stores import write_store

NUM_BAGS = 60


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> BagStore:
    bags = {f"B{i:02d}": np.full((1, 1), i, np.float32) for i in range(NUM_BAGS)}
    return BagStore.open(str(write_store(tmp_path_factory.mktemp("splits") / "s", bags)))


def cohort_of(store: BagStore, groups: Sequence[str]) -> Cohort:
    """The first bags of the store, in the groups given."""
    bag_ids = store.slide_ids[: len(groups)]
    labels = pd.DataFrame({"group": list(groups)}, index=pd.Index(bag_ids, name="bag_id"))
    return Cohort(store, labels, {bag_id: (bag_id,) for bag_id in bag_ids})


def opened_parts(plan: SplitPlan, tmp_path: Path) -> dict[tuple[int, int], tuple[str, ...]]:
    ledger = tmp_path / "ledger.jsonl"
    folds = itertools.product(range(plan.repeats), range(plan.folds))
    return {where: open_test(plan, *where, ledger=ledger, why="test") for where in folds}


def check_parts(cohort: Cohort, plan: SplitPlan, tests: dict[tuple[int, int], tuple[str, ...]]) -> None:
    """Parts are disjoint, complete, in cohort order, and tear no group."""
    group = dict(zip(cohort.bag_ids, cohort.groups(cohort.bag_ids), strict=True))
    order = {bag_id: position for position, bag_id in enumerate(cohort.bag_ids)}
    for (repeat, fold), test in tests.items():
        development = plan.development(repeat, fold)
        assert sorted(test + development.bag_ids) == sorted(cohort.bag_ids)
        assert not {group[b] for b in test} & {group[b] for b in development.bag_ids}
        for inner in development.inner:
            assert inner.train
            assert inner.validation
            assert sorted(inner.train + inner.validation) == sorted(development.bag_ids)
            assert not {group[b] for b in inner.train} & {group[b] for b in inner.validation}
            for part in (test, development.bag_ids, inner.train, inner.validation):
                assert list(part) == sorted(part, key=order.__getitem__)


@st.composite
def grouped_bags(draw):
    """Groups of 1 to 3 bags, scattered over the store, with at least 6 groups in each of 2 strata."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=12, max_size=20))
    groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    order = draw(st.permutations(range(len(groups))))
    groups = [groups[i] for i in order]
    return groups, [int(name[1:]) % 2 for name in groups]


@settings(max_examples=40, deadline=None)
@given(grouped_bags(), st.integers(2, 4), st.integers(1, 2), st.integers(0, 99), st.booleans())
def test_kfold_tests_every_bag_once_and_tears_no_group(store, tmp_path_factory, drawn, folds, repeats, seed, nested):
    groups, strata = drawn
    cohort = cohort_of(store, groups)
    inner = InnerConfig(folds=2) if nested else InnerConfig(holdout=0.25)
    protocol = ProtocolConfig(folds=folds, repeats=repeats, split_seed=seed, inner=inner)
    plan = make_splits(cohort, strata, protocol, None)
    assert (plan.repeats, plan.folds) == (repeats, folds)
    tests = opened_parts(plan, tmp_path_factory.mktemp("ledger"))
    check_parts(cohort, plan, tests)
    for repeat in range(repeats):
        tested = Counter(bag_id for (r, _), test in tests.items() if r == repeat for bag_id in test)
        assert tested == dict.fromkeys(cohort.bag_ids, 1)
    for development in (plan.development(r, f) for r, f in tests):
        assert len(development.inner) == (2 if nested else 1)
        if nested:
            validated = Counter(bag_id for part in development.inner for bag_id in part.validation)
            assert validated == dict.fromkeys(development.bag_ids, 1)
    assert make_splits(cohort, strata, protocol, None).hash == plan.hash


@settings(max_examples=40, deadline=None)
@given(grouped_bags(), st.floats(0.05, 0.7), st.integers(0, 99))
def test_holdout_takes_its_share_of_every_class(store, tmp_path_factory, drawn, share, seed):
    groups, strata = drawn
    cohort = cohort_of(store, groups)
    protocol = ProtocolConfig(scheme="holdout", test_fraction=share, split_seed=seed, repeats=2)
    plan = make_splits(cohort, strata, protocol, None)
    tests = opened_parts(plan, tmp_path_factory.mktemp("ledger"))
    assert set(tests) == {(0, 0), (1, 0)}
    check_parts(cohort, plan, tests)
    stratum = dict(zip(groups, strata, strict=True))
    for test in tests.values():
        held_out = Counter(stratum[group] for group in set(cohort.groups(test)))
        for value, count in Counter(stratum.values()).items():
            assert 1 <= held_out[value] <= count - 1
            assert abs(held_out[value] - count * share) <= 1


def test_repeats_and_seeds_give_other_splits(store, tmp_path):
    cohort, strata = cohort_of(store, [f"g{i}" for i in range(40)]), [i % 2 for i in range(40)]
    for scheme in ("kfold", "holdout"):
        plan = make_splits(cohort, strata, ProtocolConfig(scheme=scheme, repeats=3), None)
        tests = [open_test(plan, repeat, 0, ledger=tmp_path / "l", why="test") for repeat in range(3)]
        assert len(set(tests)) == 3
        later = make_splits(cohort, strata, ProtocolConfig(scheme=scheme, split_seed=1), None)
        assert open_test(later, 0, 0, ledger=tmp_path / "l", why="test") == tests[1]
        assert later.hash != plan.hash
    validations = {plan.development(repeat, 0).inner[0].validation for repeat in range(3)}
    assert len(validations) == 3


def test_stored_folds_of_the_classic_sets_are_reproduced(shared, tmp_path):
    folder = shared / "data/classic_mil/folds"
    for name in ("musk1", "musk2", "fox", "tiger", "elephant"):
        stored = json.loads((folder / f"{name}_seed0.json").read_text())
        labels = pd.DataFrame({"slide": stored["bag_order"], "target": stored["label"]})
        bags = {bag_id: np.ones((1, 1), np.float32) for bag_id in stored["bag_order"]}
        directory = write_store(tmp_path / name, bags, labels)
        data = DataConfig(store=str(directory), labels=LabelColumns(target="target"))
        cohort = Cohort.open(data, independent_bags=True)
        protocol = ProtocolConfig(folds=10, repeats=5, independent_bags=True)
        plan = make_splits(cohort, list(cohort.labels["target"]), protocol, None)
        for (repeat, fold), test in opened_parts(plan, tmp_path).items():
            assignment = json.loads((folder / f"{name}_seed{repeat}.json").read_text())["fold"]
            assert set(test) == {bag_id for bag_id, its_fold in assignment.items() if its_fold == fold}


def test_a_group_counts_with_its_largest_stratum(store, tmp_path):
    groups = [f"g{i // 3}" for i in range(24)]
    strata = [1 if i % 3 == 1 and i < 12 else 0 for i in range(24)]
    plan = make_splits(cohort_of(store, groups), strata, ProtocolConfig(folds=4), None)
    for test in opened_parts(plan, tmp_path).values():
        positions = {int(bag_id[1:]) // 3 for bag_id in test}
        assert len(positions) == 2
        assert len([position for position in positions if position < 4]) == 1, "one positive group in each fold"


def test_a_class_with_too_few_groups_is_named(store):
    cohort = cohort_of(store, [f"g{i // 2}" for i in range(20)])
    strata = ["rare" if i < 8 else "usual" for i in range(20)]
    with pytest.raises(DataError, match="the cohort into 5 folds: class 'rare' has 4 groups, expected at least 5"):
        make_splits(cohort, strata, ProtocolConfig(folds=5), None)
    with pytest.raises(DataError, match="training part of fold 0 into 4 folds: class 'rare' has 3 groups"):
        make_splits(cohort, strata, ProtocolConfig(folds=4, inner=InnerConfig(folds=4)), None)
    alone = ["rare" if i < 2 else "usual" for i in range(20)]
    with pytest.raises(DataError, match="class 'rare' has 1 groups, expected at least 2"):
        make_splits(cohort, alone, ProtocolConfig(scheme="holdout"), None)
    with pytest.raises(DataError, match="leave nothing to hold out"):
        make_splits(cohort_of(store, list("abcd")), [0, 0, 1, 1], ProtocolConfig(folds=2), None)


def official_series(cohort: Cohort, values: Sequence[object]) -> pd.Series:
    return pd.Series(list(values), index=cohort.labels.index, name="fold_of_paper", dtype=object)


def test_an_official_split_is_taken_as_it_is(store, tmp_path):
    cohort = cohort_of(store, [f"g{i // 2}" for i in range(24)])
    strata = [i // 2 % 2 for i in range(24)]
    values = ["train"] * 12 + ["val"] * 4 + ["test"] * 8
    protocol = ProtocolConfig(scheme="official", inner=InnerConfig(folds=3))
    plan = make_splits(cohort, strata, protocol, official_series(cohort, values)[::-1])
    assert open_test(plan, 0, 0, ledger=tmp_path / "l", why="test") == cohort.bag_ids[16:]
    development = plan.development(0, 0)
    assert development.bag_ids == cohort.bag_ids[:16]
    assert [(part.train, part.validation) for part in development.inner] == [
        (cohort.bag_ids[:12], cohort.bag_ids[12:16])
    ]
    without_val = ["train"] * 16 + ["test"] * 8
    plan = make_splits(cohort, strata, protocol, official_series(cohort, without_val))
    assert len(plan.development(0, 0).inner) == 3
    check_parts(cohort, plan, opened_parts(plan, tmp_path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["train", "test", "train", "test"], "1 groups lie in more than one part: g0 \\(test, train\\)"),
        (["train", "train", "val", "val"], "no bag is marked 'test'"),
        (["test", "test", "val", "val"], "no bag is marked 'train'"),
        (["train", "train", "test", "Test"], "1 bags have a value other than train, val, test: B03='Test'"),
        (["train", None, "test", np.nan], "2 bags have a value .*: B01='', B03=''"),
    ],
)
def test_unusable_official_splits_are_refused(store, values, message):
    cohort = cohort_of(store, ["g0", "g0", "g1", "g2"])
    with pytest.raises(DataError, match=f"'fold_of_paper'.*{message}") as caught:
        make_splits(cohort, [0] * 4, ProtocolConfig(scheme="official"), official_series(cohort, values))
    assert caught.value.exit_code == 2


def test_another_official_column_or_part_is_another_split(store, tmp_path):
    cohort = cohort_of(store, [f"g{i}" for i in range(12)])
    strata, protocol, path = [i % 2 for i in range(12)], ProtocolConfig(scheme="official"), tmp_path / "splits.json"
    values = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    official = official_series(cohort, values)
    plan = load_or_make_splits(path, cohort, strata, protocol, official)
    assert load_or_make_splits(path, cohort, strata, protocol, official[::-1]).hash == plan.hash
    renamed = official.rename("fold_of_others")
    moved = official_series(cohort, ["test", *values[1:]])
    for other, told in (
        (renamed, r"split_column \(saved 'fold_of_paper', now 'fold_of_others'\)"),
        (moved, "split_parts"),
    ):
        with pytest.raises(DataError, match=rf"made with other protocol\.{told}"):
            load_or_make_splits(path, cohort, strata, protocol, other)
        assert make_splits(cohort, strata, protocol, other).hash != plan.hash


def test_the_official_scheme_needs_its_column(store):
    cohort = cohort_of(store, ["g0", "g1"])
    with pytest.raises(DataError, match=r"needs data\.labels\.split"):
        make_splits(cohort, [0, 0], ProtocolConfig(scheme="official"), None)


@pytest.fixture
def small(store):
    return cohort_of(store, [f"g{i}" for i in range(20)]), [i % 2 for i in range(20)]


def test_a_saved_split_is_reused_even_after_a_label_was_corrected(small, tmp_path):
    cohort, strata = small
    path = tmp_path / "splits.json"
    plan = load_or_make_splits(path, cohort, strata, ProtocolConfig(), None)
    content = path.read_bytes()
    assert SplitPlan.load(path).hash == plan.hash
    corrected = load_or_make_splits(path, cohort, strata[::-1], ProtocolConfig(epoch_rule="best_validation"), None)
    assert corrected.hash == plan.hash != make_splits(cohort, [0] * 20, ProtocolConfig(), None).hash
    assert corrected.development(0, 3) == plan.development(0, 3)
    assert path.read_bytes() == content


def test_a_saved_split_of_something_else_is_refused(small, tmp_path, store):
    cohort, strata = small
    path = tmp_path / "splits.json"
    load_or_make_splits(path, cohort, strata, ProtocolConfig(), None)
    with pytest.raises(DataError, match=r"protocol\.split_seed \(saved 0, now 1\)"):
        load_or_make_splits(path, cohort, strata, ProtocolConfig(split_seed=1), None)
    with pytest.raises(DataError, match=r"protocol\.inner \(saved {'holdout': 0.15}, now {'folds': 2}\)"):
        load_or_make_splits(path, cohort, strata, ProtocolConfig(inner=InnerConfig(folds=2)), None)
    regrouped = cohort_of(store, ["g1", *(f"g{i}" for i in range(1, 20))])
    with pytest.raises(DataError, match="the labelled bags or their groups"):
        load_or_make_splits(path, regrouped, strata, ProtocolConfig(), None)
    other = write_store(tmp_path / "other", {bag_id: np.zeros((1, 1), np.float32) for bag_id in cohort.bag_ids})
    moved = Cohort(BagStore.open(str(other)), cohort.labels, cohort.slides)
    with pytest.raises(DataError, match="made with other the stored bags"):
        load_or_make_splits(path, moved, strata, ProtocolConfig(), None)


def test_an_edited_split_file_is_refused(small, tmp_path):
    cohort, strata = small
    path = tmp_path / "splits.json"
    plan = make_splits(cohort, strata, ProtocolConfig(), None)
    plan.save(path)
    tree = json.loads(path.read_text())
    moved = tree["cuts"][0]["test"].pop()
    tree["cuts"][1]["test"].append(moved)
    path.write_text(json.dumps(tree))
    with pytest.raises(IntegrityError, match=r"validation part: .* from elsewhere|edited or damaged"):
        SplitPlan.load(path)
    for content in ("", "[]", "{}", '{"hash": "x"}', "[" * 100_000):
        path.write_text(content)
        with pytest.raises(IntegrityError, match="not a split file"):
            SplitPlan.load(path)
    with pytest.raises(DataError, match="no such split file"):
        SplitPlan.load(tmp_path / "absent.json")


def test_what_workers_get_holds_no_test_id(small, tmp_path):
    cohort, strata = small
    plan = make_splits(cohort, strata, ProtocolConfig(inner=InnerConfig(folds=2)), None)
    for fold in range(5):
        test = open_test(plan, 0, fold, ledger=tmp_path / "l", why="test")
        blob = pickle.dumps((plan.development(0, fold), cohort.restrict(plan.development(0, fold).bag_ids)))
        assert not [bag_id for bag_id in test if bag_id.encode() in blob]


def test_opening_the_test_part_leaves_a_line_first(small, tmp_path):
    cohort, strata = small
    plan = make_splits(cohort, strata, ProtocolConfig(), None)
    ledger = tmp_path / "ledger.jsonl"
    assert read_ledger(ledger) == []
    open_test(plan, 0, 2, ledger=ledger, why="python -m asmil.run --test")
    open_test(plan, 0, 0, ledger=ledger, why="final")
    entries = read_ledger(ledger)
    assert [(entry["repeat"], entry["fold"], entry["why"]) for entry in entries] == [
        (0, 2, "python -m asmil.run --test"), (0, 0, "final"),
    ]  # fmt: skip
    assert {(entry["dataset_id"], entry["split"]) for entry in entries} == {(cohort.dataset_id, plan.hash)}
    with pytest.raises(DataError, match="no fold 5 of repeat 0: this split has 1 repeats of 5 folds"):
        open_test(plan, 0, 5, ledger=ledger, why="mistake")
    assert read_ledger(ledger) == entries


def test_without_a_ledger_the_seal_stays_closed(small, tmp_path):
    cohort, strata = small
    plan = make_splits(cohort, strata, ProtocolConfig(), None)
    with pytest.raises(EnvironmentProblem, match="the test part stays sealed"):
        open_test(plan, 0, 0, ledger=tmp_path / "missing" / "ledger.jsonl", why="x")
    damaged = tmp_path / "ledger.jsonl"
    damaged.write_text('{"fold": 0}\n{"fold"')
    with pytest.raises(IntegrityError, match=r"ledger\.jsonl: line 2 is not a ledger entry"):
        read_ledger(damaged)


def test_a_plan_describes_itself(small):
    cohort, strata = small
    plan = make_splits(cohort, strata, ProtocolConfig(), None)
    assert plan.describe().startswith("20 bags of 20 groups; scheme kfold, folds 5, repeats 1, split_seed 0, inner ")
    assert plan.describe().endswith(f"split {plan.hash}")
