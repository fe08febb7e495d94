"""Rows 2, 22, 26 and 27 where they concern the cache of remote stores."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from asmil.data.config import CacheConfig
from asmil.data.store import BagStore
from tests.data.remote import PIECE, RemoteFolder, read_shards, wait_until, whole
from tests.data.stores import draw_bags, flip_bit, write_store
from tests.faults.support import ENVIRONMENT, INPUT, INTEGRITY, Commands, snapshot
from tests.run_support import Tiny, classification

DEADLINE_S = 60


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return classification(tmp_path, changes={"train.epochs": 1})


@pytest.fixture
def cached(tiny: Tiny, tmp_path: Path) -> Callable[..., list[object]]:
    """Words that run the experiment on its store as a remote one, through a cache."""

    def words(out: str, max_gib: float = 1, **settings: object) -> list[object]:
        values = {"directory": tmp_path / "cache", "max_gib": max_gib, "min_free_gib": 0} | settings
        section = json.dumps(values, default=str)
        return [
            tiny.file,
            *("--set", f"data.store=local://{tiny.store}"),
            *("--set", f"data.cache={section}"),
            *("--out", tmp_path / out),
        ]

    return words


def shards_of(store: Path) -> list[dict[str, Any]]:
    shards: list[dict[str, Any]] = json.loads((store / "dataset.json").read_text())["shards"]
    return shards


def flip_a_bit_of_every_bag(shard: Path, store: Path) -> None:
    index = BagStore.open(str(store)).index
    for slide_id in index.slide_ids:
        flip_bit(shard, index.row(slide_id).feat_offset + 1)


def copies(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.arrow"))


def test_row_02_a_flipped_bit_of_a_copy_is_healed_and_of_the_store_refused(
    tiny: Tiny, tmp_path: Path, commands: Commands, cached: Callable[..., list[object]]
) -> None:
    commands.run(*cached("first")).succeeded("validation (epoch 1): ")
    (copy,) = copies(tmp_path)
    before = copy.read_bytes()
    flip_a_bit_of_every_bag(copy, tiny.store)
    commands.run(*cached("second")).succeeded("validation (epoch 1): ")
    assert copy.read_bytes() == before
    (shard,) = shards_of(tiny.store)
    flip_a_bit_of_every_bag(tiny.store / shard["name"], tiny.store)
    copy.unlink()
    commands.run(*cached("third")).refused(
        INTEGRITY, f"local://{tiny.store}: shard {shard['name']}: sha256 mismatch: expected {shard['sha256']}, got "
    )
    assert copies(tmp_path) == []


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_row_22_a_disk_that_is_full_while_the_cache_is_filled(
    tiny: Tiny,
    tmp_path: Path,
    commands: Commands,
    cached: Callable[..., list[object]],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    other = RemoteFolder(write_store(tmp_path / "other", draw_bags([4, 3])), tmp_path / "requests")
    read_shards(CacheConfig(directory=str(tmp_path / "cache"), max_gib=1, min_free_gib=0), other)
    before = {path: path.read_bytes() for path in copies(tmp_path)}
    assert before

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (shard,) = shards_of(tiny.store)
    with monkeypatch.context() as patch:
        patch.setattr(f"asmil.data.cache.os.{call}", full)
        commands.run(*cached("out")).refused(
            ENVIRONMENT,
            f"cannot take {shard['bytes']} bytes of shard {shard['name']} (No space left on device, ",
            " bytes free); free space",
        )
    assert {path: path.read_bytes() for path in copies(tmp_path)} == before
    assert list((tmp_path / "cache").rglob("*.part")) == []
    commands.run(*cached("again")).succeeded("validation (epoch 1): ")


@pytest.mark.parametrize("piece", [0, 1, 3])
def test_row_26_the_process_that_fetches_is_killed_and_the_one_that_waits_finishes(tmp_path: Path, piece: int) -> None:
    write_store(tmp_path / "store", draw_bags([60], num_features=8))
    location = RemoteFolder(tmp_path / "store", tmp_path / "requests", stall=piece * PIECE)
    (shard,) = location.info().shards
    config = CacheConfig(directory=str(tmp_path / "cache"), max_gib=1, min_free_gib=0)
    context = multiprocessing.get_context("spawn")
    victim = context.Process(target=read_shards, args=(config, location), daemon=True)
    victim.start()
    wait_until(location.stalled.exists, DEADLINE_S)
    assert location.stalled.read_text() == str(victim.pid)
    (part,) = (tmp_path / "cache").rglob("*.part")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        log = tmp_path / "log"
        survivor = pool.submit(read_shards, config, location, log)
        wait_until(lambda: log.exists() and "waiting for another reader to fetch it" in log.read_text(), DEADLINE_S)
        assert not survivor.done()
        assert copies(tmp_path) == []
        os.kill(victim.pid or 0, signal.SIGKILL)
        process = survivor.result(DEADLINE_S)
    victim.join(DEADLINE_S)
    assert victim.exitcode == -signal.SIGKILL
    assert location.asked(process) == whole(location.info())
    assert [path.read_bytes() for path in copies(tmp_path)] == [(location.root / shard.name).read_bytes()]
    assert not part.exists()
    before = location.asked()
    read_shards(config, location)
    assert location.asked() == before


def test_row_27_a_cache_smaller_than_one_shard(
    tiny: Tiny, tmp_path: Path, commands: Commands, cached: Callable[..., list[object]]
) -> None:
    (shard,) = shards_of(tiny.store)
    commands.run(*cached("out", (shard["bytes"] - 1) / 2**30)).refused(
        INPUT,
        f"data.cache.max_gib: got {(shard['bytes'] - 1) / 2**30:g} ({shard['bytes'] - 1} bytes), but shard "
        f"{shard['name']} of local://{tiny.store} has {shard['bytes']} bytes",
        "or leave data.cache out to read by range",
    )
    assert not (tmp_path / "cache").exists()


def test_row_27_without_room_the_store_is_read_by_range(
    tmp_path: Path, commands: Commands, cached: Callable[..., list[object]], caplog: pytest.LogCaptureFixture
) -> None:
    commands.run(*cached("out", min_free_gib=1e9)).succeeded("validation (epoch 1): ")
    assert caplog.text.count("no room for shard") == 1
    assert copies(tmp_path) == []


def test_row_27_a_store_in_a_local_directory_is_not_cached_nor_touched(
    tiny: Tiny,
    tmp_path: Path,
    commands: Commands,
    cached: Callable[..., list[object]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = [f"data.store={tiny.store}" if str(word).startswith("data.store=") else word for word in cached("out")]
    shards = {name: content for name, content in snapshot(tiny.store).items() if name.endswith(".arrow")}
    commands.run(*words).succeeded("validation (epoch 1): ")
    assert "data.cache is not used" in caplog.text
    assert {name: content for name, content in snapshot(tiny.store).items() if name.endswith(".arrow")} == shards
    assert not (tmp_path / "cache").exists()


def test_row_27_a_directory_of_the_user_is_refused_and_nothing_in_it_is_touched(
    tiny: Tiny, commands: Commands, cached: Callable[..., list[object]]
) -> None:
    before = snapshot(tiny.store)
    commands.run(*cached("out", directory=tiny.store)).refused(
        INPUT, f"data.cache.directory: {tiny.store} holds other data", "name an empty directory"
    )
    assert snapshot(tiny.store) == before
