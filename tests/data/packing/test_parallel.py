"""How many processes convert, and in which order they end, is not to be seen in the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from asmil.data.store import BagStore
from tests.data.packing.support import contents, fault_environment, options, run, set_faults, write_large_slides

NAMES = ["S0", "S1", "S2", "S3", "S4"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_large_slides(tmp_path_factory.mktemp("parallel") / "features", NAMES)


def test_one_and_three_workers_write_the_same_bytes(source: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        run([source], tmp_path / str(workers), options(workers=workers))
    one = contents(tmp_path / "1")
    assert one == contents(tmp_path / "3")
    shards = [f"shards/part-{position:05d}.arrow" for position in range(len(NAMES))]
    assert sorted(one) == ["dataset.json", "index.arrow", *shards]
    assert BagStore.open(str(tmp_path / "1")).slide_ids == tuple(NAMES)


def test_shards_that_end_in_another_order_change_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run([source], tmp_path / "plain", options(workers=2))
    (tmp_path / "once").mkdir()
    set_faults(monkeypatch, read={"S0": "kill"}, once=str(tmp_path / "once"))  # so S1 is finished before S0
    run([source], tmp_path / "mixed", options(workers=2))
    assert (tmp_path / "once/read-S0").exists()
    assert contents(tmp_path / "plain") == contents(tmp_path / "mixed")


def test_a_shard_closes_after_the_slide_that_crosses_its_size(source: Path, tmp_path: Path) -> None:
    run([source], tmp_path / "store", options(shard_mib=2))
    store = BagStore.open(str(tmp_path / "store"))
    assert [store.index.row(name).shard for name in NAMES] == [0, 0, 1, 1, 2]


def test_the_fault_environment_alone_changes_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run([source], tmp_path / "plain")
    for name, value in fault_environment().items():
        monkeypatch.setenv(name, value)
    run([source], tmp_path / "same")
    assert contents(tmp_path / "plain") == contents(tmp_path / "same")
