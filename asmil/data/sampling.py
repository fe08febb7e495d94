"""Which bags form a step, which rank computes which of them, and which rows are kept: pure functions that read nothing.

Everything is a function of (seed, epoch, the set of bags and their lengths, world size, rank, step). The bags of a step
do not depend on the world size, so a resumed run, or one on another number of ranks, replays the same steps.
"""

from __future__ import annotations

import bisect
import heapq
import random
from collections.abc import Mapping, Sequence

import numpy as np
import xxhash

__all__ = ["bag_seed", "kept_rows", "rank_shares", "steps_of_epoch"]

POOL_STEPS = 50
"""Steps whose bags are grouped by length together: more would balance better and shuffle worse."""

LARGEST_WORLD = 16
"""The longest bag of a grouped step is no more than what each of this many ranks computes, where lengths allow it."""

SHORTEST_SHARE = 0.3
"""The shortest bag that a grouped step looks for, as a share of its longest: unequal bags fill ranks evenly."""

BALANCED = 1.01
"""A step is balanced well enough when its fullest rank has this many times the mean."""


def bag_seed(seed: int, epoch: int, bag_id: str) -> int:
    """The random stream of a bag in an epoch: the same in any batch, on any rank, after any resume.

    Returns:
        A whole number below 2**63.

    Example:
        >>> bag_seed(0, 1, "a") == bag_seed(0, 1, "a") != bag_seed(0, 2, "a")
        True
    """
    return _stream("bag", seed, epoch, bag_id)


def kept_rows(length: int, count: int, *, seed: int, epoch: int, bag_id: str) -> np.ndarray | None:
    """The rows of a bag that an epoch trains on, drawn without replacement and in stored order.

    Args:
        length: Instances of the bag.
        count: How many to keep.
        seed: Seed of the training.
        epoch: The epoch, from 0.
        bag_id: The bag.

    Returns:
        Int64 [count] row numbers, ascending; None if the bag is not longer than that.

    Example:
        >>> kept_rows(3, 4, seed=0, epoch=0, bag_id="a") is None
        True
    """
    if length <= count:
        return None
    generator = np.random.default_rng(_stream("sample", seed, epoch, bag_id))
    return np.sort(generator.choice(length, count, replace=False, shuffle=False))


def steps_of_epoch(
    lengths: Mapping[str, int], *, bags_per_step: int, seed: int, epoch: int, group_lengths: bool
) -> list[list[str]]:
    """The steps of an epoch: every bag once, in an order that does not depend on the order of `lengths`.

    Bags are put in the order of a hash of (seed, epoch, bag id) and cut into steps; what is left over is the last,
    shorter step. With `group_lengths` the full steps are gathered in pools, the bags of a pool are dealt out anew so
    that those of a step can be shared evenly among ranks, and all full steps are put in a random order.

    Args:
        lengths: Instances of each bag.
        bags_per_step: Bags of a full step.
        seed: Seed of the training.
        epoch: The epoch, from 0.
        group_lengths: Whether to group bags by length.

    Returns:
        The bags of each step.
    """
    order = sorted(lengths, key=lambda bag_id: _stream("order", seed, epoch, bag_id))
    steps = [order[start : start + bags_per_step] for start in range(0, len(order), bags_per_step)]
    if not group_lengths:
        return steps
    rest = [steps.pop()] if len(order) % bags_per_step else []
    generator = random.Random(_stream("group", seed, epoch, ""))
    grouped = []
    num_pools = -(-len(steps) // POOL_STEPS)
    for number in range(num_pools):
        pool = steps[number * len(steps) // num_pools : (number + 1) * len(steps) // num_pools]
        grouped += _deal([bag_id for step in pool for bag_id in step], lengths, bags_per_step, generator)
    return [*sorted(grouped, key=lambda _: generator.random()), *rest]


def rank_shares(lengths: Sequence[int], world_size: int) -> list[list[int]]:
    """Share the bags of a step among ranks so that the fullest rank has few instances.

    The longest bag left goes to the emptiest rank; then bags of the fullest rank are moved or exchanged while that
    helps.

    Args:
        lengths: Instances of the bags of the step.
        world_size: Number of ranks.

    Returns:
        The positions in `lengths` that each rank gets, ascending; none where there are fewer bags than ranks.

    Example:
        >>> rank_shares([5, 3, 3, 2, 2, 3], 2)
        [[0, 3, 4], [1, 2, 5]]
    """
    ranks: list[list[int]] = [[] for _ in range(world_size)]
    loads = [(0, rank) for rank in range(world_size)]
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        load, rank = loads[0]
        ranks[rank].append(position)
        heapq.heapreplace(loads, (load + lengths[position], rank))
    _even_out(ranks, lengths)
    return [sorted(rank) for rank in ranks]


def _stream(purpose: str, seed: int, epoch: int, bag_id: str) -> int:
    return int(xxhash.xxh3_64_intdigest(f"{purpose}/{seed}/{epoch}/{bag_id}".encode())) >> 1


def _deal(pool: list[str], lengths: Mapping[str, int], bags_per_step: int, generator: random.Random) -> list[list[str]]:
    """Cut a pool into steps of similar bags: each is led by the longest bag left and looks for lengths spread below it.

    Bags of equal length would fill two ranks evenly but not three. With lengths spread from a share of the longest to
    the longest, long bags and short ones add up to almost the same on any number of ranks.
    """
    shortest = min(1.0, max(SHORTEST_SHARE, 2 * LARGEST_WORLD / bags_per_step - 1))
    left = sorted(pool, key=lengths.__getitem__)
    sizes = [lengths[bag_id] for bag_id in left]
    steps = []
    while left:
        longest = sizes.pop()
        step = [left.pop()]
        for number in range(1, bags_per_step):
            below = (number - 0.5 + generator.random()) / (bags_per_step - 1)
            position = _nearest(sizes, longest * (1 - (1 - shortest) * below))
            sizes.pop(position)
            step.append(left.pop(position))
        steps.append(step)
    return steps


def _nearest(sizes: Sequence[int], wanted: float) -> int:
    """Position of the value next to `wanted` in an ascending list."""
    position = bisect.bisect_left(sizes, wanted)
    if position == len(sizes) or (position > 0 and wanted - sizes[position - 1] < sizes[position] - wanted):
        return position - 1
    return position


def _even_out(ranks: list[list[int]], lengths: Sequence[int]) -> None:
    """Move bags off the fullest rank, or exchange them for shorter ones, until it is near the mean or nothing helps."""
    loads = [sum(lengths[position] for position in rank) for rank in ranks]
    while max(loads) * len(ranks) > BALANCED * sum(loads):
        full = max(range(len(ranks)), key=loads.__getitem__)
        exchanges = [
            (max(loads[full] - gain, loads[rank] + gain), rank, given, taken, gain)
            for rank in range(len(ranks))
            for given in ranks[full]
            for taken in (*ranks[rank], None)
            if 0 < (gain := lengths[given] - (0 if taken is None else lengths[taken])) < loads[full] - loads[rank]
        ]
        if not exchanges:
            return
        _, rank, given, taken, gain = min(exchanges, key=lambda exchange: exchange[0])
        ranks[full].remove(given)
        ranks[rank].append(given)
        if taken is not None:
            ranks[rank].remove(taken)
            ranks[full].append(taken)
        loads[full] -= gain
        loads[rank] += gain
