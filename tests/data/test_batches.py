"""Every bag once per epoch, in an order anyone can recompute, in batches that fit, without stray threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from asmil.bags import BagBatch
from asmil.data.batches import TrainLoader, bag_seed, evaluation_batches
from asmil.data.cohort import Cohort
from asmil.data.store import BagStore
from asmil.errors import IntegrityError
from tests.data.stores import draw_bags, flip_bit, write_store

LENGTHS = [3, 1, 7, 2, 2, 9, 4, 1, 5, 6, 1, 3]


def cohort_of(store: BagStore) -> Cohort:
    labels = pd.DataFrame({"group": list(store.slide_ids)}, index=list(store.slide_ids))
    return Cohort(store, labels, {slide_id: (slide_id,) for slide_id in store.slide_ids})


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    return cohort_of(BagStore.open(str(write_store(tmp_path_factory.mktemp("batches") / "s", draw_bags(LENGTHS)))))


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("asmil-read")]


def loader(cohort: Cohort, bag_ids: Sequence[str] | None = None, **options: int) -> TrainLoader:
    settings = {"bags_per_step": 4, "batch_instances": 8, "seed": 0, "threads": 0} | options
    return TrainLoader(cohort, cohort.bag_ids if bag_ids is None else bag_ids, **settings)


def assert_same_batch(found: BagBatch, expected: BagBatch) -> None:
    assert found.bag_ids == expected.bag_ids
    for name in ("features_MD", "offsets", "coords_M2", "slide_offsets"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.integers(0, len(LENGTHS) - 1), min_size=1),
    st.integers(1, 14),
    st.integers(1, 40),
    st.integers(0, 2**31),
    st.integers(0, 50),
    st.sampled_from([0, 1, 3]),
)
def test_an_epoch_covers_every_bag_once_within_the_budget(cohort, chosen, per_step, budget, seed, epoch, threads):
    bag_ids = [f"S{i}" for i in sorted(chosen)]
    train = loader(cohort, bag_ids, bags_per_step=per_step, batch_instances=budget, seed=seed, threads=threads)
    micro_batches = list(train.epoch(epoch))
    assert not reading_threads()
    assert sorted(bag_id for micro in micro_batches for bag_id in micro.batch.bag_ids) == sorted(bag_ids)
    assert train.steps_per_epoch == -(-len(bag_ids) // per_step)
    steps = [list(part) for _, part in itertools.groupby(micro_batches, key=lambda micro: micro.step)]
    assert [part[0].step for part in steps] == list(range(train.steps_per_epoch))
    for part in steps:
        assert [micro.last_in_step for micro in part] == [False] * (len(part) - 1) + [True]
        assert {micro.bags_in_step for micro in part} == {sum(micro.batch.num_bags for micro in part)}
        for micro, after in itertools.pairwise(part):
            assert micro.batch.num_instances + after.batch.lengths[0] > budget, "the next bag would have fitted"
    assert [part[0].bags_in_step for part in steps[:-1]] == [per_step] * (len(steps) - 1)
    for micro in micro_batches:
        batch = micro.batch
        assert batch.num_instances <= budget or batch.num_bags == 1
        assert_same_batch(batch, BagBatch.pack([cohort.read(bag_id) for bag_id in batch.bag_ids]))
        assert batch.features_MD.dtype == torch.float16
        assert batch.seeds_B.tolist() == [bag_seed(seed, epoch, bag_id) for bag_id in batch.bag_ids]


def order(cohort: Cohort, epoch: int, bag_ids: Sequence[str] | None = None, **options: int) -> list[str]:
    epochs = loader(cohort, bag_ids, **options).epoch(epoch)
    return [bag_id for micro in epochs for bag_id in micro.batch.bag_ids]


def test_the_order_depends_on_seed_and_epoch_only(cohort):
    expected = order(cohort, 3, seed=5)
    assert order(cohort, 3, seed=5, threads=4, batch_instances=1000, bags_per_step=1) == expected
    assert order(cohort, 3, cohort.bag_ids[::-1], seed=5) == expected
    others = [order(cohort, 4, seed=5), order(cohort, 3, seed=6), list(cohort.bag_ids)]
    assert all(other != expected for other in others)
    hashes = {bag_id: xxhash.xxh3_64(f"order/5/3/{bag_id}".encode()).intdigest() for bag_id in cohort.bag_ids}
    assert expected == sorted(hashes, key=hashes.__getitem__)


@pytest.mark.parametrize("start_step", [0, 1, 2, 3])
def test_an_epoch_can_be_entered_at_any_step(cohort, start_step):
    whole = [micro for micro in loader(cohort).epoch(2) if micro.step >= start_step]
    rest = list(loader(cohort).epoch(2, start_step=start_step))
    assert len(rest) == len(whole)
    for found, expected in zip(rest, whole, strict=True):
        assert (found.step, found.bags_in_step, found.last_in_step) == (
            expected.step, expected.bags_in_step, expected.last_in_step,
        )  # fmt: skip
        assert_same_batch(found.batch, expected.batch)
        assert torch.equal(found.batch.seeds_B, expected.batch.seeds_B)


def test_every_order_is_about_equally_likely(cohort):
    bag_ids = cohort.bag_ids[:3]
    counts = dict.fromkeys(itertools.permutations(bag_ids), 0)
    for epoch in range(1200):
        counts[tuple(order(cohort, epoch, bag_ids))] += 1
    chi_square = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_square < 20.5, "99.9 % point of chi-square with 5 degrees of freedom"


def test_bag_seeds_are_63_bits_and_differ(cohort):
    seeds = [bag_seed(s, e, b) for s in range(3) for e in range(3) for b in ("a", "b", "1/a")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert bag_seed(1, 2, "a") == xxhash.xxh3_64(b"bag/1/2/a").intdigest() // 2


@pytest.mark.parametrize("threads", [0, 2])
def test_evaluation_keeps_the_given_order_and_has_no_seeds(cohort, threads):
    bag_ids = ["S5", "S0", "S1", "S2", "S5"]
    batches = list(evaluation_batches(cohort, bag_ids, batch_instances=8, threads=threads))
    assert [batch.bag_ids for batch in batches] == [("S5",), ("S0", "S1"), ("S2",), ("S5",)]
    assert all(batch.seeds_B is None for batch in batches)
    assert_same_batch(batches[1], BagBatch.pack([cohort.read("S0"), cohort.read("S1")]))
    assert list(evaluation_batches(cohort, [], batch_instances=8, threads=threads)) == []


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_damage_surfaces_where_its_batch_would_have_come(tmp_path, threads):
    directory = write_store(tmp_path / "s", draw_bags(LENGTHS))
    cohort = cohort_of(BagStore.open(str(directory)))
    epoch = loader(cohort, threads=threads, batch_instances=1).epoch(0)
    in_order = order(cohort, 0)
    row = cohort.store.index.row(in_order[4])
    flip_bit(directory / "shards/part-00000.arrow", row.feat_offset)
    assert [next(epoch).batch.bag_ids[0] for _ in range(4)] == in_order[:4]
    with pytest.raises(IntegrityError, match=f"bag '{in_order[4]}'"):
        next(epoch)
    assert not reading_threads()
    with pytest.raises(StopIteration):
        next(epoch)


def test_closing_early_stops_the_threads(cohort):
    epoch = loader(cohort, threads=3, batch_instances=1).epoch(0)
    next(epoch)
    assert 1 <= len(reading_threads()) <= 3
    epoch.close()
    assert not reading_threads()


@dataclass(frozen=True)
class CountingCohort(Cohort):
    """Notes which batches were asked for."""

    asked: list[tuple[str, ...]] = field(default_factory=list)

    def read_batch(self, bag_ids, *, seeds=None):
        self.asked.append(tuple(bag_ids))
        return super().read_batch(bag_ids, seeds=seeds)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_no_more_is_read_ahead_than_announced(cohort, threads):
    counting = CountingCohort(cohort.store, cohort.labels, cohort.slides)
    epoch = loader(counting, threads=threads, batch_instances=1).epoch(0)
    for taken in range(1, 5):
        next(epoch)
        assert len(counting.asked) <= taken + max(2, threads)
    epoch.close()
