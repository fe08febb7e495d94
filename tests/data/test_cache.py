"""The cache of remote shards: one checked download per machine, what goes for lack of room, what is never touched."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from asmil.config import parse_config
from asmil.data.cache import CachedBlocks, blocks_for
from asmil.data.cache_files import MARKER_FILE
from asmil.data.config import CacheConfig, DataConfig
from asmil.data.store import BagStore
from asmil.errors import ConfigError, EnvironmentProblem, IntegrityError
from asmil.storage import RangedBlocks
from tests.data import remote
from tests.data.remote import RemoteFolder, open_cache, read_shard, read_shards, whole
from tests.data.stores import draw_bags, flip_bit, write_store
from tests.faults.support import snapshot

LENGTHS = [40, 30, 20]
DEADLINE_S = 60


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asmil.data.cache.RANGE_BYTES", remote.PIECE)


def make_store(folder: Path, name: str = "store", **options: int | None) -> RemoteFolder:
    """A remote store of one slide per shard; stores of other names have other contents."""
    bags = draw_bags(LENGTHS, num_features=8, seed=sum(name.encode()))
    write_store(folder / name, bags, target_shard_bytes=1)
    return RemoteFolder(folder / name, folder / f"{name}.requests", **options)  # type: ignore[arg-type]


@pytest.fixture
def location(tmp_path: Path) -> RemoteFolder:
    return make_store(tmp_path)


def config_of(tmp_path: Path, num_bytes: int = 1 << 30, *, min_free_gib: float = 0) -> CacheConfig:
    return CacheConfig(directory=str(tmp_path / "cache"), max_gib=num_bytes / 2**30, min_free_gib=min_free_gib)


def copies(tmp_path: Path, suffix: str = ".arrow") -> list[Path]:
    return sorted((tmp_path / "cache").rglob(f"*{suffix}"))


def cached(tmp_path: Path, location: RemoteFolder) -> list[int]:
    """Which shards of a store have a copy, by position."""
    found = {path.name for path in copies(tmp_path) if path.parent.name == location.info().dataset_id}
    shards = location.info().shards
    return [position for position, shard in enumerate(shards) if any(shard.sha256 in name for name in found)]


def sizes(location: RemoteFolder) -> list[int]:
    return [shard.bytes for shard in location.info().shards]


def test_a_shard_is_fetched_once_and_then_read_from_its_copy(tmp_path: Path, location: RemoteFolder) -> None:
    blocks = open_cache(config_of(tmp_path), location)
    assert location.asked() == []
    for _ in range(2):
        read_shard(blocks, location, 1)
    assert location.asked() == whole(location.info(), 1)
    assert cached(tmp_path, location) == [1]
    read_shards(config_of(tmp_path), location)
    assert location.asked() == whole(location.info())
    for path, shard in zip(copies(tmp_path), location.info().shards, strict=True):
        assert path.read_bytes() == (location.root / shard.name).read_bytes()
    assert copies(tmp_path, ".part") == []


def test_a_store_reads_the_same_through_the_cache(tmp_path: Path, location: RemoteFolder) -> None:
    direct = BagStore.open(str(location.root))
    data = DataConfig(store=f"local://{location.root}", cache=config_of(tmp_path))
    store = BagStore.open(data.store, blocks=partial(blocks_for, data))
    restored = pickle.loads(pickle.dumps(store))
    for slide_id in direct.slide_ids:
        expected = direct.read(slide_id)
        for opened in (store, restored):
            bag = opened.read(slide_id)
            assert torch.equal(bag.features_ND, expected.features_ND)
            assert torch.equal(bag.coords_N2, expected.coords_N2)
    assert cached(tmp_path, location) == [0, 1, 2]


def test_threads_share_one_download(tmp_path: Path, location: RemoteFolder) -> None:
    blocks = open_cache(config_of(tmp_path), location)
    barrier = threading.Barrier(8)

    def read(_: int) -> None:
        barrier.wait(DEADLINE_S)
        for position in range(3):
            read_shard(blocks, location, position)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8), timeout=DEADLINE_S))
    assert location.asked() == whole(location.info())


def test_processes_share_one_download(tmp_path: Path, location: RemoteFolder) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        readers = [pool.submit(read_shards, config_of(tmp_path), location) for _ in range(4)]
        assert all(reader.result(DEADLINE_S) != os.getpid() for reader in readers)
    assert location.asked() == whole(location.info())
    assert copies(tmp_path, ".part") == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_reads_on_and_fetches(tmp_path: Path, location: RemoteFolder) -> None:
    blocks = open_cache(config_of(tmp_path), location)
    read_shard(blocks, location, 0)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: [read_shard(blocks, location, position) for position in (0, 1)]
    )
    child.start()
    child.join(DEADLINE_S)
    assert child.exitcode == 0
    read_shard(blocks, location, 1)
    assert location.asked() == whole(location.info(), 0, 1)


def test_a_shard_that_arrives_damaged_is_fetched_once_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    location = make_store(tmp_path, damaged=1)
    read_shard(open_cache(config_of(tmp_path), location), location, 0)
    assert location.asked() == sorted(2 * whole(location.info(), 0))
    assert "shards/part-00000.arrow: fetched with sha256" in caplog.text


def test_a_shard_that_arrives_damaged_twice_is_refused_with_both_hashes(tmp_path: Path) -> None:
    location = make_store(tmp_path, damaged=3)
    shard = location.info().shards[0]
    with pytest.raises(IntegrityError, match=rf"{shard.name}: sha256 mismatch: expected {shard.sha256}, got [0-9a-f]"):
        read_shard(open_cache(config_of(tmp_path), location), location, 0)
    assert location.asked() == sorted(2 * whole(location.info(), 0))
    assert copies(tmp_path) == copies(tmp_path, ".part") == []


@pytest.mark.parametrize("keep", [0, 100, 300])
def test_a_shard_that_is_cut_in_the_store_is_refused(tmp_path: Path, location: RemoteFolder, keep: int) -> None:
    blocks = open_cache(config_of(tmp_path), location)
    shard = location.info().shards[0]
    os.truncate(location.root / shard.name, keep)
    with pytest.raises(IntegrityError, match=f"{shard.name} ends early: expected {shard.bytes} bytes, got "):
        blocks.read_blocks(shard.name, [remote.Block(0, memoryview(bytearray(8)), 0)])
    (location.root / shard.name).unlink()
    with pytest.raises(FileNotFoundError):
        blocks.read_blocks(shard.name, [remote.Block(0, memoryview(bytearray(8)), 0)])
    assert copies(tmp_path) == copies(tmp_path, ".part") == []


def test_a_copy_cut_in_place_is_fetched_anew(tmp_path: Path, location: RemoteFolder) -> None:
    blocks = open_cache(config_of(tmp_path), location)
    read_shard(blocks, location, 0)
    os.truncate(copies(tmp_path)[0], 10)
    read_shard(blocks, location, 0)  # has it open
    assert location.asked() == sorted(2 * whole(location.info(), 0))
    os.truncate(copies(tmp_path)[0], 10)
    read_shard(open_cache(config_of(tmp_path), location), location, 0)  # opens it
    assert location.asked() == sorted(3 * whole(location.info(), 0))


def test_copies_not_used_for_longest_go_first(tmp_path: Path, location: RemoteFolder) -> None:
    other = make_store(tmp_path, "other")
    limit = sum(sizes(location)) + sizes(other)[0] - 1
    for position in (2, 0, 1):
        read_shard(open_cache(config_of(tmp_path, limit), location), location, position)
    for path, age in zip(copies(tmp_path), (20, 10, 30), strict=True):
        os.utime(path, (1e9 - age, 1e9 - age))
    read_shard(open_cache(config_of(tmp_path, limit), location), location, 2)  # the oldest is used again
    read_shard(open_cache(config_of(tmp_path, limit), other), other, 0)
    assert cached(tmp_path, location) == [1, 2]
    assert cached(tmp_path, other) == [0]


def test_no_more_goes_than_has_to(tmp_path: Path, location: RemoteFolder) -> None:
    other = make_store(tmp_path, "other")
    read_shards(config_of(tmp_path), location)
    exactly = sum(sizes(location)) + sizes(other)[0]
    read_shard(open_cache(config_of(tmp_path, exactly), other), other, 0)
    assert cached(tmp_path, location) == [0, 1, 2]
    assert cached(tmp_path, other) == [0]


def test_a_free_space_floor_evicts_too(tmp_path: Path, location: RemoteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_store(tmp_path, "other")
    read_shards(config_of(tmp_path), location)
    for path, age in zip(copies(tmp_path), (30, 20, 10), strict=True):
        os.utime(path, (1e9 - age, 1e9 - age))
    floor = 2**20
    usage = shutil.disk_usage(tmp_path)._replace(free=floor + sizes(other)[0] - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    read_shard(open_cache(config_of(tmp_path, min_free_gib=floor / 2**30), other), other, 0)
    assert cached(tmp_path, location) == [1, 2]
    assert cached(tmp_path, other) == [0]


def test_what_a_living_reader_uses_stays_and_the_rest_is_read_by_range(
    tmp_path: Path, location: RemoteFolder, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_store(tmp_path, "other")
    limit = sum(sizes(location)[:2])
    first = open_cache(config_of(tmp_path, limit), location)
    for position in range(3):
        read_shard(first, location, position)
    assert cached(tmp_path, location) == [0, 1]
    second = open_cache(config_of(tmp_path, limit), other)
    for position in (0, 1):
        read_shard(second, other, position)
    assert cached(tmp_path, location) == [0, 1]
    assert cached(tmp_path, other) == []
    ranged = [(shard.name, 0, shard.bytes) for shard in other.info().shards[:2]]
    assert other.asked() == ranged
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2, "one for each reader"
    assert "no room for shard shards/part-00002.arrow" in warnings[0]
    assert "read by range from remote://other" in warnings[1]
    del first
    read_shard(open_cache(config_of(tmp_path, limit), other), other, 0)
    assert cached(tmp_path, other) == [0]


def test_room_is_made_by_one_at_a_time(tmp_path: Path, location: RemoteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that count at once would both find room for one."""
    other = make_store(tmp_path, "other")
    readers = [(open_cache(config_of(tmp_path, sizes(location)[0]), store), store, 0) for store in (location, other)]
    meeting, usage = threading.Barrier(2), shutil.disk_usage(tmp_path)
    met = []

    def count(_: Path) -> object:
        with contextlib.suppress(threading.BrokenBarrierError):
            met.append(meeting.wait(0.2))
        return usage

    monkeypatch.setattr(shutil, "disk_usage", count)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda reader: read_shard(*reader), readers, timeout=DEADLINE_S))
    assert met == []
    assert len(copies(tmp_path)) == 1


