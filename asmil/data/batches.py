"""From a cohort to packed micro-batches: a deterministic order, a bound on memory, and threads that read ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TypeVar

import xxhash

from asmil.bags import BagBatch
from asmil.data.cohort import Cohort

__all__ = ["MicroBatch", "TrainLoader", "bag_seed", "evaluation_batches"]

LOOK_AHEAD = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


def bag_seed(seed: int, epoch: int, bag_id: str) -> int:
    """The random stream of a bag in an epoch: the same in any batch, on any rank, after any resume.

    Returns:
        A whole number below 2**63.

    Example:
        >>> bag_seed(0, 1, "a") == bag_seed(0, 1, "a") != bag_seed(0, 2, "a")
        True
    """
    return _stream("bag", seed, epoch, bag_id)


def _stream(purpose: str, seed: int, epoch: int, bag_id: str) -> int:
    return int(xxhash.xxh3_64_intdigest(f"{purpose}/{seed}/{epoch}/{bag_id}".encode())) >> 1


@dataclass(frozen=True)
class MicroBatch:
    """A part of an optimizer step that is computed at once.

    Attributes:
        batch: The bags.
        step: Number of the step in its epoch, from 0.
        bags_in_step: Bags of the whole step, by which losses are divided.
        last_in_step: Whether the optimizer steps after this micro-batch.
    """

    batch: BagBatch
    step: int
    bags_in_step: int
    last_in_step: bool


@dataclass(frozen=True)
class _Plan:
    bag_ids: tuple[str, ...]
    step: int
    bags_in_step: int
    last_in_step: bool


class TrainLoader:
    """Training bags in a new order each epoch, cut into steps and steps into micro-batches.

    The order is a pure function of (seed, epoch) and the set of bags, not of the order they are given in. Every bag
    comes once per epoch; the last step may have fewer bags.

    Args:
        cohort: Where the bags are.
        bag_ids: The training bags.
        bags_per_step: Bags of an optimizer step.
        batch_instances: Upper bound of instances in a micro-batch; a larger bag is one of its own, never cut.
        seed: Seed of order and of the bags' random streams.
        threads: Threads that read ahead; 0 reads when asked.
    """

    def __init__(
        self,
        cohort: Cohort,
        bag_ids: Sequence[str],
        *,
        bags_per_step: int,
        batch_instances: int,
        seed: int,
        threads: int,
    ) -> None:
        self._cohort = cohort
        self._lengths = {bag_id: cohort.length(bag_id) for bag_id in bag_ids}
        self._bags_per_step = bags_per_step
        self._batch_instances = batch_instances
        self._seed = seed
        self._threads = threads

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-len(self._lengths) // self._bags_per_step)

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[MicroBatch]:
        """The micro-batches of an epoch; closing the iterator stops the threads.

        Args:
            epoch: The epoch, from 0.
            start_step: The first step that is wanted; the ones before are skipped unread.

        Raises:
            IntegrityError: Stored bytes are damaged; raised where the batch would have come.
        """

        def read(plan: _Plan) -> MicroBatch:
            seeds = [bag_seed(self._seed, epoch, bag_id) for bag_id in plan.bag_ids]
            batch = self._cohort.read_batch(plan.bag_ids, seeds=seeds)
            return MicroBatch(batch, plan.step, plan.bags_in_step, plan.last_in_step)

        return _read_ahead(self._plans(epoch, start_step), read, self._threads)

    def _plans(self, epoch: int, start_step: int) -> Iterator[_Plan]:
        order = sorted(self._lengths, key=lambda bag_id: _stream("order", self._seed, epoch, bag_id))
        for step in range(start_step, self.steps_per_epoch):
            bag_ids = order[step * self._bags_per_step : (step + 1) * self._bags_per_step]
            parts = _fill(bag_ids, [self._lengths[bag_id] for bag_id in bag_ids], self._batch_instances)
            for position, part in enumerate(parts, start=1):
                yield _Plan(part, step, len(bag_ids), last_in_step=position == len(parts))


def evaluation_batches(
    cohort: Cohort, bag_ids: Sequence[str], *, batch_instances: int, threads: int
) -> Iterator[BagBatch]:
    """The bags in the given order, packed up to a number of instances; without random streams.

    Args:
        cohort: Where the bags are.
        bag_ids: The bags.
        batch_instances: Upper bound of instances in a batch; a larger bag is one of its own.
        threads: Threads that read ahead; 0 reads when asked.

    Raises:
        IntegrityError: Stored bytes are damaged; raised where the batch would have come.
    """
    parts = _fill(bag_ids, [cohort.length(bag_id) for bag_id in bag_ids], batch_instances)
    return _read_ahead(iter(parts), cohort.read_batch, threads)


def _fill(bag_ids: Sequence[str], lengths: Sequence[int], budget: int) -> list[tuple[str, ...]]:
    """Cut a list of bags into runs of at most `budget` instances; a larger bag is a run of its own.

    Example:
        >>> _fill("abcd", [2, 1, 9, 3], budget=4)
        [('a', 'b'), ('c',), ('d',)]
    """
    cuts, filled = [0], 0
    for position, length in enumerate(lengths):
        if filled + length > budget and position > cuts[-1]:
            cuts.append(position)
            filled = 0
        filled += length
    return [tuple(bag_ids[start:stop]) for start, stop in pairwise([*cuts, len(bag_ids)]) if stop > start]


def _read_ahead(items: Iterator[Item], read: Callable[[Item], Result], threads: int) -> Iterator[Result]:
    """`map(read, items)` with up to `LOOK_AHEAD` results, or one per thread, made before they are asked for."""
    if threads == 0:
        yield from map(read, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="asmil-read")
    try:
        pending = deque(pool.submit(read, item) for item in islice(items, max(LOOK_AHEAD, threads)))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(read, item) for item in islice(items, 1))
            yield result
            del result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
