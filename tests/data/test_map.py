"""`data.read: map`: slides are views of whole shards in the page cache, of local stores and of cached remote ones."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from asmil.bench.memory import pss_bytes
from asmil.data.batches import TrainLoader, evaluation_batches
from asmil.data.cache import blocks_for
from asmil.data.cohort import Cohort
from asmil.data.config import CacheConfig, DataConfig, LabelColumns
from asmil.data.store import BagStore
from asmil.errors import ConfigError, IntegrityError
from tests.data.stores import draw_bags, flip_bit, shard_paths, write_store
from tests.run_support import class_table

LENGTHS = [5, 3, 4]
MIB = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bags = draw_bags(LENGTHS, num_features=8)
    return write_store(tmp_path / "store", bags, class_table(bags))


def data_of(folder: Path, **settings: object) -> DataConfig:
    fields = {"store": str(folder), "read": "map", "prefetch_threads": 1} | settings
    return DataConfig.model_validate({**fields, "labels": LabelColumns(target="label")})


def cache_of(folder: Path) -> CacheConfig:
    return CacheConfig(directory=str(folder.parent / "cache"), max_gib=1, min_free_gib=0)


def open_store(data: DataConfig) -> BagStore:
    return BagStore.open(data.store, blocks=partial(blocks_for, data))


def is_mapped(tensor: torch.Tensor, path: Path) -> bool:
    """Whether a tensor's memory is a map of the file, as the kernel sees it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, _, last = line.split()[0].partition("-")
        if int(first, 16) <= tensor.data_ptr() < int(last, 16):
            return line.endswith(str(path))
    raise AssertionError("memory that is not mapped at all")


@pytest.mark.parametrize("budget", [1, 100])
def test_batches_of_one_slide_are_views_and_larger_ones_copies(folder: Path, budget: int) -> None:
    mapped, plain = data_of(folder, batch_instances=budget), data_of(folder, batch_instances=budget, read="pread")
    [path] = shard_paths(folder)
    cohort = Cohort.open(mapped, independent_bags=True)
    expected = list(evaluation_batches(Cohort.open(plain, independent_bags=True), cohort.bag_ids, plain))
    found = list(evaluation_batches(cohort, cohort.bag_ids, mapped))
    assert len(found) == len(expected) == (3 if budget == 1 else 1)
    for batch, other in zip(found, expected, strict=True):
        assert torch.equal(batch.features_MD, other.features_MD)
        assert is_mapped(batch.features_MD, path) == (budget == 1)
        assert not is_mapped(other.features_MD, path)


def test_training_batches_are_views_whatever_is_sampled(folder: Path) -> None:
    data = data_of(folder, batch_instances=1, sample_instances=4)
    [path] = shard_paths(folder)
    cohort = Cohort.open(data, independent_bags=True)
    loader = TrainLoader(cohort, cohort.bag_ids, data, bags_per_step=1, seed=0)
    batches = [micro.batch for micro in loader.epoch(0) if micro.batch is not None]
    assert {batch.bag_ids[0]: is_mapped(batch.features_MD, path) for batch in batches} == {
        "S0": False,  # a sample is a copy
        "S1": True,
        "S2": True,
    }


def test_a_slide_written_to_is_read_as_it_was_stored(folder: Path) -> None:
    store = open_store(data_of(folder))
    [path] = shard_paths(folder)
    before = path.read_bytes()
    bag = store.read("S1")
    expected_ND = bag.features_ND.clone()
    bag.features_ND.add_(1)
    again = store.read("S1")
    assert torch.equal(again.features_ND, expected_ND)
    assert not is_mapped(again.features_ND, path)
    assert path.read_bytes() == before


def test_a_remote_store_is_not_mapped_without_a_cache(folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"data.read: 'map' needs shards on this machine, .*local://{folder}; set"):
        open_store(data_of(folder, store=f"local://{folder}"))


