"""Rows 5 to 7: shards whose Arrow schema is not what the store says, though every size, offset and hash agrees."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from asmil.data.store import BagStore
from tests.data.handmade import FEATURES_ND, SHARD, WIDTH, fixed_list, write_by_hand
from tests.data.stores import write_store
from tests.faults.support import INPUT, INTEGRITY, Commands, edit_manifest
from tests.run_support import class_table, classification, draw_bags


def test_row_05_a_shard_of_the_declared_type_passes(tmp_path: Path, commands: Commands) -> None:
    store = write_by_hand(tmp_path / "store", [fixed_list(FEATURES_ND, pa.float16(), 4)] * 2)
    commands.verify(store).succeeded("every byte as written")


@pytest.mark.parametrize(
    ("kind", "width", "found"), [(pa.float32(), 2, "float32 [N, 2]"), (pa.uint16(), 4, "bfloat16 [N, 4]")]
)
def test_row_05_another_dtype_of_the_same_size_is_refused_with_both_types(
    tmp_path: Path, commands: Commands, kind: pa.DataType, width: int, found: str
) -> None:
    store = write_by_hand(tmp_path / "store", [fixed_list(FEATURES_ND, kind, width)] * 2)
    commands.verify(store).refused(
        INTEGRITY, f"shard {SHARD}: features are {found}, dataset.json says float16 [N, 4]", "convert again"
    )


def test_row_05_another_dtype_of_the_same_width_is_not_even_opened(tmp_path: Path, commands: Commands) -> None:
    tiny = classification(tmp_path)
    num = BagStore.open(str(tiny.store)).length("s00")
    edit_manifest(tiny.store, dtype="float16")
    outcome = commands.run(tiny.file, "--out", tmp_path / "out")
    outcome.refused(INTEGRITY, f"that is {num} x 12 float16, expected {num * 12} ({num} x 6 float16)")
    assert not (tmp_path / "out").exists()


def test_row_06_another_width_of_the_same_size_is_refused_with_both_widths(tmp_path: Path, commands: Commands) -> None:
    store = write_by_hand(tmp_path / "store", [fixed_list(FEATURES_ND, pa.float16(), 2)] * 2)
    commands.verify(store).refused(
        INTEGRITY, f"shard {SHARD}: features are float16 [N, 2], dataset.json says float16 [N, 4]", "convert again"
    )


@pytest.mark.parametrize("width", [5, 12])
def test_row_06_a_width_on_which_index_and_manifest_disagree_is_refused_before_anything_is_trained(
    tmp_path: Path, commands: Commands, width: int
) -> None:
    tiny = classification(tmp_path)
    num = BagStore.open(str(tiny.store)).length("s00")
    edit_manifest(tiny.store, num_features=width)
    says = f"that is {num} x 6 float32, expected {num * width * 4} ({num} x {width} float32)"
    outcome = commands.run(tiny.file, "--out", tmp_path / "out")
    outcome.refused(INTEGRITY, f"{tiny.store}: index.arrow contradicts dataset.json: bag 's00' declares ", says)
    assert not (tmp_path / "out").exists()
    commands.verify(tiny.store).refused(INTEGRITY, says, "convert the source again")


@pytest.mark.parametrize("width", [0, 10**8, 10**18, 10**30])
def test_row_06_a_width_that_no_features_have_is_refused(tmp_path: Path, commands: Commands, width: int) -> None:
    store = write_store(tmp_path / "store", draw_bags())
    edit_manifest(store, num_features=width)
    commands.verify(store).refused(INTEGRITY, f"{store}/dataset.json: num_features: Input should be ")


def test_row_06_the_model_takes_the_width_of_the_store_and_nothing_can_say_otherwise(
    tmp_path: Path, commands: Commands
) -> None:
    tiny = classification(tmp_path)
    for key in ("model.in_dim", "model.num_features", "model.aggregator.in_dim"):
        outcome = commands.run(tiny.file, "--set", f"{key}=5", "--out", tmp_path / "out")
        outcome.refused(INPUT, f"{key}: unknown key")
    commands.run(tiny.file, "--epochs", 1, "--out", tmp_path / "out").succeeded("bags, 6 features -> ")
    shutil.rmtree(tiny.store)
    bags = {name: np.hstack([features_ND, features_ND]) for name, features_ND in draw_bags().items()}
    write_store(tiny.store, bags, class_table(bags))
    outcome = commands.run(tiny.file, "--epochs", 1, "--out", tmp_path / "out", "--resume")
    outcome.refused(INPUT, f"{tmp_path}/out was begun with other settings (data_id: ", "restore them")


def test_row_07_a_null_row_of_features_is_refused(tmp_path: Path, commands: Commands) -> None:
    rows = [None if index == 1 else row.tolist() for index, row in enumerate(FEATURES_ND)]
    column = pa.array(rows, pa.list_(pa.float16(), WIDTH))
    store = write_by_hand(tmp_path / "store", [column] * 2, nullable=True)
    commands.verify(store).refused(INTEGRITY, f"shard {SHARD}, bag 'S0': features have 1 null rows", "convert again")


def test_row_07_a_null_value_of_features_is_refused(tmp_path: Path, commands: Commands) -> None:
    rows = FEATURES_ND.tolist()
    rows[1][2] = None
    column = pa.array(rows, pa.list_(pa.float16(), WIDTH))
    store = write_by_hand(tmp_path / "store", [column] * 2)
    commands.verify(store).refused(INTEGRITY, f"shard {SHARD}, bag 'S0': features have 1 null values", "convert again")
