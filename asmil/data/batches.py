"""From a cohort to packed micro-batches: what a rank computes in each step, read ahead by threads within a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

from asmil.bags import BagBatch
from asmil.data.cohort import Cohort
from asmil.data.config import DataConfig
from asmil.data.sampling import bag_seed, kept_rows, rank_shares, steps_of_epoch

__all__ = ["MicroBatch", "TrainLoader", "evaluation_batches"]

LOOK_AHEAD = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class MicroBatch:
    """A part of an optimizer step that a rank computes at once.

    Attributes:
        batch: The bags; None if this rank has no bag in the step, to which it then adds nothing.
        step: Number of the step in its epoch, from 0.
        bags_in_step: Bags of the whole step on all ranks, by which losses are divided.
        last_in_step: Whether the optimizer steps after this micro-batch.
    """

    batch: BagBatch | None
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
    """Training bags in a new order each epoch, cut into steps, steps shared among ranks, shares cut into micro-batches.

    Which bags form a step is a pure function of (seed, epoch) and the set of bags, not of the order they are given in
    or the number of ranks. Every bag comes once per epoch, on one rank; the last step may have fewer bags. Every rank
    comes to the end of every step.

    Args:
        cohort: Where the bags are.
        bag_ids: The training bags.
        data: Grouping, sub-sampling, size of micro-batches and reading ahead.
        bags_per_step: Bags of an optimizer step, over all ranks.
        seed: Seed of order, sub-sampling and the bags' random streams.
        pin_memory: Read into page-locked memory.
        can_step: Whether some bags are enough for a step; if not, they join the next step, or at the end the one
            before. None takes every step as it is.
        rank: Which of the ranks this is, from 0.
        world_size: Number of ranks.
    """

    def __init__(
        self,
        cohort: Cohort,
        bag_ids: Sequence[str],
        data: DataConfig,
        *,
        bags_per_step: int,
        seed: int,
        pin_memory: bool = False,
        can_step: Callable[[Sequence[str]], bool] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert 0 <= rank < world_size
        self._cohort = cohort
        self._data = data
        self._whole_lengths = {bag_id: cohort.length(bag_id) for bag_id in bag_ids}
        most = data.sample_instances
        self._lengths = {
            bag_id: length if most is None else min(length, most) for bag_id, length in self._whole_lengths.items()
        }
        self._bags_per_step = bags_per_step
        self._seed = seed
        self._pin_memory = pin_memory
        self._can_step = can_step
        self._rank, self._world_size = rank, world_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, if none has to be joined with another."""
        return -(-len(self._lengths) // self._bags_per_step)

    @property
    def instances_per_step(self) -> float:
        """Instances of a mean step over all ranks."""
        return sum(self._lengths.values()) / self.steps_per_epoch

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[MicroBatch]:
        """The micro-batches of an epoch; closing the iterator stops the threads.

        Args:
            epoch: The epoch, from 0.
            start_step: The first step that is wanted; the ones before are skipped unread.

        Raises:
            IntegrityError: Stored bytes are damaged; raised where the batch would have come.
        """

        def read(plan: _Plan) -> MicroBatch:
            batch = self._read(plan.bag_ids, epoch) if plan.bag_ids else None
            return MicroBatch(batch, plan.step, plan.bags_in_step, plan.last_in_step)

        return _read_ahead(self._plans(epoch, start_step), read, self._bytes, self._data)

    def _read(self, bag_ids: Sequence[str], epoch: int) -> BagBatch:
        seeds = [bag_seed(self._seed, epoch, bag_id) for bag_id in bag_ids]
        rows = None
        if (most := self._data.sample_instances) is not None:
            rows = [
                kept_rows(self._whole_lengths[bag_id], most, seed=self._seed, epoch=epoch, bag_id=bag_id)
                for bag_id in bag_ids
            ]
        return self._cohort.read_batch(bag_ids, seeds=seeds, rows=rows, pin_memory=self._pin_memory)

    def _plans(self, epoch: int, start_step: int) -> Iterator[_Plan]:
        steps = steps_of_epoch(
            self._lengths,
            bags_per_step=self._bags_per_step,
            seed=self._seed,
            epoch=epoch,
            group_lengths=self._data.group_lengths,
        )
        if self._can_step is not None:
            steps = _joined(steps, self._can_step)
        for step in range(start_step, len(steps)):
            bag_ids = self._share(steps[step])
            lengths = [self._lengths[bag_id] for bag_id in bag_ids]
            parts = _fill(bag_ids, lengths, self._data.batch_instances) or [()]
            for position, part in enumerate(parts, start=1):
                yield _Plan(part, step, len(steps[step]), last_in_step=position == len(parts))

    def _share(self, bag_ids: list[str]) -> list[str]:
        """The bags of a step that this rank computes, in the order of the step."""
        if self._world_size == 1:
            return bag_ids
        shares = rank_shares([self._lengths[bag_id] for bag_id in bag_ids], self._world_size)
        return [bag_ids[position] for position in shares[self._rank]]

    def _bytes(self, plan: _Plan) -> int:
        """Most memory that a batch takes; sub-sampled ones are packed from parts, with one bag in memory whole."""
        instances = sum(self._lengths[bag_id] for bag_id in plan.bag_ids)
        if self._data.sample_instances is not None:
            instances = 2 * instances + max((self._whole_lengths[bag_id] for bag_id in plan.bag_ids), default=0)
        return instances * self._cohort.instance_bytes


def evaluation_batches(
    cohort: Cohort, bag_ids: Sequence[str], data: DataConfig, *, pin_memory: bool = False
) -> Iterator[BagBatch]:
    """The bags in the given order with all their instances, packed up to a number of them; without random streams.

    Args:
        cohort: Where the bags are.
        bag_ids: The bags.
        data: Size of batches (a larger bag is one of its own) and reading ahead.
        pin_memory: Read into page-locked memory.

    Raises:
        IntegrityError: Stored bytes are damaged; raised where the batch would have come.
    """

    def read(part: tuple[str, ...]) -> BagBatch:
        return cohort.read_batch(part, pin_memory=pin_memory)

    def num_bytes(part: tuple[str, ...]) -> int:
        return cohort.instance_bytes * sum(cohort.length(bag_id) for bag_id in part)

    parts = _fill(bag_ids, [cohort.length(bag_id) for bag_id in bag_ids], data.batch_instances)
    return _read_ahead(iter(parts), read, num_bytes, data)


def _joined(steps: Sequence[list[str]], can_step: Callable[[Sequence[str]], bool]) -> list[list[str]]:
    """Steps of which each is enough for one.

    Example:
        >>> _joined([["a"], ["B"], ["c", "D"], ["e"]], lambda bags: any(bag.isupper() for bag in bags))
        [['a', 'B'], ['c', 'D', 'e']]
    """
    joined: list[list[str]] = []
    waiting: list[str] = []
    for step in steps:
        waiting = [*waiting, *step]
        if can_step(waiting):
            joined.append(waiting)
            waiting = []
    if waiting and joined:
        joined[-1] = [*joined[-1], *waiting]
    return joined or [waiting]


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


def _read_ahead(
    items: Iterator[Item], read: Callable[[Item], Result], num_bytes: Callable[[Item], int], data: DataConfig
) -> Iterator[Result]:
    """`map(read, items)` with results made before they are asked for, as many as threads and memory allow."""
    if data.prefetch_threads == 0:
        yield from map(read, items)
        return
    pool = ThreadPoolExecutor(data.prefetch_threads, thread_name_prefix="asmil-read")
    ahead = _Ahead(items, lambda item: pool.submit(read, item), num_bytes, data)
    ready: list[Result] = []
    try:
        ahead.fill()
        while ahead.pending:
            ready.append(ahead.take())
            ahead.fill()
            yield ready.pop()  # nothing here refers to the result while its user works with it
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Ahead(Generic[Item, Result]):
    """Results being made or waiting, oldest first.

    There are at most `LOOK_AHEAD`, or one per thread, and together they take at most `data.prefetch_mib`; one is
    allowed whatever it takes.
    """

    def __init__(
        self,
        items: Iterator[Item],
        submit: Callable[[Item], Future[Result]],
        num_bytes: Callable[[Item], int],
        data: DataConfig,
    ) -> None:
        self.pending: deque[tuple[Future[Result], int]] = deque()
        self._sized = ((item, num_bytes(item)) for item in items)
        self._submit = submit
        self._next = next(self._sized, None)
        self._depth = max(LOOK_AHEAD, data.prefetch_threads)
        self._most_bytes = data.prefetch_mib << 20
        self._bytes = 0

    def fill(self) -> None:
        """Begin to make as many results as there is room for."""
        while self._next is not None and len(self.pending) < self._depth:
            item, size = self._next
            if self.pending and self._bytes + size > self._most_bytes:
                return
            self.pending.append((self._submit(item), size))
            self._bytes += size
            self._next = next(self._sized, None)

    def take(self) -> Result:
        """Wait for the oldest result and hand it over."""
        future, size = self.pending.popleft()
        self._bytes -= size
        return future.result()