def test_copies_stay_while_a_process_has_the_store_open(tmp_path: Path, location: RemoteFolder) -> None:
    """The lock is seen from outside, and is gone with the process."""
    context = multiprocessing.get_context("spawn")
    limit = sum(sizes(location))
    other = make_store(tmp_path, "other")
    stalling = RemoteFolder(location.root, tmp_path / "stalling", stall=0)
    reader = context.Process(target=read_shards, args=(config_of(tmp_path), stalling), daemon=True)
    reader.start()
    try:
        remote.wait_until(stalling.stalled.exists, DEADLINE_S)
        kept = open_cache(config_of(tmp_path, limit), location)
        for position in (1, 2):
            read_shard(kept, location, position)
        del kept
        read_shard(open_cache(config_of(tmp_path, limit), other), other, 0)
        assert cached(tmp_path, location) == [1, 2]
        assert cached(tmp_path, other) == []
    finally:
        reader.kill()
        reader.join(DEADLINE_S)
    assert len(copies(tmp_path, ".part")) == 1
    again = open_cache(config_of(tmp_path, limit), other)
    assert copies(tmp_path, ".part") == [], "left by the killed process"
    read_shard(again, other, 0)
    assert cached(tmp_path, other) == [0]


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path, location: RemoteFolder) -> None:
    (tmp_path / "cache" / location.info().dataset_id).mkdir(parents=True)
    (tmp_path / "cache" / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match=r"cache holds other data \(.*notes\.txt\) and no \.asmil-cache"):
        open_cache(config_of(tmp_path), location)
    assert snapshot(tmp_path) == before


