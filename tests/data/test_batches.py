"""Every bag once per epoch, in an order anyone can recompute, in batches that fit, without stray threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asmil.bags import BagBatch
from asmil.data.batches import TrainLoader, evaluation_batches
from asmil.data.cohort import Cohort
from asmil.data.config import DataConfig
from asmil.data.sampling import bag_seed, steps_of_epoch
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


def config(*, threads: int = 0, **options: int | None) -> DataConfig:
    return DataConfig(store="unused", prefetch_threads=threads, **({"batch_instances": 8} | options))


def loader(cohort: Cohort, bag_ids: Sequence[str] | None = None, **options: int) -> TrainLoader:
    arguments = {"bags_per_step": 4, "seed": 0}
    names = ("bags_per_step", "seed", "rank", "world_size", "pin_memory")
    arguments |= {name: options.pop(name) for name in names if name in options}
    return TrainLoader(cohort, cohort.bag_ids if bag_ids is None else bag_ids, config(**options), **arguments)


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


@pytest.mark.parametrize("group_lengths", [False, True])
def test_the_steps_are_those_of_the_sampler(cohort, group_lengths):
    lengths = {bag_id: cohort.length(bag_id) for bag_id in cohort.bag_ids}
    expected = steps_of_epoch(lengths, bags_per_step=3, seed=5, epoch=2, group_lengths=group_lengths)
    epoch = loader(cohort, bags_per_step=3, seed=5, group_lengths=group_lengths).epoch(2)
    steps = [list(part) for _, part in itertools.groupby(epoch, key=lambda micro: micro.step)]
    assert [[bag_id for micro in part for bag_id in micro.batch.bag_ids] for part in steps] == expected


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


@pytest.mark.parametrize("threads", [0, 2])
def test_evaluation_keeps_the_given_order_and_has_no_seeds(cohort, threads):
    bag_ids = ["S5", "S0", "S1", "S2", "S5"]
    batches = list(evaluation_batches(cohort, bag_ids, config(threads=threads)))
    assert [batch.bag_ids for batch in batches] == [("S5",), ("S0", "S1"), ("S2",), ("S5",)]
    assert all(batch.seeds_B is None for batch in batches)
    assert_same_batch(batches[1], BagBatch.pack([cohort.read("S0"), cohort.read("S1")]))
    assert list(evaluation_batches(cohort, [], config(threads=threads))) == []


@pytest.mark.parametrize("budget", [1, 2, 9, 1000])
def test_evaluation_takes_every_instance_of_every_bag(cohort, budget):
    data = config(batch_instances=budget, sample_instances=2, threads=1)
    batches = list(evaluation_batches(cohort, cohort.bag_ids, data))
    assert tuple(bag_id for batch in batches for bag_id in batch.bag_ids) == cohort.bag_ids
    assert [length for batch in batches for length in batch.lengths] == LENGTHS
    rows = torch.cat([cohort.read(bag_id).features_ND for bag_id in cohort.bag_ids])
    assert torch.equal(torch.cat([batch.features_MD for batch in batches]), rows)


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


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 16), st.integers(1, 14), st.integers(1, 30), st.booleans(), st.sampled_from([None, 3]))
def test_ranks_share_the_steps_of_one_process(cohort, world_size, per_step, budget, group_lengths, sample):
    options = {
        "bags_per_step": per_step, "batch_instances": budget,
        "group_lengths": group_lengths, "sample_instances": sample,
    }  # fmt: skip
    whole = {}
    for micro in loader(cohort, **options).epoch(1):
        whole.setdefault(micro.step, []).extend(micro.batch.bag_ids)
    shared = {step: [] for step in whole}
    for rank in range(world_size):
        train = loader(cohort, rank=rank, world_size=world_size, **options)
        micro_batches = list(train.epoch(1))
        assert [micro.step for micro in micro_batches if micro.last_in_step] == list(whole)
        assert [micro.step for micro in micro_batches] == sorted(micro.step for micro in micro_batches)
        for micro in micro_batches:
            assert micro.bags_in_step == len(whole[micro.step])
            if micro.batch is None:
                assert micro.last_in_step
                assert sum(other.step == micro.step for other in micro_batches) == 1
                continue
            assert micro.batch.num_instances <= budget or micro.batch.num_bags == 1
            shared[micro.step].extend(micro.batch.bag_ids)
    assert {step: sorted(bag_ids) for step, bag_ids in shared.items()} == {
        step: sorted(bag_ids) for step, bag_ids in whole.items()
    }


def test_a_rank_without_a_bag_still_comes_to_the_end_of_the_step(cohort):
    ranks = [
        list(loader(cohort, bags_per_step=5, rank=rank, world_size=4, batch_instances=99).epoch(0)) for rank in range(4)
    ]
    assert [[micro.bags_in_step for micro in rank] for rank in ranks] == [[5, 5, 2]] * 4
    last = [rank[-1].batch for rank in ranks]
    assert sorted(0 if batch is None else batch.num_bags for batch in last) == [0, 0, 1, 1]
    assert all(rank[-1].last_in_step for rank in ranks)


@pytest.mark.parametrize("group_lengths", [False, True])
def test_a_run_goes_on_with_the_same_steps_on_another_number_of_ranks(cohort, group_lengths):
    def steps(world_size: int, start_step: int) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for rank in range(world_size):
            train = loader(cohort, bags_per_step=3, rank=rank, world_size=world_size, group_lengths=group_lengths)
            for micro in train.epoch(4, start_step=start_step):
                found.setdefault(micro.step, set()).update(() if micro.batch is None else micro.batch.bag_ids)
        return found

    before = steps(2, 0)
    for world_size in (1, 3, 16):
        assert steps(world_size, 2) == {step: bag_ids for step, bag_ids in before.items() if step >= 2}


def test_instances_per_step_count_what_is_trained_on(cohort):
    assert loader(cohort).instances_per_step == sum(LENGTHS) / 3
    assert loader(cohort, sample_instances=2).instances_per_step == sum(min(length, 2) for length in LENGTHS) / 3
