"""The second pass: every planned shard is written by some worker process, whatever happens to single slides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from asmil.data.packing.messages import ConvertRequest, Problem, ShardResult, checked
from asmil.data.packing.plan import Plan, PlannedShard
from asmil.data.packing.pool import WorkerPool
from asmil.data.packing.process import ReaderDied, Worker
from asmil.data.packing.progress import Progress
from asmil.errors import EnvironmentProblem, IntegrityError

__all__ = ["ShardWriter", "write_shards"]


def write_shards(
    plan: Plan, shards: Sequence[PlannedShard], writer: ShardWriter, pool: WorkerPool, tick: Callable[[], None]
) -> Iterator[tuple[PlannedShard, ShardResult]]:
    """Write shards in any order.

    Args:
        plan: The whole plan.
        shards: Those of its shards that are still to be written.
        writer: How one is written.
        pool: The processes.
        tick: Called a few times per second.

    Yields:
        A shard and its result, as they are finished.

    Raises:
        EnvironmentProblem: The disk is full, or processes keep dying between slides.
        IntegrityError: The disk gave other bytes than were written.
    """
    for position, result in pool.run(lambda worker, shard: writer.write(worker, plan, shard, pool), shards, tick):
        yield shards[position], result


class ShardWriter:
    """Has a shard written, without the slides that end the process.

    A process that dies is given one more try, because something else may have ended it. When it dies at the same slide
    again, or takes too long, that slide is left out.

    Args:
        store: Directory of the store.
        progress: Learns of every slide.
        clip: Clip values beyond the range of the dtype.
        skip_bad: Leave slides out whose content their producer must correct.
    """

    def __init__(self, store: Path, progress: Progress, *, clip: bool, skip_bad: bool) -> None:
        self._store = store
        self._progress = progress
        self._clip = clip
        self._skip_bad = skip_bad

    def write(self, worker: Worker, plan: Plan, shard: PlannedShard, pool: WorkerPool) -> ShardResult:
        """Write one shard with one worker.

        Raises:
            ReaderDied: The pool is closing.
            EnvironmentProblem: The disk is full, or the process dies where no slide is read.
            IntegrityError: The disk gave other bytes than were written.
        """
        lost: dict[str, Problem] = {}
        died_at: set[str | None] = set()
        while True:
            attempt = _Attempt(shard, lost, self._progress)
            try:
                reply = worker.request({"task": "convert", "order": self._order(plan, shard, lost)}, None, attempt.seen)
                if reply.get("error") == "memory":
                    raise ReaderDied("its reader process ran out of memory (--reader-memory)")
            except ReaderDied as death:
                if pool.is_closing:
                    raise
                attempt.undo()
                slide_id = attempt.current
                if death.may_be_chance and slide_id not in died_at:
                    died_at.add(slide_id)
                elif slide_id is None:
                    raise EnvironmentProblem(
                        f"{self._store / shard.name}: cannot be finished: {death.reason}; look at memory and disk of "
                        "this machine, then give --resume"
                    ) from None
                else:
                    lost[slide_id] = Problem(kind="unreadable", reason=death.reason)
                continue
            result = _result(reply, shard, lost, skip_bad=self._skip_bad)
            return result.model_copy(update={"problems": {**lost, **result.problems}})

    def _order(self, plan: Plan, shard: PlannedShard, lost: dict[str, Problem]) -> dict[str, Any]:
        order = ConvertRequest(
            store=str(self._store.absolute()),
            name=shard.name,
            slides=shard.slides,
            skip=tuple(lost),
            read=dict(plan.read),
            num_features=plan.num_features,
            dtype=plan.dtype,
            coord_dtype=plan.coord_dtype,
            has_instance_labels=plan.has_instance_labels,
            clip=self._clip,
            skip_bad=self._skip_bad,
        )
        return order.model_dump(mode="json")


class _Attempt:
    """Which slide of a shard is being read, judged by the progress messages."""

    def __init__(self, shard: PlannedShard, lost: dict[str, Problem], progress: Progress) -> None:
        self._slides = [slide for slide in shard.slides if slide.header.slide_id not in lost]
        self._progress = progress
        self._done: list[tuple[int, int]] = []

    def seen(self, message: dict[str, Any]) -> None:
        """A slide is done."""
        if len(self._done) == len(self._slides):
            raise ReaderDied("its reader process sent something that is no reply")
        header = self._slides[len(self._done)].header
        nbytes = message.get("nbytes")
        is_count = isinstance(nbytes, int) and 0 <= nbytes < 1 << 50
        done = (header.num_instances * header.num_features, nbytes if isinstance(nbytes, int) and is_count else 0)
        self._done.append(done)
        self._progress.add(1, *done)

    def undo(self) -> None:
        """The slides that are done must be read again."""
        for values, nbytes in self._done:
            self._progress.add(-1, -values, -nbytes)

    @property
    def current(self) -> str | None:
        """The slide that is being read; None when all are done."""
        position = len(self._done)
        return self._slides[position].header.slide_id if position < len(self._slides) else None


def _result(reply: dict[str, Any], shard: PlannedShard, lost: Collection[str], *, skip_bad: bool) -> ShardResult:
    message = str(reply.get("message"))[:4000]
    if reply.get("error") == "environment":
        raise EnvironmentProblem(message)
    if reply.get("error") == "integrity":
        raise IntegrityError(message)
    result = checked(ShardResult, reply)
    if result is None:
        found = checked(Problem, reply.get("problem"))
        said = found.reason if found is not None else "its writer sent something that is no reply"
        raise EnvironmentProblem(f"{shard.name}: cannot be written: {said}")
    if result.info is not None and result.info.name != shard.name:
        raise EnvironmentProblem(f"{shard.name}: its writer speaks of {result.info.name}")
    planned = {slide.header.slide_id for slide in shard.slides}
    if not _is_whole(result, planned, lost, skip_bad=skip_bad):
        raise EnvironmentProblem(
            f"{shard.name}: its writer does not say of each of {len(planned)} slides, once, what became of it; give "
            "--resume to write it again"
        )
    return result


def _is_whole(result: ShardResult, planned: set[str], lost: Collection[str], *, skip_bad: bool) -> bool:
    """Whether every planned slide is either stored, or has a problem, or was not to be touched.

    A shard that is refused names only the slides with problems.
    """
    named = [*result.rows, *result.problems, *lost]
    if len(named) != len(set(named)) or not planned >= {*named, *result.clipped}:
        return False
    if (result.info is None) != (not result.rows):
        return False
    return set(named) == planned or (result.info is None and result.is_refused(skip_bad=skip_bad))