def test_other_files_in_a_cache_are_neither_counted_nor_removed(tmp_path: Path, location: RemoteFolder) -> None:
    other = make_store(tmp_path, "other")
    read_shards(config_of(tmp_path), location)
    copy = copies(tmp_path)[0]
    foreign = tmp_path / "elsewhere.arrow"
    foreign.write_bytes(bytes(10_000))
    (copy.parent / "mine.arrow").write_bytes(bytes(10_000))
    (tmp_path / "cache" / "data").mkdir()
    (tmp_path / "cache" / "data" / copy.name).write_bytes(bytes(10_000))
    (copy.parent / f"link.{'0' * 64}.arrow").symlink_to(foreign)
    (tmp_path / "cache" / ("f" * 64)).symlink_to(tmp_path / "cache" / "data")
    mine = [path for path in (tmp_path / "cache").rglob("*") if path.is_symlink() or path.stat().st_size == 10_000]
    limit = sum(sizes(other))
    read_shards(config_of(tmp_path, limit), other)
    assert cached(tmp_path, location) == []
    assert cached(tmp_path, other) == [0, 1, 2]
    assert all(path.exists() for path in [*mine, foreign])
    assert len(mine) == 4


def test_a_cache_smaller_than_a_shard_is_refused_at_once(tmp_path: Path, location: RemoteFolder) -> None:
    limit = max(sizes(location)) - 1
    with pytest.raises(ConfigError, match=rf"max_gib: got .* \({limit} bytes\), but shard .* has {limit + 1} bytes"):
        open_cache(config_of(tmp_path, limit), location)
    assert not (tmp_path / "cache").exists()
    assert isinstance(open_cache(config_of(tmp_path, limit + 1), location), CachedBlocks)