def test_a_cached_remote_store_maps_its_copies(folder: Path) -> None:
    store = open_store(data_of(folder, store=f"local://{folder}", cache=cache_of(folder)))
    for opened in (store, pickle.loads(pickle.dumps(store))):
        features_ND = opened.read("S1").features_ND
        [copy] = (folder.parent / "cache").rglob("*.arrow")
        assert is_mapped(features_ND, copy)
        assert torch.equal(features_ND, BagStore.open(str(folder)).read("S1").features_ND)


def test_a_mapped_copy_with_a_flipped_bit_is_fetched_anew(folder: Path) -> None:
    store = open_store(data_of(folder, store=f"local://{folder}", cache=cache_of(folder)))
    expected_ND = store.read("S1").features_ND.clone()
    [copy] = (folder.parent / "cache").rglob("*.arrow")
    flip_bit(copy, store.index.row("S1").feat_offset)
    assert torch.equal(store.read("S1").features_ND, expected_ND)
    assert copy.read_bytes() == shard_paths(folder)[0].read_bytes()
    assert is_mapped(store.read("S1").features_ND, copy)


def test_a_copy_that_was_cut_before_it_is_mapped_is_fetched_anew(folder: Path) -> None:
    data = data_of(folder, store=f"local://{folder}", cache=cache_of(folder))
    expected_ND = open_store(data).read("S1").features_ND
    [copy] = (folder.parent / "cache").rglob("*.arrow")
    replaced = copy.with_name("replaced")
    replaced.touch()
    replaced.rename(copy)
    assert torch.equal(open_store(data).read("S1").features_ND, expected_ND)
    assert copy.read_bytes() == shard_paths(folder)[0].read_bytes()


def test_a_shard_without_room_in_the_cache_is_read_by_range(folder: Path) -> None:
    cache = cache_of(folder).model_copy(update={"min_free_gib": 1e9})
    store = open_store(data_of(folder, store=f"local://{folder}", cache=cache))
    assert torch.equal(store.read("S1").features_ND, BagStore.open(str(folder)).read("S1").features_ND)
    assert list((folder.parent / "cache").rglob("*.arrow")) == []


def test_a_mapped_local_shard_with_a_flipped_bit_is_refused(folder: Path) -> None:
    store = open_store(data_of(folder))
    flip_bit(shard_paths(folder)[0], store.index.row("S1").feat_offset)
    with pytest.raises(IntegrityError, match=r"bag 'S1', features: checksum mismatch"):
        store.read("S1")


def hold_all(data: DataConfig, link: Connection) -> None:
    """Read every slide and keep it; tell what that added to this process; stay until told."""
    store = open_store(data)
    link.send("ready")
    link.recv()
    before = pss_bytes(os.getpid())
    bags = [store.read(slide_id) for slide_id in store.slide_ids]
    link.send("read")
    link.recv()
    link.send((pss_bytes(os.getpid()) - before, sum(float(bag.features_ND[0, 0]) for bag in bags)))
    link.recv()


@pytest.mark.parametrize(("read", "copies"), [("map", 1), ("pread", 2)])
def test_processes_that_map_share_one_copy(tmp_path: Path, read: str, copies: int) -> None:
    """Two processes hold all slides, 24 MiB, at once: together they take that once, or twice."""
    folder = write_store(tmp_path / "store", draw_bags([8_192] * 3, num_features=512))
    context = multiprocessing.get_context("spawn")
    links = [context.Pipe() for _ in range(2)]
    readers = [
        context.Process(target=hold_all, args=(DataConfig(store=str(folder), read=read), theirs), daemon=True)
        for _, theirs in links
    ]
    for reader in readers:
        reader.start()
    try:
        for answer in ("ready", "read"):
            for link, _ in links:
                assert link.poll(60)
                assert link.recv() == answer
            for link, _ in links:
                link.send("on")
        results = [link.recv() for link, _ in links if link.poll(60)]
    finally:
        for reader in readers:
            reader.kill()
            reader.join()
    assert len({truth for _, truth in results}) == 1
    held = 24 * MIB
    assert copies * held * 0.95 < sum(added for added, _ in results) < copies * held + 8 * MIB
