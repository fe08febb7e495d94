"""The bench counts what a remote store costs in requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from asmil.bench.remote import remote_rows
from asmil.storage import RangedBlocks
from tests.data.stores import draw_bags, write_store


def test_a_remote_store_takes_one_request_per_bag(tmp_path: Path) -> None:
    write_store(tmp_path / "s", draw_bags([3, 40, 7, 500], num_features=8), target_shard_bytes=1)
    [row] = remote_rows(tmp_path / "s")
    assert (row["bags"], row["requests_to_open"], row["requests_per_bag"]) == (4, 2, 1)
    assert 1 <= row["bytes_ratio"] < 1.1, "between the blocks of a bag lies padding only"


def test_requests_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "s", draw_bags([3, 40]))
    fetch = RangedBlocks._fetch
    monkeypatch.setattr(RangedBlocks, "_fetch", lambda *args: [fetch(*args), fetch(*args)][1])
    [row] = remote_rows(tmp_path / "s")
    assert row["requests_per_bag"] == 2
    assert row["bytes_ratio"] > 2