def test_a_directory_that_cannot_be_made_is_an_environment_problem(tmp_path: Path, location: RemoteFolder) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(EnvironmentProblem, match="cannot serve as cache directory"):
        open_cache(config_of(tmp_path), location)


def test_a_relative_directory_means_the_same_in_other_processes(
    tmp_path: Path, location: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = open_cache(config_of(tmp_path).model_copy(update={"directory": "cache"}), location)
    sent = pickle.dumps(blocks)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    read_shard(pickle.loads(sent), location, 0)
    assert cached(tmp_path, location) == [0]


def test_a_local_store_needs_no_cache_and_says_so(
    tmp_path: Path, location: RemoteFolder, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataConfig(store=str(location.root), cache=config_of(tmp_path))
    store = BagStore.open(data.store, blocks=partial(blocks_for, data))
    assert store.read("S0").num_instances == LENGTHS[0]
    assert f"data.cache is not used: the store {location.root} is on a disk or mount" in caplog.text
    assert not (tmp_path / "cache").exists()


def test_without_a_cache_a_remote_store_is_read_by_range(location: RemoteFolder) -> None:
    assert isinstance(blocks_for(DataConfig(store=location.uri), location, location.info()), RangedBlocks)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"directory": "s3://bucket/cache", "max_gib": 1}, "directory.*got the address 's3://bucket/cache'"),
        ({"directory": "", "max_gib": 1}, "directory"),
        ({"directory": "cache"}, "max_gib"),
        ({"directory": "cache", "max_gib": 0}, "max_gib"),
        ({"directory": "cache", "max_gib": 1, "min_free_gib": -1}, "min_free_gib"),
        ({"directory": "cache", "max_gb": 1}, "max_gb: unknown key; did you mean 'cache.max_gib'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(section: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config(DataConfig, {"store": "s", "cache": section}, "file.yaml")


def test_the_marker_says_what_the_directory_is(tmp_path: Path, location: RemoteFolder) -> None:
    open_cache(config_of(tmp_path), location)
    assert "Copies of shards" in (tmp_path / "cache" / MARKER_FILE).read_text()


def test_a_bit_that_flips_in_a_copy_costs_one_more_download(
    tmp_path: Path, location: RemoteFolder, caplog: pytest.LogCaptureFixture
) -> None:
    readers = [open_cache(config_of(tmp_path), location) for _ in range(2)]
    for blocks in readers:
        read_shard(blocks, location, 0)
    flip_bit(copies(tmp_path)[0], sizes(location)[0] // 2)
    for blocks in readers:
        read_shard(blocks, location, 0)
    assert location.asked() == sorted(2 * whole(location.info(), 0)), "both readers met the flipped bit"
    assert sum("bytes have changed" in record.getMessage() for record in caplog.records) == 1


def test_a_process_that_only_gets_the_store_touches_no_disk(tmp_path: Path, location: RemoteFolder) -> None:
    sent = pickle.dumps(open_cache(config_of(tmp_path), location))
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "notes.txt").write_text("of another machine")
    blocks = pickle.loads(sent)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["notes.txt"]
    with pytest.raises(ConfigError, match=r"holds other data \(notes\.txt\)"):
        read_shard(blocks, location, 0)
