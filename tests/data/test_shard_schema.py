"""A shard read as Arrow must say what index and `dataset.json` say; tests/faults has the types, widths and nulls."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from asmil.data.store import BagStore
from asmil.data.verify import damages
from tests.data.handmade import FEATURES_ND, SHARD, fixed_list, write_by_hand
from tests.data.stores import draw_bags, write_store
from tests.faults.support import rehash_shard

COLUMN = fixed_list(FEATURES_ND, pa.float16(), 4)


def problems(store: Path) -> list[str]:
    return list(damages(BagStore.open(str(store))))


def test_bags_in_another_order_than_the_index_or_missing_from_it_are_found(tmp_path: Path) -> None:
    assert problems(write_by_hand(tmp_path / "right", [COLUMN] * 2)) == []
    store = write_by_hand(tmp_path / "swapped", [COLUMN] * 2, at={"S0": 1, "S1": 0})
    assert problems(store) == [
        f"shard {SHARD}, bag 'S1': the index says 5 rows, the shard has 5 of 'S0' there; convert again",
        f"shard {SHARD}, bag 'S0': the index says 5 rows, the shard has 5 of 'S1' there; convert again",
    ]
    store = write_by_hand(tmp_path / "fewer", [COLUMN] * 2, at={"S0": 0})
    assert problems(store) == [f"shard {SHARD}: 2 record batches, the index lists 1 bags; convert again"]


def test_two_bags_at_one_place_are_found(tmp_path: Path) -> None:
    (problem,) = problems(write_by_hand(tmp_path / "store", [COLUMN] * 2, at={"S0": 0, "S1": 0}))
    assert problem.startswith(f"shard {SHARD}, bag 'S1': features lie at byte ")


def test_a_shard_with_other_columns_is_found(tmp_path: Path) -> None:
    store = write_by_hand(tmp_path / "store", [COLUMN] * 2)
    schema = pa.schema([pa.field("embedding", COLUMN.type, nullable=False)])
    with pa.ipc.new_file(str(store / SHARD), schema) as writer:
        for _ in range(4):  # no shorter than what the index points into
            writer.write_batch(pa.RecordBatch.from_arrays([COLUMN], schema=schema))
    rehash_shard(store)
    assert f"shard {SHARD}: columns are embedding, dataset.json says features; convert again" in problems(store)


def test_what_is_no_arrow_file_is_named_although_its_hash_is_right(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", draw_bags([3, 2]))
    content = (store / SHARD).read_bytes()
    (store / SHARD).write_bytes(content[:-6] + b"arrow1")
    rehash_shard(store)
    (problem,) = problems(store)
    assert problem.startswith(f"shard {SHARD}: not an Arrow file that can be read (")
