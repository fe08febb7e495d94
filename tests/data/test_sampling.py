"""Steps, ranks and rows are functions of their arguments alone: nothing is lost, doubled or unevenly shared."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from asmil.data.sampling import bag_seed, kept_rows, rank_shares, steps_of_epoch

COHORTS = st.lists(st.integers(1, 40), min_size=1, max_size=70).map(
    lambda lengths: {f"b{number}": length for number, length in enumerate(lengths)}
)


def steps(
    lengths: Mapping[str, int], *, bags_per_step: int = 4, seed: int = 0, epoch: int = 0, group_lengths: bool = True
) -> list[list[str]]:
    return steps_of_epoch(
        lengths, bags_per_step=bags_per_step, seed=seed, epoch=epoch, group_lengths=group_lengths
    )  # fmt: skip


def log_normal(num_bags: int, sigma: float, seed: int = 0) -> dict[str, int]:
    draws = np.random.default_rng(seed).lognormal(np.log(8000), sigma, num_bags)
    return {f"slide-{number}": max(1, int(draw)) for number, draw in enumerate(draws)}


@settings(max_examples=150, deadline=None)
@given(COHORTS, st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 99), st.booleans(), st.randoms())
def test_an_epoch_has_every_bag_once_whatever_the_order_it_is_told_in(lengths, size, seed, epoch, grouped, random):
    found = steps(lengths, bags_per_step=size, seed=seed, epoch=epoch, group_lengths=grouped)
    assert sorted(itertools.chain(*found)) == sorted(lengths)
    assert [len(step) for step in found[:-1]] == [size] * (len(found) - 1)
    assert 1 <= len(found[-1]) <= size
    shuffled = random.sample(sorted(lengths.items()), len(lengths))
    assert steps(dict(shuffled), bags_per_step=size, seed=seed, epoch=epoch, group_lengths=grouped) == found


@pytest.mark.parametrize("seed_and_epoch", [(0, 1), (1, 0)])
def test_without_grouping_the_order_is_that_of_the_hashes(seed_and_epoch):
    seed, epoch = seed_and_epoch
    lengths = log_normal(50, 1)
    hashes = {bag_id: xxhash.xxh3_64(f"order/{seed}/{epoch}/{bag_id}".encode()).intdigest() for bag_id in lengths}
    order = sorted(hashes, key=hashes.__getitem__)
    found = steps(lengths, bags_per_step=8, seed=seed, epoch=epoch, group_lengths=False)
    assert found == [order[start : start + 8] for start in range(0, 50, 8)]


def test_other_epochs_and_seeds_form_other_steps_even_from_one_pool():
    lengths = log_normal(320, 0.75)
    first, *others = (
        {frozenset(step) for step in steps(lengths, bags_per_step=32, seed=seed, epoch=epoch)}
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    )
    assert all(len(first & other) <= 1 for other in others)


def test_grouped_steps_come_in_random_order():
    lengths = log_normal(3200, 0.75)
    positions = []
    for epoch in range(30):
        found = steps(lengths, bags_per_step=32, epoch=epoch)
        longest = max(lengths, key=lengths.__getitem__)
        positions.append(next(number for number, step in enumerate(found) if longest in step))
    assert len(set(positions)) > 15
    assert np.mean(positions) == pytest.approx(49.5, abs=4 * 100 / np.sqrt(12 * 30))


def test_what_is_left_over_is_a_plain_sample_at_the_end():
    lengths = log_normal(103, 1)
    order = list(itertools.chain(*steps(lengths, bags_per_step=10, group_lengths=False)))
    assert steps(lengths, bags_per_step=10)[-1] == order[-3:]


@pytest.mark.parametrize("bags_per_step", [1, 8, 16])
def test_few_bags_per_step_are_bags_of_neighbouring_lengths(bags_per_step):
    """A rank has one bag or two: only equal lengths are even."""
    lengths = log_normal(bags_per_step * 50, 0.75)
    ascending = sorted(lengths.values())
    expected = [ascending[start : start + bags_per_step] for start in range(0, len(ascending), bags_per_step)]
    found = steps(lengths, bags_per_step=bags_per_step)
    assert sorted(sorted(lengths[bag_id] for bag_id in step) for step in found) == expected


def imbalance(lengths: Sequence[int], world_size: int) -> float:
    loads = [sum(lengths[position] for position in share) for share in rank_shares(lengths, world_size)]
    return 1 - sum(loads) / world_size / max(loads)


@pytest.mark.parametrize("world_size", range(1, 17))
@pytest.mark.parametrize("sigma", [0.5, 0.75, 1.0])
def test_grouped_steps_keep_ranks_within_five_percent(sigma, world_size):
    lengths = log_normal(10_016, sigma)
    found = steps(lengths, bags_per_step=32)
    assert len(found) == 313
    mean = np.mean([imbalance([lengths[bag_id] for bag_id in step], world_size) for step in found])
    assert mean < 0.05


def test_plain_steps_do_not():
    lengths = log_normal(10_016, 0.75)
    found = steps(lengths, bags_per_step=32, group_lengths=False)
    assert np.mean([imbalance([lengths[bag_id] for bag_id in step], 8) for step in found]) > 0.05


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 16))
def test_shares_are_a_partition_in_order_and_the_same_every_time(lengths, world_size):
    shares = rank_shares(lengths, world_size)
    assert len(shares) == world_size
    assert sorted(itertools.chain(*shares)) == list(range(len(lengths)))
    assert all(share == sorted(share) for share in shares)
    assert shares == rank_shares(list(lengths), world_size)
    if len(lengths) >= world_size:
        assert all(shares)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.integers(1, 4))
def test_the_fullest_rank_is_near_the_best_there_is(lengths, world_size):
    """Longest first is within 4/3 - 1/(3m) of the optimum (Graham 1969); exchanges only improve on it."""
    best = min(
        max(sum(length for length, rank in zip(lengths, ranks, strict=True) if rank == each) for each in ranks)
        for ranks in itertools.product(range(world_size), repeat=len(lengths))
    )
    fullest = max(sum(lengths[position] for position in share) for share in rank_shares(lengths, world_size))
    assert best <= fullest <= best * (4 / 3 - 1 / (3 * world_size)) + 1e-9


@pytest.mark.parametrize(
    ("lengths", "world_size", "fullest"),
    [([5, 5, 4, 4, 3, 3, 3], 3, 9), ([7, 6, 5, 4, 3, 2], 2, 14), ([3, 3, 2, 2, 2], 2, 6), ([9], 3, 9), ([], 2, 0)],
)
def test_exchanges_find_what_longest_first_misses(lengths, world_size, fullest):
    shares = rank_shares(lengths, world_size)
    assert max(sum(lengths[position] for position in share) for share in shares) == fullest


def test_kept_rows_are_a_sorted_draw_without_replacement():
    rows = kept_rows(50, 20, seed=1, epoch=2, bag_id="a")
    assert rows.dtype == np.int64
    assert len(rows) == 20
    assert (np.diff(rows) > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < 50
    assert np.array_equal(rows, kept_rows(50, 20, seed=1, epoch=2, bag_id="a"))
    assert kept_rows(20, 20, seed=1, epoch=2, bag_id="a") is None
    assert kept_rows(19, 20, seed=1, epoch=2, bag_id="a") is None


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 3}, {"bag_id": "b"}])
def test_kept_rows_change_with_seed_epoch_and_bag(change):
    key = {"seed": 1, "epoch": 2, "bag_id": "a"}
    assert not np.array_equal(kept_rows(500, 20, **key), kept_rows(500, 20, **(key | change)))


def test_every_pair_of_rows_is_about_equally_likely():
    counts = Counter(tuple(kept_rows(5, 2, seed=0, epoch=epoch, bag_id="a").tolist()) for epoch in range(2000))
    assert sorted(counts) == list(itertools.combinations(range(5), 2))
    chi_square = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_square < 27.9, "99.9 % point of chi-square with 9 degrees of freedom"


def test_bag_seeds_are_63_bits_and_differ():
    seeds = [bag_seed(s, e, b) for s in range(3) for e in range(3) for b in ("a", "b", "1/a")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert bag_seed(1, 2, "a") == xxhash.xxh3_64(b"bag/1/2/a").intdigest() // 2
